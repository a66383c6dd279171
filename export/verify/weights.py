"""Are the stored weights the checkpoint's, to within the rounding of their type?

The numbers of a signature can't tell: rounding to int8 moves them more than one wrong
row does. So each stored tensor is compared with the checkpoint's own, and the bound is
what rounding to nearest can do to each number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np

from ...models.config import OPTConfig
from ...models.weights import weight_shapes
from ..int4 import BLOCK, packed_shapes, stored_dtype, unpack
from ..weights import SCALE, by_row, is_matrix

_STACKED = "decoder.layers."
_BLOCK = 1 << 17  # numbers: they and what is computed of them fit a cache
_HALF_STEP = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_SMALLEST = {"float32": 0.0, "float16": 2.0**-25, "bfloat16": 2.0**-134}
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


class StoredWeights(Mapping[str, np.ndarray]):
    """A SavedModel's weights by their names in it, read from its files when asked."""

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf

        self._reader = tf.train.load_checkpoint(str(folder / "variables/variables"))
        self._reading = Lock()
        keys = self._reader.get_variable_to_shape_map()
        self._keys = {
            key.removeprefix("stored/").removesuffix(_VALUE).replace("..", "."): key
            for key in keys
            if key.startswith("stored/")
        }

    def __getitem__(self, name: str) -> np.ndarray:
        with self._reading:
            return self._reader.get_tensor(self._keys[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def wrong_weights(
    stored: Mapping[str, np.ndarray],
    config: OPTConfig,
    weights: Mapping[str, np.ndarray],
    dtype: str,
) -> list[str]:
    """Stored tensors that are not the checkpoint's, a sentence for each.

    Args:
        stored: an export's tensors by their names in it.
        weights: the checkpoint's, by canonical name.
        dtype: of the stored matrices.
    """
    wrong = partial(_wrong, stored, weights, dtype)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return [
            problem for problem in pool.map(wrong, _sources(config).items()) if problem
        ]


Source = list[tuple[str, np.float32]]
"""The checkpoint's tensors that are stored as one, one after the other, and the factor
of each."""


def _wrong(
    stored: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
    dtype: str,
    named: tuple[str, dict[int, Source]],
) -> str | None:
    """What is wrong with one stored tensor."""
    name, layers = named
    if name not in stored:
        return f"{name} is not stored"
    tensor, scale = stored[name], stored.get(name + SCALE)
    if _STACKED in name:
        if len(tensor) != len(layers):
            return f"{name} has {len(tensor)} layers, the checkpoint {len(layers)}"
    else:
        tensor, scale = tensor[None], None if scale is None else scale[None]
    kind = stored_dtype(name, dtype) if is_matrix(name) else "float32"
    worst = (0.0, 0.0, 0.0)
    for i, parts in layers.items():
        arrays = [np.asarray(weights[part]) for part, _ in parts]
        matrix = by_row(tensor[i])
        scales = None if scale is None else scale[i]
        if tensor.dtype == np.int32 and scales is not None:
            matrix, scales = unpack(tensor[i], scales), None
        if len(matrix) != (rows := sum(map(len, arrays))):
            return f"{name} has {len(matrix)} rows, the checkpoint {rows}"
        factors = [factor for _, factor in parts]
        worst = max(worst, _worst_of(matrix, scales, arrays, factors, kind))
    share, off, allowed = worst
    if share <= 1:
        return None
    return (
        f"{name} is not the checkpoint's: a number is off by {off:.3g}, and storing "
        f"it as {kind} explains {allowed:.3g}"
    )


def _worst_of(
    tensor: np.ndarray,
    scale: np.ndarray | None,
    arrays: list[np.ndarray],
    factors: list[np.float32],
    kind: str,
) -> tuple[float, ...]:
    """:func:`_worst` of one layer's tensor, 0 where rounding explains all."""
    start, worst = 0, (0.0, 0.0, 0.0)
    for array, factor in zip(arrays, factors, strict=True):
        step = max(1, _BLOCK * len(array) // max(array.size, 1))
        for at in range(0, len(array), step):
            expected = np.asarray(array[at : at + step], np.float32)
            if factor != 1:
                expected = expected * factor
            rows_at = slice(start + at, start + at + len(expected))
            got = tensor[rows_at].astype(np.float32, copy=False)
            got = got.reshape(expected.shape)  # of panels
            if scale is not None:
                got = got * scale[rows_at, None]
            if not _explained(got, expected, kind):
                worst = max(worst, _worst(got, expected, kind))
        start += len(array)
    return worst


def _explained(got: np.ndarray, expected: np.ndarray, kind: str) -> bool:
    """Whether rounding explains all that differs; :func:`_worst` without its detail."""
    if kind == "float32":
        return np.array_equal(got, expected)
    off = np.subtract(got, expected)
    np.abs(off, out=off)
    return bool((off <= _allowed(expected, kind)).all())


def _allowed(expected: np.ndarray, kind: str) -> np.ndarray:
    """How far off each number may be."""
    size = np.abs(expected)
    if kind == "int8":
        return size.max(axis=-1, keepdims=True) / 254 * (1 + 1e-4)
    if kind == "int4":
        return _allowed_of_blocks(size)
    return size * _HALF_STEP[kind] + _SMALLEST[kind]


def _allowed_of_blocks(size: np.ndarray) -> np.ndarray:
    """Of int4, where a scale is the block's largest number by 7 to 8.5: half of the
    coarsest step, or what clipping to 7 of the finest takes away."""
    rows, width = size.shape
    panels, _, J = packed_shapes(rows, width)[1]
    blocks = size.reshape(rows, panels, BLOCK, J)
    largest = blocks.max(axis=2, keepdims=True)
    allowed = np.maximum(largest / 14, blocks - 7 / 8.5 * largest) * (1 + 2.0**-9)
    return allowed.reshape(rows, width) + 2.0**-15  # half of the smallest step


def _worst(got: np.ndarray, expected: np.ndarray, kind: str) -> tuple[float, ...]:
    """The largest error as a share of what is allowed there, the error, the allowed."""
    off = np.abs(got - expected)
    off[~np.isfinite(off)] = np.inf
    allowed = np.broadcast_to(_allowed(expected, kind), off.shape)
    share = np.divide(off, allowed, out=np.zeros_like(off), where=allowed > 0)
    share[(allowed == 0) & (off > 0)] = np.inf
    at = np.unravel_index(share.argmax(), share.shape)
    return float(share[at]), float(off[at]), float(allowed[at])


def _sources(config: OPTConfig) -> dict[str, dict[int, Source]]:
    """Names as stored, and by layer what of the checkpoint is in them.

    Written apart from the exporter's own table, so that a mistake there shows here.
    """
    sources: dict[str, dict[int, Source]] = {}
    for name in weight_shapes(config):
        layer = re.match(re.escape(_STACKED) + r"(\d+)\.", name)
        stored = name if layer is None else name.replace(layer[0], _STACKED)
        factor = np.float32(config.head_dim**-0.5 if ".q_proj." in name else 1)
        stored = re.sub(r"\.[qkv]_proj\.", ".qkv_proj.", stored)
        layers = sources.setdefault(stored, {})
        layers.setdefault(int(layer[1]) if layer else 0, []).append((name, factor))
    return sources

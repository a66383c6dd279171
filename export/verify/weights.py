"""Are the stored weights the checkpoint's, to within the rounding of their type?

The numbers of a signature can't tell: rounding to int8 moves them more than one wrong
row does. So each stored tensor is compared with the checkpoint's own, and the bound is
what rounding to nearest can do to each number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np

from ...models.config import OPTConfig
from ...models.weights import weight_shapes
from ..weights import SCALE, is_matrix

_BLOCK = 1 << 17  # numbers: with what is made of them they fit a processor's cache
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
        return [found for found in pool.map(wrong, _sources(config)) if found]


def _wrong(
    stored: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
    dtype: str,
    source: tuple[str, list[tuple[str, np.float32]]],
) -> str | None:
    """What is wrong with one stored tensor."""
    name, parts = source
    if name not in stored:
        return f"{name} is not stored"
    found, scale = stored[name], stored.get(name + SCALE)
    kind = dtype if is_matrix(name) else "float32"
    arrays = [weights[part] for part, _ in parts]
    if len(found) != (rows := sum(map(len, arrays))):
        return f"{name} has {len(found)} rows, the checkpoint {rows}"
    start, worst = 0, (0.0, 0.0, 0.0)
    for array, (_, factor) in zip(arrays, parts, strict=True):
        step = max(1, _BLOCK * len(array) // max(array.size, 1))
        for at in range(0, len(array), step):
            wanted = np.asarray(array[at : at + step], np.float32)
            if factor != 1:
                wanted = wanted * factor
            rows_at = slice(start + at, start + at + len(wanted))
            got = found[rows_at].astype(np.float32, copy=False)
            if scale is not None:
                got = got * scale[rows_at, None]
            if not _explained(got, wanted, kind):
                worst = max(worst, _worst(got, wanted, kind))
        start += len(array)
    share, off, allowed = worst
    if share <= 1:
        return None
    return (
        f"{name} is not the checkpoint's: a number is off by {off:.3g}, and storing "
        f"it as {kind} explains {allowed:.3g}"
    )


def _explained(got: np.ndarray, wanted: np.ndarray, kind: str) -> bool:
    """Whether rounding explains all that differs; :func:`_worst` without its detail."""
    if kind == "float32":
        return np.array_equal(got, wanted)
    off = np.subtract(got, wanted)
    np.abs(off, out=off)
    return bool((off <= _allowed(wanted, kind)).all())


def _allowed(wanted: np.ndarray, kind: str) -> np.ndarray:
    """How far off each number may be."""
    size = np.abs(wanted)
    if kind == "int8":
        return size.max(axis=-1, keepdims=True) / 254 * (1 + 1e-4)
    return size * _HALF_STEP[kind] + _SMALLEST[kind]


def _worst(got: np.ndarray, wanted: np.ndarray, kind: str) -> tuple[float, ...]:
    """The largest error as a share of what is allowed there, the error, the allowed."""
    off = np.abs(got - wanted)
    off[~np.isfinite(off)] = np.inf
    allowed = np.broadcast_to(_allowed(wanted, kind), off.shape)
    share = np.divide(off, allowed, out=np.zeros_like(off), where=allowed > 0)
    share[(allowed == 0) & (off > 0)] = np.inf
    at = np.unravel_index(share.argmax(), share.shape)
    return float(share[at]), float(off[at]), float(allowed[at])


def _sources(config: OPTConfig) -> Iterator[tuple[str, list[tuple[str, np.float32]]]]:
    """Names as stored, and the checkpoint's tensors in them with their factors."""
    one = np.float32(1)
    for name in weight_shapes(config):
        parent, _, leaf = name.rpartition(".")
        if parent.endswith(("k_proj", "v_proj")):
            continue
        if not parent.endswith("q_proj"):
            yield name, [(name, one)]
            continue
        query = [(name, np.float32(config.head_dim**-0.5))]
        others = [
            (f"{parent.replace('q_proj', other)}.{leaf}", one)
            for other in ("k_proj", "v_proj")
        ]
        yield f"{parent.replace('q_proj', 'qkv_proj')}.{leaf}", query + others

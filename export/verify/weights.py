"""Are the stored weights the checkpoint's, to within the rounding of their type?

The numbers of a signature can't tell: rounding to int8 moves them more than one wrong
row does. So each stored tensor is compared with the checkpoint's own, and the bound is
what rounding to nearest can do to each number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...models.config import OPTConfig
from ...models.weights import weight_shapes
from ..packing import SCALE, is_matrix

_ROWS = 4096  # compared at a time: bounds the copies of a large table
_HALF_STEP = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_SMALLEST = {"float32": 0.0, "float16": 2.0**-25, "bfloat16": 2.0**-134}


def wrong_weights(
    stored: Mapping[str, Any],
    config: OPTConfig,
    weights: Mapping[str, np.ndarray],
    dtype: str,
) -> list[str]:
    """Stored tensors that are not the checkpoint's, a sentence for each.

    Args:
        stored: an export's tensors by their names in it, with ``numpy()``.
        weights: the checkpoint's, by canonical name.
        dtype: of the stored matrices.
    """
    problems = []
    for name, parts in _sources(config):
        if name not in stored:
            problems.append(f"{name} is not stored")
            continue
        found = stored[name].numpy()
        scale = stored[name + SCALE].numpy() if name + SCALE in stored else None
        kind = dtype if is_matrix(name) else "float32"
        rows = sum(weights[part].shape[0] for part, _ in parts)
        if len(found) != rows:
            problems.append(f"{name} has {len(found)} rows, the checkpoint {rows}")
            continue
        start, worst = 0, (0.0, 0.0, 0.0)
        for part, factor in parts:
            source = weights[part]
            for at in range(0, len(source), _ROWS):
                wanted = np.asarray(source[at : at + _ROWS], np.float32) * factor
                rows_at = slice(start + at, start + at + len(wanted))
                got = found[rows_at].astype(np.float32)
                if scale is not None:
                    got = got * scale[rows_at, None]
                worst = max(worst, _worst(got, wanted, kind))
            start += len(source)
        share, off, allowed = worst
        if share > 1:
            problems.append(
                f"{name} is not the checkpoint's: a number is off by {off:.3g}, and "
                f"storing it as {kind} explains {allowed:.3g}"
            )
    return problems


def _worst(got: np.ndarray, wanted: np.ndarray, kind: str) -> tuple[float, ...]:
    """The largest error as a share of what is allowed there, the error, the allowed."""
    size = np.abs(wanted)
    if kind == "int8":
        allowed = size.max(axis=-1, keepdims=True) / 254 * (1 + 1e-4)
    else:
        allowed = size * _HALF_STEP[kind] + _SMALLEST[kind]
    off = np.abs(got - wanted)
    off[~np.isfinite(off)] = np.inf
    allowed = np.broadcast_to(allowed, off.shape)
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

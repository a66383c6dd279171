"""Cache rows as plain numbers, by the contract's definition of their encoding."""

from __future__ import annotations

import numpy as np

from ...runtime.contract import CacheLayout


def unpack(rows: np.ndarray, layout: CacheLayout) -> np.ndarray:
    """``[T, L, 2, H, D]`` float32 of rows as they travel, ``[T, *row_shape]``."""
    rows = np.ascontiguousarray(rows, np.float32)
    if layout.dtype == "float32":
        return rows
    if layout.dtype == "bfloat16":
        # A bfloat16 is the upper half of a float32.
        halves = rows.view(np.uint16).astype(np.uint32) << 16
        return halves.view(np.float32)
    numbers = np.ascontiguousarray(rows[..., :-1]).view(np.int8)
    return numbers.astype(np.float32) * rows[..., -1:]

"""A tensor given as rows of blocks, so that caches are copied once: onto the wire."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RowBlocks:
    """A ``[B, slots, …]`` tensor as blocks of memory that need not be contiguous.

    ``rows[b]`` holds the arrays ``[n, …]`` that make up row b one after another; zeros
    follow up to ``slots``. Wherever an array is expected, ``numpy.asarray`` makes one.
    """

    rows: tuple[tuple[np.ndarray, ...], ...]
    slots: int

    @property
    def dtype(self) -> np.dtype:
        """The blocks' dtype."""
        return self.rows[0][0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """``(B, slots, …)``."""
        return (len(self.rows), self.slots, *self.rows[0][0].shape[1:])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.rows[0][0].ndim + 1

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor, the zeros included."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def memory(self) -> Iterator[np.ndarray | int]:
        """The tensor's memory in order: arrays, and numbers of zero bytes."""
        row_bytes = self.nbytes // len(self.rows)
        for row in self.rows:
            yield from row
            if rest := row_bytes - sum(block.nbytes for block in row):
                yield rest

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        out = np.zeros(self.shape, dtype or self.dtype)
        for b, row in enumerate(self.rows):
            start = 0
            for block in row:
                out[b, start : start + len(block)] = block
                start += len(block)
        return out


Tensor = np.ndarray | RowBlocks
"""What an input may be given as."""

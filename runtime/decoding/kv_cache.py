"""One sequence's cache: a buffer that grows, after blocks shared with others."""

from __future__ import annotations

import numpy as np

from ..contract import CacheLayout
from ..errors import MalformedReply

_FIRST_SLOTS = 64


class KVCache:
    """Keys and values of one sequence's tokens, ``[slots, L, 2, H, D]`` float32.

    ``fork`` shares what is there and copies at most the last few rows, so that beams
    and samples of one prompt hold it once. ``shared`` are blocks of rows that others
    hold too.
    """

    def __init__(
        self, layout: CacheLayout, shared: tuple[np.ndarray, ...] = ()
    ) -> None:
        self._layout = layout
        self._shared = shared
        self._own = np.zeros((0, *layout.row_shape), np.float32)
        self._used = 0

    def __len__(self) -> int:
        return sum(map(len, self._shared)) + self._used

    def blocks(self) -> tuple[np.ndarray, ...]:
        """The rows in order, as views."""
        own = self._own[: self._used]
        return (*self._shared, own) if self._used or not self._shared else self._shared

    def rows(self, begin: int, end: int) -> np.ndarray:
        """A copy of the rows of slots ``begin`` to ``end``."""
        parts, start = [], 0
        for block in self.blocks():
            parts.append(block[max(begin - start, 0) : max(end - start, 0)])
            start += len(block)
        return np.concatenate(parts)

    def append(self, rows: np.ndarray) -> None:
        """Add the rows ``[n, L, 2, H, D]`` of n tokens.

        Raises:
            MalformedReply: rows of another layout.
        """
        if rows.shape[1:] != self._layout.row_shape or rows.dtype != np.float32:
            raise MalformedReply(
                f"the cache's rows must be float32 {self._layout.row_shape}, the model "
                f"returned {rows.dtype} {rows.shape[1:]}"
            )
        end = self._used + len(rows)
        if end > len(self._own):
            slots = max(end, 2 * len(self._own), _FIRST_SLOTS)
            # Zeros, since the slots after the last token travel too.
            grown = np.zeros((slots, *self._layout.row_shape), np.float32)
            grown[: self._used] = self._own[: self._used]
            self._own = grown
        self._own[self._used : end] = rows
        self._used = end

    def truncate(self, length: int) -> None:
        """Forget the tokens from slot ``length`` on."""
        kept = []
        for block in self._shared:
            kept.append(block[:length])
            length -= len(kept[-1])
        self._shared = tuple(block for block in kept if len(block))
        self._used = min(self._used, length)

    def discard(self) -> None:
        """Nothing that others could use is held."""

    def fork(self) -> KVCache:
        """Another cache with the same rows."""
        if self._used >= _FIRST_SLOTS or not self._shared:
            self._shared = (*self._shared, self._own[: self._used])
            self._own, self._used = self._own[:0], 0
        other = KVCache(self._layout, self._shared)
        if self._used:
            other.append(self._own[: self._used])
        return other

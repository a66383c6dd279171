"""One sequence's cache where a server keeps it: a slot, and how much of it is used."""

from __future__ import annotations

from collections.abc import Sequence

from .session_pool import SessionPool, Slot


class SessionCache:
    """``KVCache`` for rows that stay in a server's slot.

    A fork has no slot of its own yet: its rows are the first ones of ``origin``'s, and
    ``sessions.seat`` copies them before the next call.
    """

    def __init__(
        self,
        pool: SessionPool,
        slot: Slot | None,
        length: int,
        origin: SessionCache | None = None,
    ) -> None:
        self.pool, self.slot, self.origin = pool, slot, origin
        self._length = length

    def __len__(self) -> int:
        return self._length

    def grow(self, rows: int) -> None:
        """The server has written the rows of so many tokens more."""
        self._length += rows

    def truncate(self, length: int) -> None:
        """Forget the tokens from slot ``length`` on; they are written over."""
        self._length = min(self._length, length)

    def fork(self) -> SessionCache:
        """Another cache with the same rows."""
        origin = self if self.slot else self.origin
        return SessionCache(self.pool, None, self._length, origin)

    def close(self, tokens: Sequence[int]) -> None:
        """Release the slot, which holds the rows of these tokens."""
        if self.slot is not None:
            self.pool.release(self.slot, tokens[: self._length])
            self.slot = None

    def discard(self, *, evicted: bool = False) -> None:
        """Let go of the slot, whose rows are not to be used again."""
        if self.slot is not None:
            self.pool.drop(self.slot, evicted=evicted)
            self.slot = None

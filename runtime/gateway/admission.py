"""Who goes next: a bounded queue that is fair by user.

At most so many generations run at a time. The others wait; the lowest ``priority``
number goes first (as in vLLM), among equals whoever's user has the fewest under way,
and among those the one that waits longest. So a user with a thousand requests delays
another user by one request at most.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from .api_errors import ApiError

_LEAST = 0.001  # seconds that whoever got a place has in any case


@dataclass(eq=False)
class _Waiting:
    user: str
    model: str
    priority: int
    arrival: int
    turn: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Admission:
    """Places for generations under way, for one event loop.

    Args:
        most: generations under way at a time.
        most_waiting: generations that wait; a further one is refused.
    """

    def __init__(self, *, most: int, most_waiting: int) -> None:
        self._most, self._most_waiting = most, most_waiting
        self._active: Counter[str] = Counter()  # by user
        self._models: Counter[str] = Counter()  # of those under way
        self._waiting: list[_Waiting] = []
        self._arrivals = itertools.count()

    @property
    def capacity(self) -> int:
        """Generations that can be under way and wait together."""
        return self._most + self._most_waiting

    @property
    def running(self) -> int:
        """Generations under way."""
        return self._active.total()

    def running_of(self, model: str) -> int:
        """Generations of this model under way."""
        return self._models[model]

    def waiting_of(self, model: str) -> int:
        """Generations of this model that wait for a place."""
        return sum(waiting.model == model for waiting in self._waiting)

    @asynccontextmanager
    async def place(
        self,
        user: str,
        priority: int = 0,
        seconds: float | None = None,
        *,
        model: str = "",
    ) -> AsyncIterator[float | None]:
        """Wait for a place, at most so long, and hold it within the block.

        Gives the seconds that are left of them, at least a millisecond.

        Raises:
            ApiError: 429, as many wait as may; 504, none came free in time.
        """
        begin = time.monotonic()
        if self.running < self._most:
            self._enter(user, model)
        else:
            try:
                await asyncio.wait_for(self._wait(user, model, priority), seconds)
            except asyncio.TimeoutError:
                raise ApiError(
                    504,
                    f"no place came free within {seconds} s: send fewer requests at "
                    "once, or allow more time",
                    kind="server_error",
                    code="timeout",
                ) from None
        try:
            left = seconds and max(_LEAST, begin + seconds - time.monotonic())
            yield left
        finally:
            self._leave(user, model)

    async def _wait(self, user: str, model: str, priority: int) -> None:
        if len(self._waiting) >= self._most_waiting:
            raise ApiError(
                429,
                f"{len(self._waiting)} requests wait already: try again later",
                kind="rate_limit_error",
                code="queue_full",
            )
        waiting = _Waiting(user, model, priority, next(self._arrivals))
        self._waiting.append(waiting)
        try:
            await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.done() and not waiting.turn.cancelled():
                self._leave(user, model)  # its turn had just come
            else:
                self._waiting.remove(waiting)
            raise

    def _enter(self, user: str, model: str) -> None:
        self._active[user] += 1
        self._models[model] += 1

    def _leave(self, user: str, model: str) -> None:
        self._models[model] -= 1
        self._active[user] -= 1
        if not self._active[user]:
            del self._active[user]
        if self._waiting:
            chosen = min(self._waiting, key=self._rank)
            self._waiting.remove(chosen)
            self._enter(chosen.user, chosen.model)
            chosen.turn.set_result(None)

    def _rank(self, waiting: _Waiting) -> tuple[int, int, int]:
        return waiting.priority, self._active[waiting.user], waiting.arrival

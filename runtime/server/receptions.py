"""Messages that are arriving: bounded in time, and by the memory that is left.

gRPC holds what has come of a message, up to 2 GiB of each call, and doesn't say how
much that is. So where memory gets short, messages that have been under way for long are
given up, the longest first, before the system ends the whole server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from ..memory import available_bytes
from .serving_error import ServingError

T = TypeVar("T")

_LOOK_SECONDS = 0.25
_SLOW_SECONDS = 1.0  # a request of 100 MB takes a tenth of that on a good network


class Receptions:
    """What is being received now, on one event loop.

    Args:
        seconds: that a message has to arrive.
        spare_bytes: where less memory is left, slow messages are given up.
        available: bytes that the machine has left; None where it doesn't say.
    """

    def __init__(
        self,
        *,
        seconds: float,
        spare_bytes: int,
        available: Callable[[], int | None] = available_bytes,
    ) -> None:
        self._seconds = seconds
        self._spare_bytes = spare_bytes
        self._available = available
        self._begun: dict[asyncio.Future[None], float] = {}  # the longest first

    async def whole(self, read: Awaitable[T]) -> T:
        """What ``read`` gives.

        Raises:
            ServingError: DEADLINE_EXCEEDED it takes too long; RESOURCE_EXHAUSTED memory
                is short.
        """
        reading = asyncio.ensure_future(read)
        given_up = asyncio.get_running_loop().create_future()
        self._begun[given_up] = time.monotonic()
        try:
            await asyncio.wait(
                {reading, given_up},
                timeout=self._seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if reading.done():
                return reading.result()
        finally:
            del self._begun[given_up]
            reading.cancel()
        if given_up.done():
            raise ServingError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "the server is short of memory: send the request again later",
            )
        raise ServingError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            f"the request did not arrive as a whole within {self._seconds:g} seconds",
        )

    async def watch(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """If memory is short, give up half of what is slow to arrive."""
        since = time.monotonic() - _SLOW_SECONDS
        slow = [future for future, begun in self._begun.items() if begun < since]
        if not slow:
            return
        left = self._available()
        if left is None or left >= self._spare_bytes:
            return
        for future in slow[: (len(slow) + 1) // 2]:
            if not future.done():
                future.set_result(None)

"""A blocking transport for asyncio, its calls in threads."""

from __future__ import annotations

import asyncio

from .base import AsyncTransport, Call, Reply, Transport


class InThreads(AsyncTransport):
    """A blocking transport for asyncio; its model runs in this process.

    A cancelled task stops waiting; the computation itself runs to its end.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        """Run one call in a thread."""
        return await asyncio.to_thread(self._transport.call, call, timeout=timeout)

    async def close(self) -> None:
        """Close the transport."""
        await asyncio.to_thread(self._transport.close)

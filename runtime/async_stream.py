"""What ``AsyncClient.stream`` returns."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from .decoding.sequence import Sequence
from .errors import OptserveError
from .results import Chunk, Generation


class AsyncStream:
    """An asynchronous iterator of ``Chunk``; also the handle that ends it early."""

    def __init__(
        self, chunks: AsyncGenerator[Chunk, None], started: list[Sequence]
    ) -> None:
        self._chunks = chunks
        self._started = started  # the sequence, once there is room for it

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        return await anext(self._chunks)

    async def aclose(self) -> None:
        """Drop it; a call under way is cancelled with its task."""
        await self._chunks.aclose()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def cancel(self) -> None:
        """End it after the call that runs now, with a last chunk."""
        for sequence in self._started:
            sequence.cancel()

    @property
    def generation(self) -> Generation:
        """The whole result.

        Raises:
            OptserveError: the stream has not ended.
        """
        if not self._started or self._started[0].finish_reason is None:
            raise OptserveError("the stream has not ended: read it to its end first")
        return self._started[0].generation()

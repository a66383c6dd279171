"""The asyncio gRPC transport: the same operations, awaited."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio

from ..codec import ModelMetadata
from ..errors import InvalidRequest
from .base import AsyncTransport, Call, Reply
from .grpc_base import GrpcBase, GrpcKeywords
from .grpc_channel import open_channel, outcome_of, reply_limit
from .status_mapping import Outcome
from .steps import Operation, Pause, TargetStatus

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


class AsyncGrpcTransport(GrpcBase, AsyncTransport):
    """One model on one or several servers, for one asyncio event loop.

    Safe to use from many tasks; cancelling a task cancels its call on the wire. Takes
    what ``GrpcTransport`` takes; a metadata function may return an awaitable. Belongs
    to the event loop that first calls it.
    """

    def __init__(
        self,
        targets: str | Iterable[str],
        *,
        model: str,
        **options: Unpack[GrpcKeywords],
    ) -> None:
        super().__init__(targets, model=model, **options)
        if self._operations.connection.tls:
            self._operations.connection.tls.load()  # report wrong files now
        self._closing = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channels: dict[tuple[int, int], grpc.aio.Channel] = {}
        self._watchers: set[asyncio.Task[None]] = set()

    async def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        """Run one call within ``timeout`` seconds; raises as ``GrpcTransport.call``."""
        return await self._run(self._operations.predict(call, timeout))

    async def metadata(
        self, *, version: int | None = None, timeout: float | None = None
    ) -> ModelMetadata:
        """The model's signatures, as a server lists them."""
        return await self._run(self._operations.metadata(version, timeout))

    async def status(self, *, timeout: float | None = None) -> list[TargetStatus]:
        """What each server says of the model's versions; those down have ``error``."""
        return await self._run(self._operations.status(timeout))

    async def wait_until_ready(self, timeout: float | None = None) -> None:
        """Wait until a server has a version AVAILABLE; raises ``Unavailable``."""
        await self._run(self._operations.wait_until_ready(timeout))

    async def close(self) -> None:
        """Close the connections; running calls and later ones raise ``Cancelled``."""
        self._operations.closed = True
        self._closing.set()
        for watcher in self._watchers:
            watcher.cancel()
        for channel in list(self._channels.values()):
            await channel.close()

    async def __aenter__(self) -> AsyncGrpcTransport:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _channel(self, index: int, most_bytes: int) -> grpc.aio.Channel:
        """The channel to a replica for replies of so many bytes."""
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise InvalidRequest(
                "this client belongs to another event loop: make one in each"
            )
        self._loop = loop
        limit = reply_limit(most_bytes)
        channel = self._channels.get((index, limit))
        if channel is None:
            target = self._operations.targets[index]
            channel = open_channel(grpc.aio, target, self._operations.connection, limit)
            self._channels[index, limit] = channel
            if self._operations.compares_models:
                watcher = loop.create_task(self._watch(index, channel))
                self._watchers.add(watcher)
                watcher.add_done_callback(self._watchers.discard)
        return channel

    async def _watch(self, index: int, channel: grpc.aio.Channel) -> None:
        """Tell where a connection is lost."""
        state = channel.get_state()
        while state is not grpc.ChannelConnectivity.SHUTDOWN:
            await channel.wait_for_state_change(state)
            if state is grpc.ChannelConnectivity.READY:
                self._operations.connection_lost(index)
            state = channel.get_state()

    async def _run(self, operation: Operation[T]) -> T:
        """Carry out what the operation yields; this is where bytes reach the wire."""
        outcome: Outcome | None = None
        while True:
            try:
                step = operation.send(outcome)
            except StopIteration as stop:
                return stop.value
            if isinstance(step, Pause):
                outcome = None
                await self._pause(step.seconds)
                continue
            metadata = await self._metadata()
            if self._operations.closed:  # while the function was awaited
                raise self._operations.closed_error()
            stub = self._channel(step.target, step.most_bytes).unary_unary(step.method)
            try:
                data = await stub(step.payload, timeout=step.timeout, metadata=metadata)
                outcome = Outcome("OK", data=data)
            except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
                # A closed channel raises UsageError.
                if self._operations.closed:
                    raise self._operations.closed_error() from None
                if not isinstance(error, grpc.aio.AioRpcError):
                    raise
                outcome = outcome_of(error)
            except asyncio.CancelledError:
                if self._operations.closed and not _being_cancelled():
                    raise self._operations.closed_error() from None
                raise

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except asyncio.TimeoutError:
            return
        raise self._operations.closed_error()

    async def _metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        source = self._operations.connection.metadata
        if not callable(source):
            return tuple(source)
        pairs = source()
        if inspect.isawaitable(pairs):
            pairs = await pairs
        return self._checked(pairs)


def _being_cancelled() -> bool:
    """Whether the task itself is cancelled, not only the call that it awaits."""
    cancelling = getattr(asyncio.current_task(), "cancelling", None)  # Python 3.11
    return bool(cancelling and cancelling())

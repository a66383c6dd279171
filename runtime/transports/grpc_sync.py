"""The blocking gRPC transport; ``AsyncGrpcTransport`` is its asyncio twin.

Channels carry raw bytes: the codec makes and reads the messages. All policy (which
replica, whether to try again, what an error means) is in ``operations``.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import grpc

from ..codec import ModelMetadata
from ..errors import InvalidRequest
from .base import Call, Reply, Transport
from .grpc_base import GrpcBase, GrpcKeywords
from .grpc_channel import open_channel, outcome_of, reply_limit
from .status_mapping import Outcome
from .steps import Operation, Pause, TargetStatus

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

_SETTLED_SECONDS = 0.05  # until gRPC's thread waits
_CLOSE_SECONDS = 1.0
"""Calls end at once; what gRPC waits for besides, its own watch of the connection, has
not ended for some channels that were closed when they had just connected."""


class GrpcTransport(GrpcBase, Transport):
    """One model on one or several TensorFlow Serving servers.

    Safe to use from several threads. Nothing connects before the first call. gRPC does
    not survive a fork: make the transport in the process that uses it.

    Args:
        targets: addresses: ``HOST:PORT``, ``unix:PATH``, ``dns:///NAME:PORT``. Calls
            go to them in turn; each step may run on any.
        model: the name that the servers serve the model under.
        label: calls without a version go to the version that the servers have given
            this label, instead of the newest.
        identity: compares what the replicas serve, at first use and again whenever a
            connection was lost; None trusts their version numbers.
        options: the fields of ``connection.Connection``: TLS, metadata, retries …

    Raises:
        InvalidRequest: an address, option or TLS file is wrong.
    """

    def __init__(
        self,
        targets: str | Iterable[str],
        *,
        model: str,
        **options: Unpack[GrpcKeywords],
    ) -> None:
        super().__init__(targets, model=model, **options)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._channels: dict[tuple[int, int], grpc.Channel] = {}
        self._watches: dict[grpc.Channel, _Watch] = {}
        for index in range(len(self.targets)):
            self._channel(index, 0)  # reports wrong TLS files now

    def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        """Run one call within ``timeout`` seconds, on whichever replica answers.

        Raises:
            InvalidRequest: what is asked can't be sent, or would break a limit.
            Unavailable: no server answered within the retry times.
            DeadlineExceeded: ``timeout`` passed.
            VersionGone: no replica serves ``call.version``.
            IncompatibleModel: no such signature, or no TensorFlow Serving server.
            MalformedReply: replies don't decode.
            ServerError: any other refusal.
            Cancelled: the transport was closed.
        """
        return self._run(self._operations.predict(call, timeout))

    def metadata(
        self, *, version: int | None = None, timeout: float | None = None
    ) -> ModelMetadata:
        """The model's signatures, as a server lists them. Raises as ``call`` does."""
        return self._run(self._operations.metadata(version, timeout))

    def status(self, *, timeout: float | None = None) -> list[TargetStatus]:
        """What each server says of the model's versions; those down have ``error``."""
        return self._run(self._operations.status(timeout))

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Wait until a server has a version of the model AVAILABLE.

        Raises:
            Unavailable: none had within ``timeout`` seconds.
        """
        self._run(self._operations.wait_until_ready(timeout))

    def close(self) -> None:
        """Close the connections; running calls and later ones raise ``Cancelled``."""
        self._operations.closed = True
        self._closing.set()
        with self._lock:
            channels = list(self._channels.values())
            watches = list(self._watches.items())
        for channel, watch in watches:
            watch.end(channel)
        closing = [threading.Thread(target=c.close, daemon=True) for c in channels]
        for thread in closing:
            thread.start()
        deadline = time.monotonic() + _CLOSE_SECONDS
        for thread in closing:
            thread.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> GrpcTransport:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _run(self, operation: Operation[T]) -> T:
        """Carry out what the operation yields; this is where bytes reach the wire."""
        outcome: Outcome | None = None
        while True:
            try:
                step = operation.send(outcome)
            except StopIteration as stop:
                return stop.value
            if isinstance(step, Pause):
                outcome = None
                if self._closing.wait(step.seconds):
                    raise self._operations.closed_error()
                continue
            metadata = self._metadata()
            try:
                channel = self._channel(step.target, step.most_bytes)
                self._watch(step.target, channel)
                stub = channel.unary_unary(step.method)
                data = stub(step.payload, timeout=step.timeout, metadata=metadata)
                outcome = Outcome("OK", data=data)
            except (grpc.RpcError, ValueError) as error:
                # A closed channel raises ValueError.
                if self._operations.closed:
                    raise self._operations.closed_error() from None
                if not isinstance(error, grpc.RpcError):
                    raise
                outcome = outcome_of(error)

    def _channel(self, index: int, most_bytes: int) -> grpc.Channel:
        """The channel to a replica for replies of so many bytes."""
        limit = reply_limit(most_bytes)
        with self._lock:
            channel = self._channels.get((index, limit))
            if channel is None:
                if self._operations.closed:
                    raise self._operations.closed_error()
                target = self._operations.targets[index]
                channel = open_channel(grpc, target, self._operations.connection, limit)
                self._channels[index, limit] = channel
        return channel

    def _watch(self, index: int, channel: grpc.Channel) -> None:
        """From its first call on, tell where a connection is lost, if that matters."""
        if not self._operations.compares_models or channel in self._watches:
            return
        with self._lock:
            if channel not in self._watches and not self._operations.closed:
                lost = partial(self._operations.connection_lost, index)
                self._watches[channel] = _Watch(channel, lost)

    def _metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        source = self._operations.connection.metadata
        if not callable(source):
            return tuple(source)
        pairs = source()
        if inspect.isawaitable(pairs):
            raise InvalidRequest(
                "the metadata function returned an awaitable: "
                "only the asyncio client can wait for it"
            )
        return self._checked(pairs)


class _Watch:
    """Calls ``lost`` when a channel that was connected is not any more."""

    def __init__(self, channel: grpc.Channel, lost: Callable[[], None]) -> None:
        self._lost = lost
        self._ready = False
        self._begun = threading.Event()
        self._started = time.monotonic()
        channel.subscribe(self._note)

    def end(self, channel: grpc.Channel) -> None:
        """Before the channel is closed: gRPC's thread fails on a closed one, with a
        traceback, unless it waits already, which it begins after its first note."""
        self._begun.wait(1)
        time.sleep(max(0.0, self._started + _SETTLED_SECONDS - time.monotonic()))
        channel.unsubscribe(self._note)

    def _note(self, state: grpc.ChannelConnectivity) -> None:
        if self._ready:  # and something else now
            self._lost()
        self._ready = state is grpc.ChannelConnectivity.READY
        self._begun.set()

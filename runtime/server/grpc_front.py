"""The gRPC side of the server: messages are received on one event loop.

A call takes one of the worker threads only when its message is there as a whole, so
calls that are sent slowly, or half sent and left open, cost a coroutine each and hold
up nobody. A message that doesn't arrive in time ends its call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import grpc.aio

from ..grpc_options import LONG_MESSAGES
from .address import Address
from .compression import INFLATED_LIMIT, inflated, is_compressed
from .receptions import Receptions
from .serving_error import ServingError, as_serving_error, internal
from .settings import TlsOptions

Method = Callable[[bytes], bytes]
"""Request bytes to reply bytes; raises ``ServingError``."""

_OPTIONS = {
    **LONG_MESSAGES,
    "grpc.so_reuseport": 0,
    "grpc.per_message_decompression": 0,  # see compression.py
    "grpc.max_concurrent_streams": 4096,  # of one connection
    # gRPC cancels some of more than 1000 calls that begin at once; here each is
    # answered or refused, and a client knows what to do about that.
    "grpc.server.max_pending_requests": 100_000,
    "grpc.server.max_pending_requests_hard_limit": 200_000,
    # A caller that is frozen or gone, with a reply that waits for it, is noticed.
    "grpc.keepalive_time_ms": 60_000,
    "grpc.keepalive_timeout_ms": 20_000,
}
_SMALL_REPLY = 1 << 16  # bytes; what gRPC and the kernel take in any case


@dataclass(frozen=True)
class Limits:
    """How much the server takes on at a time.

    Attributes:
        threads: calls that run at the same time.
        waiting: calls received as a whole that may wait for a thread.
        held_bytes: what the requests of running and waiting calls may have together,
            and the replies that their callers have not read yet.
        receive_seconds: time that a message has to arrive.
        spare_bytes: of the machine's memory; where less is left, slow messages are
            given up (``receptions.py``).
    """

    threads: int = 64
    waiting: int = 1024
    held_bytes: int = 4 << 30
    receive_seconds: float = 120.0
    spare_bytes: int = 1 << 30


class Workers:
    """A bounded pool of threads; what it can't take is refused, not queued."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.threads, "optserve-call")
        self._lock = threading.Lock()
        self._calls = self._bytes = self._unread = self._largest = 0

    def submit(self, method: Method, data: bytes) -> Future[bytes]:
        """Start ``method`` in a thread as soon as one is free.

        Raises:
            ServingError: RESOURCE_EXHAUSTED, in TensorFlow Serving's words, which
                clients take for overload.
        """
        limits, size = self._limits, len(data)
        with self._lock:
            calls, held = self._calls + 1, self._bytes + self._unread + size
            too_many = calls > limits.threads + limits.waiting
            if too_many or size < held > limits.held_bytes:
                raise ServingError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted"
                )
            self._calls, self._bytes = calls, self._bytes + size
            # counted before it runs: what is refused took its memory all the same
            taken = INFLATED_LIMIT if is_compressed(data) else size
            self._largest = max(self._largest, taken)
        future = self._pool.submit(self._call, method, data)
        future.add_done_callback(lambda _: self._release(size))
        return future

    def largest_message(self) -> int:
        """Bytes of the largest message of those running now or ended since asked.

        As one, what is held now: no level of memory measured meanwhile is one to
        return to.
        """
        with self._lock:
            largest, self._largest = self._largest, 0
            return max(largest, self._bytes + self._unread)

    def unread(self, size: int) -> None:
        """A reply of so many bytes is on its way; a negative number: it has gone."""
        with self._lock:
            self._unread += size

    def close(self) -> None:
        """Take no more calls; those under way end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _call(self, method: Method, data: bytes) -> bytes:
        reply = method(inflated(data))
        with self._lock:
            self._largest = max(self._largest, len(reply))
        return reply

    def _release(self, size: int) -> None:
        with self._lock:
            self._calls -= 1
            self._bytes -= size


class GrpcFront:
    """A gRPC server for unary methods that work on bytes."""

    def __init__(
        self, methods: Mapping[str, Mapping[str, Method]], limits: Limits
    ) -> None:
        """Methods by service and name."""
        self.workers = Workers(limits)
        self._receptions = Receptions(
            seconds=limits.receive_seconds, spare_bytes=limits.spare_bytes
        )
        self._handlers = [
            grpc.method_handlers_generic_handler(
                service, {name: self._handler(method) for name, method in group.items()}
            )
            for service, group in methods.items()
        ]
        self._loop = asyncio.new_event_loop()
        self._stopped = threading.Event()
        self._stopping = threading.Lock()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="optserve-grpc", daemon=True
        )
        self._server: Any = None

    def start(self, address: Address, tls: TlsOptions | None) -> None:
        """Open the port and answer calls.

        Raises:
            OptserveError: the address can't be had, or the certificates are wrong.
        """
        self._thread.start()
        try:
            self._on_loop(self._start(address, tls))
        except BaseException:
            self._end()
            raise

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the server has stopped; False if ``timeout`` came first."""
        return self._stopped.wait(timeout)

    def stop(self, grace: float | None) -> None:
        """Refuse new calls and give those under way ``grace`` seconds."""
        with self._stopping:
            if not self._stopped.is_set():
                self._on_loop(self._server.stop(grace))
                self._end()

    def _end(self) -> None:
        self.workers.close()
        self._on_loop(_cancel_the_rest())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._stopped.set()

    def _on_loop(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self, address: Address, tls: TlsOptions | None) -> None:
        self._server = grpc.aio.server(
            handlers=self._handlers, options=list(_OPTIONS.items())
        )
        address.bind(self._server, tls)
        await self._server.start()
        self._watching = asyncio.create_task(self._receptions.watch())

    def _handler(self, method: Method) -> grpc.RpcMethodHandler:
        # On the wire a unary call is a stream of one message. Registered as a stream,
        # the handler starts before the message and can give up on it.
        async def handle(_: Any, context: grpc.aio.ServicerContext) -> bytes:
            return await self._answer(method, context)

        return grpc.stream_unary_rpc_method_handler(handle)

    async def _answer(self, method: Method, context: grpc.aio.ServicerContext) -> bytes:
        try:
            reply = await self._call(method, await self._receive(context))
            self._note_unread(len(reply), context)
            return reply
        except ServingError as refusal:
            # Without the exception: it has frames that hold the request, and would be
            # held by this one in turn, until some day the garbage is collected.
            code, details = refusal.code, refusal.details
        return await _abort(context, code, details)

    async def _call(self, method: Method, data: bytes) -> bytes:
        try:
            return await asyncio.wrap_future(self.workers.submit(method, data))
        except Exception as error:
            raise as_serving_error(error) from None

    def _note_unread(self, size: int, context: grpc.aio.ServicerContext) -> None:
        """Count a reply until its caller has it: some callers never read."""
        if size > _SMALL_REPLY:
            self.workers.unread(size)
            gone: Any = lambda _: self.workers.unread(-size)  # noqa: E731
            context.add_done_callback(gone)

    async def _receive(self, context: grpc.aio.ServicerContext) -> bytes:
        data = await self._receptions.whole(context.read())
        if not isinstance(data, bytes):  # grpc.aio.EOF
            if context.cancelled():
                raise asyncio.CancelledError
            raise internal("the call has no message")
        return data


async def _cancel_the_rest() -> None:
    """End what still waits for a message or a thread."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


async def _abort(
    context: grpc.aio.ServicerContext, code: grpc.StatusCode, details: str
) -> NoReturn:
    await context.abort(code, details)
    raise AssertionError("abort raises")

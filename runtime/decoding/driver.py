"""Runs the decode loop's tasks on a transport: blocking, or asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar

from ..errors import DeadlineExceeded, OptserveError
from ..results import Chunk
from ..transports.base import AsyncTransport, Call, Reply, Transport
from .task import CallRequest, Task, Wait

T = TypeVar("T")
Resume = Callable[[], Any]


class ObservedCall:
    """A call under way; ``reply`` is None until it has come."""

    reply: Reply | None = None


Observe = Callable[[Call], AbstractContextManager[ObservedCall]]
"""Makes a context around each call, for spans and log lines (``telemetry.py``)."""


@contextmanager
def unobserved(call: Call) -> Generator[ObservedCall, None, None]:
    """Observe nothing."""
    yield ObservedCall()


def run(task: Task[T], transport: Transport, observe: Observe = unobserved) -> T:
    """The task's result; its chunks are dropped."""
    chunks = drive(task, transport, observe)
    while True:
        try:
            next(chunks)
        except StopIteration as stop:
            return stop.value


def drive(
    task: Task[T], transport: Transport, observe: Observe = unobserved
) -> Generator[Chunk, None, T]:
    """Answer the task's calls; yields its chunks and returns its result."""
    resume: Resume = partial(next, task)
    try:
        while True:
            item = resume()
            if isinstance(item, Chunk):
                yield item
                resume = partial(next, task)
                continue
            if isinstance(item, Wait):
                resume = partial(task.send, _waited(item))
                continue
            try:
                timeout = _time_left(item)
                with observe(item.call) as observed:
                    reply = transport.call(item.call, timeout=timeout)
                    observed.reply = reply
                resume = partial(task.send, reply)
            except OptserveError as error:
                resume = partial(task.throw, error)
    except StopIteration as stop:
        return stop.value
    finally:
        task.close()


async def run_async(
    task: Task[T], transport: AsyncTransport, observe: Observe = unobserved
) -> T:
    """``run`` for asyncio."""
    results: list[T] = []
    async for _ in drive_async(task, transport, observe, results.append):
        pass
    return results[0]


async def drive_async(
    task: Task[T],
    transport: AsyncTransport,
    observe: Observe = unobserved,
    give_result: Callable[[T], None] = lambda _: None,
) -> AsyncGenerator[Chunk, None]:
    """``drive`` for asyncio, whose generators return nothing: see ``give_result``."""
    resume: Resume = partial(next, task)
    try:
        while True:
            try:
                item = resume()
            except StopIteration as stop:
                give_result(stop.value)
                return
            if isinstance(item, Chunk):
                yield item
                resume = partial(next, task)
                continue
            if isinstance(item, Wait):
                resume = partial(task.send, await _waited_async(item))
                continue
            try:
                timeout = _time_left(item)
                with observe(item.call) as observed:
                    reply = await transport.call(item.call, timeout=timeout)
                    observed.reply = reply
                resume = partial(task.send, reply)
            except OptserveError as error:
                resume = partial(task.throw, error)
    finally:
        task.close()


def _waited(item: Wait) -> Any:
    """The future's result, None once the deadline has passed."""
    try:
        return item.future.result(_until(item.deadline))
    except FutureTimeout:
        return None


async def _waited_async(item: Wait) -> Any:
    """``_waited`` for asyncio."""
    future = asyncio.wrap_future(item.future)
    done, _ = await asyncio.wait([future], timeout=_until(item.deadline))
    return future.result() if done else None


def _until(deadline: float | None) -> float | None:
    """Seconds until then, None for ever."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _time_left(request: CallRequest) -> float | None:
    """Seconds until the request's deadline, None without one.

    Raises:
        DeadlineExceeded: it has passed.
    """
    left = _until(request.deadline)
    if left == 0:
        raise DeadlineExceeded(
            "the deadline passed between two calls: allow more time or ask for "
            "fewer tokens"
        )
    return left

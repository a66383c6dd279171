"""Runs the decode loop's tasks on a transport: blocking, or asyncio."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar

from ..errors import DeadlineExceeded, OptserveError
from ..results import Chunk
from ..transports.base import AsyncTransport, Call, Reply, Transport
from .loop import CallRequest, Task

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


def _time_left(request: CallRequest) -> float | None:
    """Seconds until the request's deadline, None without one."""
    if request.deadline is None:
        return None
    left = request.deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded(
            "the deadline passed between two calls: allow more time or ask for "
            "fewer tokens"
        )
    return left

"""Runs the decode loop's generators on a transport: blocking, or asyncio."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from typing import Any, TypeVar

from ..errors import DeadlineExceeded, OptserveError
from ..results import Piece
from ..transports.base import AsyncTransport, Reply, Transport
from .loop import Ask, Work

T = TypeVar("T")
Resume = Callable[[], Any]


def drive(work: Work[T], transport: Transport) -> Generator[Piece, None, T]:
    """Answer the calls of ``work``; yields its pieces and returns its value."""
    resume: Resume = partial(next, work)
    try:
        while True:
            item = resume()
            if isinstance(item, Ask):
                resume = _call(item, work, transport)
            else:
                yield item
                resume = partial(next, work)
    except StopIteration as stop:
        return stop.value
    finally:
        work.close()


def run(work: Work[T], transport: Transport) -> T:
    """The value of ``work``, whose pieces nobody wants."""
    pieces = drive(work, transport)
    while True:
        try:
            next(pieces)
        except StopIteration as stop:
            return stop.value


def _call(ask: Ask, work: Work[T], transport: Transport) -> Resume:
    try:
        reply = transport.call(ask.call, timeout=_left(ask))
    except OptserveError as error:
        return partial(work.throw, error)
    return partial(work.send, reply)


async def drive_async(
    work: Work[T], transport: AsyncTransport
) -> AsyncGenerator[Piece, None]:
    """``drive`` for asyncio; the value of ``work`` is dropped."""
    resume: Resume = partial(next, work)
    try:
        while True:
            try:
                item = resume()
            except StopIteration:
                return
            if isinstance(item, Ask):
                resume = await _call_async(item, work, transport)
            else:
                yield item
                resume = partial(next, work)
    finally:
        work.close()


async def run_async(work: Work[T], transport: AsyncTransport) -> T:
    """``run`` for asyncio."""
    resume: Resume = partial(next, work)
    try:
        while True:
            try:
                item = resume()
            except StopIteration as stop:
                return stop.value
            if isinstance(item, Ask):
                resume = await _call_async(item, work, transport)
            else:
                resume = partial(next, work)
    finally:
        work.close()


async def _call_async(ask: Ask, work: Work[T], transport: AsyncTransport) -> Resume:
    try:
        reply: Reply = await transport.call(ask.call, timeout=_left(ask))
    except OptserveError as error:
        return partial(work.throw, error)
    return partial(work.send, reply)


def _left(ask: Ask) -> float | None:
    if ask.deadline is None:
        return None
    left = ask.deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded(
            "the deadline passed between two calls: allow more time or ask for "
            "fewer tokens"
        )
    return left

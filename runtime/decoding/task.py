"""What the decode loop's generators exchange with whoever runs them (``driver.py``).

A ``Task`` is a generator. It yields ``CallRequest``s (each answered with a ``Reply``,
or by throwing the error that came instead), ``Wait``s (answered with the result) and
``Chunk``s, and returns its result.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from ..results import Chunk
from ..transports.base import Call, Reply


@dataclass(frozen=True)
class CallRequest:
    """A call to run, and the time (``time.monotonic``) by which it must be done."""

    call: Call
    deadline: float | None = None


@dataclass(frozen=True)
class Wait:
    """Something that another thread or task brings about: a file read, a slot free.

    Answered with its result, or with None once the deadline has passed.
    """

    future: Future[Any]
    deadline: float | None = None


T = TypeVar("T")
Task = Generator["CallRequest | Wait | Chunk", Any, T]


def with_deadline(calls: Generator[Call, Reply, T], deadline: float | None) -> Task[T]:
    """The calls as ``CallRequest``s that share one deadline."""
    try:
        call = next(calls)
        while True:
            try:
                reply = yield CallRequest(call, deadline)
            except Exception as error:
                call = calls.throw(error)
            else:
                call = calls.send(reply)
    except StopIteration as stop:
        return stop.value

"""A request's body, bounded in bytes and in time, and its caller's going away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from .api_errors import ApiError

T = TypeVar("T")


async def receive_body(request: Request, *, limit: int, seconds: float) -> bytes:
    """The whole body.

    Args:
        request: of which nothing has been read.
        limit: bytes.
        seconds: for its arrival.

    Raises:
        ApiError: 413 beyond the limit, 408 when it takes too long.
        ClientDisconnect: the caller went away.
    """
    try:
        return await asyncio.wait_for(_read(request, limit), seconds)
    except asyncio.TimeoutError:
        raise ApiError(408, f"the body did not arrive within {seconds} s") from None


async def _read(request: Request, limit: int) -> bytes:
    length = request.headers.get("content-length", "")
    received = bytearray()
    if not length.isdecimal() or (len(length) < 19 and int(length) <= limit):
        async for part in request.stream():
            received += part
            if len(received) > limit:
                break
        else:
            return bytes(received)
    raise ApiError(413, f"the body is longer than {limit} bytes: send less at once")


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns; ends it when the caller goes away.

    Args:
        request: whose body has been read.
        work: cancelled if it isn't waited for any more.

    Raises:
        ClientDisconnect: the caller went away first.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

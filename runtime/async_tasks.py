"""Several asyncio tasks at once, and sources of either kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def enumerate_any(
    items: Iterable[T] | AsyncIterable[T],
) -> AsyncIterator[tuple[int, T]]:
    """``enumerate`` of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        i = 0
        async for item in items:
            yield i, item
            i += 1
    else:
        for pair in enumerate(items):
            yield pair


async def all_results(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The values in order; the first failure cancels the others and is raised."""
    tasks = [asyncio.ensure_future(one) for one in coroutines]
    try:
        if tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        return [task.result() for task in tasks]
    finally:
        await cancel_all(tasks)


async def cancel_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """End those that run; of all, take the failures that nobody else looks at."""
    ended = list(tasks)
    for task in ended:
        task.cancel()
    await asyncio.gather(*ended, return_exceptions=True)

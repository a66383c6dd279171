"""Continuous batching in the client: unrelated generations share their calls.

Rows join and leave at call borders. Prompts and decode steps go in calls of their own,
side by side, so that a new caller's first token doesn't wait for others' next ones:
``batch_policy.py`` says who goes next, with whom, and for how many tokens.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence

from ..codec import ModelMetadata
from ..errors import Cancelled, DeadlineExceeded, ServerError, VersionGone
from .base import AsyncTransport, Call, Reply
from .batch_policy import (
    Batch,
    Limits,
    Pace,
    Waiting,
    next_batch,
)
from .joining import joined, shares

_PASSES = 20  # of the event loop, in which callers that got a reply call again


class DynamicBatcher(AsyncTransport):
    """An ``AsyncTransport`` that joins calls that wait.

    Args:
        transport: what carries the calls; closed with this.
        limit: most rows of a joined call, given one of its calls.
        size: B of a joined call, given one of its calls and the rows of all.
        in_flight: calls under way at a time. Half of them, one at least, may be decode
            steps, so that rows meet in few large calls rather than in many small ones.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        *,
        limit: Callable[[Call], int],
        size: Callable[[Call, int], int],
        in_flight: int = 2,
    ) -> None:
        self._transport = transport
        self._size = size
        addresses = max(1, len(transport.targets))
        self._limits = Limits(limit, size, in_flight, addresses)
        self._waiting: list[Waiting] = []
        self._running: dict[asyncio.Task[None], Batch] = {}
        self._arrivals = itertools.count()
        self._scheduled = False
        self._closed = False
        self._returning = 0  # callers that were just answered and may call again
        self._passes = 0
        self._pace = Pace()

    async def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        """Run one call, possibly with others."""
        if self._closed:
            raise Cancelled("this client is closed: make another one")
        if "input_ids" not in call.inputs:
            return await self._transport.call(call, timeout=timeout)
        loop = asyncio.get_running_loop()
        waiting = Waiting(
            call,
            deadline=None if timeout is None else time.monotonic() + timeout,
            answer=loop.create_future(),
            arrival=next(self._arrivals),
        )
        self._waiting.append(waiting)
        self._returning, self._passes = max(self._returning - 1, 0), _PASSES
        self._schedule()
        try:
            return await asyncio.wait_for(waiting.answer, timeout)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(
                f"the deadline passed, {timeout:.3f} s after the call was made: allow "
                "more time or send fewer generations at once"
            ) from None

    @property
    def targets(self) -> tuple[str, ...]:
        """The transport's."""
        return self._transport.targets

    async def metadata(
        self, *, version: int | None = None, timeout: float | None = None
    ) -> ModelMetadata | None:
        """The transport's."""
        return await self._transport.metadata(version=version, timeout=timeout)

    async def wait_until_ready(self, timeout: float | None = None) -> None:
        """The transport's."""
        await self._transport.wait_until_ready(timeout)

    async def close(self) -> None:
        """Cancel what is under way and close the transport."""
        self._closed = True
        for waiting in self._waiting:
            if not waiting.answer.done():
                waiting.answer.set_exception(Cancelled("the client was closed"))
        self._waiting.clear()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._transport.close()

    def _schedule(self) -> None:
        """Look at the queue once all tasks that are ready now have run."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        if self._closed:
            return
        if self._returning and self._passes:
            self._passes -= 1
            self._schedule()
            return
        self._returning = 0
        self._waiting = [w for w in self._waiting if not w.answer.done()]
        running = list(self._running.values())
        while batch := next_batch(self._waiting, running, self._limits, self._pace):
            gone = set(map(id, batch.members))
            self._waiting = [w for w in self._waiting if id(w) not in gone]
            self._start(batch)
            running.append(batch)

    def _start(self, batch: Batch) -> None:
        task = asyncio.get_running_loop().create_task(self._run(batch))
        self._running[task] = batch
        task.add_done_callback(self._ended)
        for waiting in batch.members:
            waiting.answer.add_done_callback(
                lambda _: _cancel_unwanted(task, batch.members)
            )

    def _ended(self, task: asyncio.Task[None]) -> None:
        batch = self._running.pop(task)
        self._returning, self._passes = len(batch.members), _PASSES
        self._schedule()

    async def _run(self, batch: Batch) -> None:
        """One call for the batch; after a refusal each of its calls alone."""
        members = batch.members
        calls = [waiting.call for waiting in members]
        try:
            rows = self._size(calls[0], sum(call.rows for call in calls))
            call = joined(calls, rows, steps=batch.steps)
            reply = await self._transport.call(call, timeout=_time_left(members))
            if batch.kind == "decode" and "count" in reply.outputs:
                made = int(reply.outputs["count"].max(initial=1))
                self._pace.ended(batch, reply.seconds, made)
            answers = shares(reply, calls, rows)
        except VersionGone as error:
            _fail(members, error)
        except ServerError as error:
            if len(members) == 1:
                _fail(members, error)
            else:
                for waiting in members:
                    await self._run(Batch((waiting,), batch.kind, batch.steps))
        except asyncio.CancelledError:
            _fail(members, Cancelled("the client was closed"))
            raise
        except Exception as error:
            _fail(members, error)
        else:
            for waiting, answer in zip(members, answers, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(answer)


def _time_left(members: Sequence[Waiting]) -> float | None:
    """Seconds until the last of them is not waited for any more."""
    ends = [w.deadline for w in members if w.deadline is not None]
    return max(ends) - time.monotonic() if len(ends) == len(members) else None


def _fail(members: Sequence[Waiting], error: Exception) -> None:
    for waiting in members:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)


def _cancel_unwanted(task: asyncio.Task[None], members: Sequence[Waiting]) -> None:
    """Stop a call that nobody waits for any more."""
    if all(waiting.answer.cancelled() for waiting in members):
        task.cancel()

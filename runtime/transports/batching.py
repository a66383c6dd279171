"""Dynamic batching in the client: ready calls of unrelated generations become one.

Every tensor of the contract has rows as axis 0 and lengths instead of masks, so that
calls of one signature can be joined row by row whatever their other sizes are.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..codec import RowBlocks, Tensor
from ..contract import MESSAGE_LIMIT
from ..errors import (
    Cancelled,
    DeadlineExceeded,
    MalformedReply,
    ServerError,
    VersionGone,
)
from .base import AsyncTransport, Call, Described, Expectation, Reply

_FILL = {"history": -1, "stop_ids": -1, "bias_ids": -1}
_NO_VERSION = -1


def joined(calls: Sequence[Call], rows: int) -> Call:
    """One call with the rows of all, and idle ones after them up to ``rows``."""
    padding = rows - sum(call.rows for call in calls)
    stateful = calls[0].signature.startswith("session_")
    inputs: dict[str, Tensor] = {}
    for name in calls[0].inputs:
        tensors = [call.inputs[name] for call in calls]
        if name == "cache":
            inputs[name] = _join_blocks(tensors, padding)
            continue
        arrays = [np.asarray(tensor) for tensor in tensors]
        if padding:
            idle = arrays[0][:1]
            # An idle row of a session writes what the row that it repeats writes.
            if name in ("cache_length", "max_new_tokens") and not stateful:
                idle = np.zeros_like(idle)
            arrays += [idle] * padding
        inputs[name] = _join(arrays, _FILL.get(name, 0))
    parts = tuple((call.rows, call.expected) for call in calls)
    return replace(calls[0], inputs=inputs, expected=_JoinedExpectation(parts, rows))


@dataclass(frozen=True)
class _JoinedExpectation:
    """What the reply to a joined call must be like: each call's part as that says."""

    parts: tuple[tuple[int, Expectation | None], ...]
    rows: int

    @property
    def version(self) -> int | None:
        """The version that all parts are about; one that none is about otherwise."""
        versions = {part.version if part else _NO_VERSION for _, part in self.parts}
        return versions.pop() if len(versions) == 1 else _NO_VERSION

    @property
    def most_bytes(self) -> int:
        """As many for each row as the part with the largest rows."""
        per_row = [-(-part.most_bytes // n) for n, part in self.parts if part]
        whole = len(per_row) == len(self.parts)
        return min(max(per_row) * self.rows, MESSAGE_LIMIT) if whole else MESSAGE_LIMIT

    def of(self, model: Described) -> _JoinedExpectation:
        """Each part of another model."""
        parts = tuple((n, part and part.of(model)) for n, part in self.parts)
        return replace(self, parts=parts)

    def check(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Raise ``MalformedReply`` where a part's call would."""
        counts = [rows for rows, _ in self.parts]
        slices = _sliced(outputs, counts, self.rows)
        for (_, part), own in zip(self.parts, slices, strict=True):
            if part:
                part.check(own)


def _sliced(
    outputs: Mapping[str, np.ndarray], counts: Sequence[int], rows: int
) -> list[dict[str, np.ndarray]]:
    """A joined call's outputs for each of its calls, as views.

    Raises:
        MalformedReply: an output without these rows.
    """
    for name, array in outputs.items():
        if not array.ndim or len(array) != rows:
            raise MalformedReply(
                f"output {name!r} has shape {list(array.shape)}, expected {rows} rows"
            )
    ends = list(itertools.accumulate(counts))
    return [
        {name: array[end - count : end] for name, array in outputs.items()}
        for count, end in zip(counts, ends, strict=True)
    ]


def _join(arrays: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """Along axis 0, with ``fill`` after what is shorter along axis 1."""
    if arrays[0].ndim < 2 or len({array.shape[1] for array in arrays}) == 1:
        return np.concatenate(arrays)
    width = max(array.shape[1] for array in arrays)
    out = np.full((sum(map(len, arrays)), width), fill, arrays[0].dtype)
    start = 0
    for array in arrays:
        out[start : start + len(array), : array.shape[1]] = array
        start += len(array)
    return out


def _join_blocks(caches: Sequence[Tensor], padding: int) -> RowBlocks:
    rows: list[tuple[np.ndarray, ...]] = []
    for cache in caches:
        if isinstance(cache, RowBlocks):
            rows += cache.rows
        else:
            rows += [(row,) for row in cache]
    rows += [(rows[0][0][:0],)] * padding
    return RowBlocks(tuple(rows), max(cache.shape[1] for cache in caches))


def shares(reply: Reply, counts: Sequence[int], rows: int) -> list[Reply]:
    """A joined call's reply, one for each call; outputs are views."""
    total = sum(counts)
    return [
        replace(
            reply,
            outputs=outputs,
            bytes_sent=reply.bytes_sent * count // total,
            bytes_received=reply.bytes_received * count // total,
        )
        for count, outputs in zip(
            counts, _sliced(reply.outputs, counts, rows), strict=True
        )
    ]


@dataclass(eq=False)
class _Waiting:
    call: Call
    deadline: float | None
    answer: asyncio.Future[Reply]
    arrival: int


class DynamicBatcher(AsyncTransport):
    """An ``AsyncTransport`` that joins what waits while other calls are under way.

    A call leaves at once while fewer than ``in_flight`` are under way; else it waits,
    and everything that waits with the same signature, version and number of new tokens
    leaves together. So a lone stream loses nothing, and many share the work.

    Args:
        transport: what carries the calls; closed with this.
        limit: most rows of a joined call, given one of its calls.
        size: B of a joined call, given one of its calls and the rows of all.
        in_flight: calls under way at a time.
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
        self._limit = limit
        self._size = size
        self._in_flight = in_flight
        self._queues: dict[Hashable, deque[_Waiting]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._arrivals = itertools.count()
        self._scheduled = False
        self._closed = False

    async def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        """Run one call, possibly with others."""
        if self._closed:
            raise Cancelled("this client is closed: make another one")
        if "input_ids" not in call.inputs:
            return await self._transport.call(call, timeout=timeout)
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = _Waiting(call, deadline, loop.create_future(), next(self._arrivals))
        key = (
            call.signature,
            call.version,
            call.model_id,
            call.replicas,
            call.outputs,
            call.inputs["input_ids"].shape[1],
        )
        self._queues.setdefault(key, deque()).append(waiting)
        self._schedule(loop)
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

    async def close(self) -> None:
        """Cancel what is under way and close the transport."""
        self._closed = True
        for waiting in (w for queue in self._queues.values() for w in queue):
            if not waiting.answer.done():
                waiting.answer.set_exception(Cancelled("the client was closed"))
        self._queues.clear()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._transport.close()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at the queues once all tasks that are ready now have run."""
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        while len(self._running) < self._in_flight and (batch := self._next()):
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)
            for waiting in batch:
                waiting.answer.add_done_callback(
                    lambda _, task=task, batch=batch: _cancel_unwanted(task, batch)
                )

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not self._closed:
            self._dispatch()

    def _next(self) -> list[_Waiting]:
        """What waits longest and all that fits with it."""
        for key, queue in list(self._queues.items()):
            alive = deque(w for w in queue if not w.answer.done())
            self._queues[key] = alive
            if not alive:
                del self._queues[key]
        if not self._queues:
            return []
        queue = min(self._queues.values(), key=lambda queue: queue[0].arrival)
        batch = [queue.popleft()]
        rows = batch[0].call.rows
        while queue:
            rows += queue[0].call.rows
            if rows > min(self._limit(w.call) for w in (*batch, queue[0])):
                break
            batch.append(queue.popleft())
        return batch

    async def _run(self, batch: list[_Waiting]) -> None:
        """One call for the batch; after a refusal each of its calls alone."""
        deadlines = [w.deadline for w in batch]
        ends = [d for d in deadlines if d is not None]
        timeout = max(ends) - time.monotonic() if len(ends) == len(deadlines) else None
        try:
            counts = [w.call.rows for w in batch]
            size = self._size(batch[0].call, sum(counts))
            call = joined([w.call for w in batch], size)
            reply = await self._transport.call(call, timeout=timeout)
            answers: list[Reply] = shares(reply, counts, size)
        except VersionGone as error:
            _fail(batch, error)
        except ServerError as error:
            if len(batch) == 1:
                _fail(batch, error)
            else:
                for waiting in batch:
                    await self._run([waiting])
        except asyncio.CancelledError:
            _fail(batch, Cancelled("the client was closed"))
            raise
        except Exception as error:
            _fail(batch, error)
        else:
            for waiting, answer in zip(batch, answers, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(answer)


def _fail(batch: Sequence[_Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)


def _cancel_unwanted(task: asyncio.Task[None], batch: Sequence[_Waiting]) -> None:
    """Stop a call that nobody waits for any more."""
    if all(waiting.answer.cancelled() for waiting in batch):
        task.cancel()

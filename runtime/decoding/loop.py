"""The decode loop: yields calls, is sent replies, yields results. No input or output.

Drivers (``driver.py``) run the same generators on a blocking or an asyncio transport.
An item is an ``Ask`` (to be answered with a ``Reply``, or by throwing the error that
came instead) or a ``Piece``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from ..errors import IncompatibleModel, VersionGone
from ..results import Piece
from ..transports.base import Call, Reply
from .sequence import Row
from .served_model import Catalog
from .steps import Step, apply, distinct_counters, lead_version, plan

_MOST_REBUILDS = 20


@dataclass(frozen=True)
class Ask:
    """A call to run, and the moment (``time.monotonic``) by which it must be done."""

    call: Call
    deadline: float | None = None


T = TypeVar("T")
Work = Generator["Ask | Piece", Reply, T]


def generate_rows(source: Iterator[Row], catalog: Catalog, capacity: int) -> Work[None]:
    """Generate all rows of ``source``, up to ``capacity`` of them at a time.

    A row that ends makes room for the next, so the source is read lazily.
    """
    active: list[Row] = []
    while True:
        active += islice(source, capacity - len(active))
        if not active:
            return
        cancelled = [row for row in active if row.end_if_cancelled()]
        if not cancelled:
            step = plan(active, catalog.of(lead_version(active)))
            outcome = yield from run_step(step, catalog)
            for row, logits in outcome:
                if logits is not None:
                    row.choose(logits)
                if row.generated and not step.partial:
                    yield row.piece()
        for row in cancelled:
            yield row.piece()
        active = [row for row in active if row.finish_reason is None]


def run_step(step: Step, catalog: Catalog) -> Work[list[tuple[Row, np.ndarray | None]]]:
    """One call and what it gives its rows; nothing where the version is another now.

    If a pinned version is gone, the rows have dropped their caches, so that the next
    steps build them again from the tokens on the version served now. If a newer one
    lacks the signature, the next steps are planned for it.
    """
    planned_for = catalog.current.version
    try:
        reply = yield Ask(step.call, step.deadline)
        if reply.version not in catalog.versions:
            yield from asked(catalog.learn(reply.version), step.deadline)
    except VersionGone:
        if max(row.counters.rebuilds for row in step.rows) >= _MOST_REBUILDS:
            raise
        for row in step.rows:
            row.forget()
        for counters in distinct_counters(step.rows):
            counters.rebuilds += 1
        yield from asked(catalog.learn(), step.deadline)
        return []
    except IncompatibleModel:
        if step.call.version is not None:
            raise
        if catalog.current.version == planned_for:
            yield from asked(catalog.learn(), step.deadline)
        if catalog.current.version == planned_for:
            raise
        return []
    return apply(step, reply, catalog.of(reply.version))


def feed(
    rows: Sequence[Row], catalog: Catalog, *, keep: int = 0
) -> Work[list[np.ndarray]]:
    """Feed all pending tokens but the last ``keep`` of each row.

    Returns:
        The raw logits ``[V]`` for each row's next token, in order; none with ``keep``.
    """
    logits: dict[int, np.ndarray] = {}
    while waiting := [
        row
        for row in rows
        if row.pending > keep or (not keep and id(row) not in logits)
    ]:
        model = catalog.of(lead_version(waiting))
        outcome = yield from run_step(plan(waiting, model, keep=keep), catalog)
        for row, found in outcome:
            if found is not None:
                logits[id(row)] = found
    return [] if keep else [logits[id(row)] for row in rows]


def generate_samples(
    rows: Sequence[Row], catalog: Catalog, capacity: int
) -> Work[None]:
    """Generate several continuations of one prompt, whose cache is built once."""
    first = rows[0]
    if first.pending > 1:
        yield from feed([first], catalog, keep=1)
    if first.cache is not None:
        for row in rows[1:]:
            row.cache, row.version = first.cache.fork(), first.version
    yield from generate_rows(iter(rows), catalog, capacity)


def asked(work: Generator[Call, Reply, T], deadline: float | None) -> Work[T]:
    """Calls of ``work`` as ``Ask``s of one deadline."""
    try:
        call = next(work)
        while True:
            try:
                reply = yield Ask(call, deadline)
            except Exception as error:
                call = work.throw(error)
            else:
                call = work.send(reply)
    except StopIteration as stop:
        return stop.value

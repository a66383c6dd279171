"""The decode loop: yields calls, is sent replies, yields chunks. No input or output.

A ``Task`` is a generator. It yields ``CallRequest``s (each answered with a ``Reply``,
or by throwing the error that came instead) and ``Chunk``s, and returns its result.
``driver.py`` runs the same tasks on a blocking or an asyncio transport.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from collections.abc import Sequence as GenericSequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import numpy as np

from ..errors import IncompatibleModel, MalformedReply, VersionGone
from ..results import Chunk
from ..transports.base import Call, Reply
from .expected_reply import ExpectedReply
from .model_versions import ModelVersions
from .replies import apply
from .scheduler import Step, distinct_counters, lead_version, plan
from .sequence import Sequence
from .served_model import ServedModel

_MOST_REBUILDS = 20


@dataclass(frozen=True)
class CallRequest:
    """A call to run, and the time (``time.monotonic``) by which it must be done."""

    call: Call
    deadline: float | None = None


T = TypeVar("T")
Task = Generator["CallRequest | Chunk", Reply, T]


def generate_sequences(
    source: Iterator[Sequence], versions: ModelVersions, capacity: int
) -> Task[None]:
    """Generate all sequences of ``source``, up to ``capacity`` of them at a time.

    One that ends makes room for the next, so the source is read lazily.
    """
    active: list[Sequence] = []
    while True:
        active += islice(source, capacity - len(active))
        if not active:
            return
        cancelled = [sequence for sequence in active if sequence.end_if_cancelled()]
        if not cancelled:
            step = plan(active, versions.of(lead_version(active)))
            outcome = yield from run_step(step, versions)
            for sequence, logits in outcome:
                if logits is not None:
                    sequence.choose(logits)
                if sequence.generated and not step.partial:
                    yield sequence.chunk()
        for sequence in cancelled:
            yield sequence.chunk()
        active = [sequence for sequence in active if sequence.finish_reason is None]


def run_step(
    step: Step, versions: ModelVersions
) -> Task[list[tuple[Sequence, np.ndarray | None]]]:
    """One call and what it gives its sequences; nothing if the version has changed.

    If a pinned version is gone, the sequences have dropped their caches, so that the
    next steps build them again from the tokens on the version served now. If a newer
    one lacks the signature, the next steps are planned for it.
    """
    planned_for = versions.current.version
    try:
        reply = yield CallRequest(step.call, step.deadline)
        model = yield from answering_model(step.call, reply, versions, step.deadline)
    except VersionGone:
        if max(s.counters.rebuilds for s in step.sequences) >= _MOST_REBUILDS:
            raise
        for sequence in step.sequences:
            sequence.forget()
        for counters in distinct_counters(step.sequences):
            counters.rebuilds += 1
        yield from with_deadline(versions.learn(), step.deadline)
        return []
    except (IncompatibleModel, MalformedReply):
        # A newer version may lack the signature, or have another cache.
        if step.call.version is not None:
            raise
        if versions.current.version == planned_for:
            yield from with_deadline(versions.learn(), step.deadline)
        if versions.current.version == planned_for:
            raise
        return []
    return apply(step, reply, model)


def answering_model(
    call: Call, reply: Reply, versions: ModelVersions, deadline: float | None
) -> Task[ServedModel]:
    """The model that sent a reply, which is compared with what it should be like.

    Transports have compared it where the version was the expected one.

    Raises:
        MalformedReply: another reply; the message names who sent it.
    """
    if reply.version not in versions.known:
        yield from with_deadline(versions.learn(reply.version), deadline)
    model = versions.of(reply.version)
    if not reply.checked and isinstance(call.expected, ExpectedReply):
        try:
            replace(call.expected, model=model).check(reply.outputs)
        except MalformedReply as error:
            sender = reply.target or "the model"
            raise MalformedReply(
                f"{sender} sent a reply that makes no sense ({error})"
            ) from None
    return model


def feed(
    sequences: GenericSequence[Sequence], versions: ModelVersions, *, keep: int = 0
) -> Task[list[np.ndarray]]:
    """Feed all pending tokens but the last ``keep`` of each sequence.

    Returns:
        The raw logits ``[V]`` for each one's next token, in order; none with ``keep``.
    """
    logits: dict[int, np.ndarray] = {}
    while waiting := [
        sequence
        for sequence in sequences
        if sequence.pending > keep or (not keep and id(sequence) not in logits)
    ]:
        model = versions.of(lead_version(waiting))
        outcome = yield from run_step(plan(waiting, model, keep=keep), versions)
        logits |= {id(sequence): own for sequence, own in outcome if own is not None}
    return [] if keep else [logits[id(sequence)] for sequence in sequences]


def generate_samples(
    sequences: GenericSequence[Sequence], versions: ModelVersions, capacity: int
) -> Task[None]:
    """Generate several continuations of one prompt, whose cache is built once."""
    first = sequences[0]
    if first.pending > 1:
        yield from feed([first], versions, keep=1)
    if first.cache is not None:
        for sequence in sequences[1:]:
            sequence.cache, sequence.version = first.cache.fork(), first.version
            sequence.model_id = first.model_id
    yield from generate_sequences(iter(sequences), versions, capacity)


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

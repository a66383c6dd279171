"""The decode loop: yields calls, is sent replies, yields chunks. No input or output.

``driver.py`` runs the same tasks on a blocking or an asyncio transport.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as GenericSequence
from itertools import islice

import numpy as np

from ..errors import (
    IncompatibleModel,
    MalformedReply,
    ServerError,
    Unavailable,
    VersionGone,
)
from ..transports.base import Reply
from . import sessions
from .model_versions import ModelVersions, answering_model
from .prefix_reuse import remember, reuse
from .replies import apply
from .scheduler import Step, distinct_counters, lead_version, plan
from .sequence import Sequence
from .served_model import ServedModel
from .task import CallRequest, Task, with_deadline

_MOST_REBUILDS = 20


def generate_sequences(
    source: Iterator[Sequence], versions: ModelVersions, capacity: int
) -> Task[None]:
    """Generate all sequences of ``source``, up to ``capacity`` of them at a time.

    One that ends makes room for the next, so the source is read lazily.
    """
    active: list[Sequence] = []
    try:
        while True:
            active += islice(source, capacity - len(active))
            if not active:
                return
            cancelled = [sequence for sequence in active if sequence.end_if_cancelled()]
            if not cancelled:
                ready = yield from prepare(active, versions, together=False)
                if not ready:  # cancelled while it waited
                    continue
                step = plan(ready, versions.of(lead_version(ready)))
                outcome = yield from run_step(step, versions)
                for sequence, logits in outcome:
                    if logits is not None:
                        sequence.choose(logits)
                    if sequence.generated and not step.partial:
                        yield sequence.chunk()
            for sequence in cancelled:
                yield sequence.chunk()
            for sequence in [s for s in active if s.finish_reason is not None]:
                yield from sessions.read_back(sequence, versions)
                sequence.leave_slot()
                active.remove(sequence)
    finally:
        for sequence in active:
            sequence.leave_slot()


def prepare(
    active: GenericSequence[Sequence], versions: ModelVersions, *, together: bool
) -> Task[list[Sequence]]:
    """Give new sequences known prefixes, and servers' slots where there are some.

    Returns those that can go on; with ``together`` all can.
    """
    for sequence in active:
        yield from reuse(sequence, versions.current, versions.prefixes)
    ready = yield from sessions.seat(active, versions, together=together)
    for sequence in ready:  # another version may have been noticed meanwhile
        yield from reuse(sequence, versions.current, versions.prefixes)
    return ready


def run_step(
    step: Step, versions: ModelVersions
) -> Task[list[tuple[Sequence, np.ndarray | None]]]:
    """One call and what it gives its sequences; nothing if the version has changed.

    If a pinned version is gone, the sequences have dropped their caches, so that the
    next steps build them again from the tokens on the version served now. If a newer
    one lacks the signature, the next steps are planned for it.
    """
    planned_for = versions.current.version
    if not sessions.begin(step.sequences):
        return []
    try:
        reply = yield CallRequest(step.call, step.deadline)
        model = yield from answering_model(step.call, reply, versions, step.deadline)
    except VersionGone:
        yield from _start_again(step, versions)
        return []
    except (IncompatibleModel, MalformedReply, ServerError, Unavailable) as error:
        if step.in_session:  # an explicit cache may do, elsewhere or here
            sessions.fail(step.sequences)
            return []
        # A newer version may lack the signature, or have another cache.
        may_be_newer = isinstance(error, IncompatibleModel | MalformedReply)
        if step.call.version is not None or not may_be_newer:
            raise
        if versions.current.version == planned_for:
            yield from with_deadline(versions.learn(), step.deadline)
        if versions.current.version == planned_for:
            raise
        return []
    if _fed_foreign_rows(step, reply, model):
        yield from _start_again(step, versions)
        return []
    sessions.end(step.sequences, doubtful=reply.retries > 0)
    outcome = apply(step, reply, model)
    for sequence in step.sequences:
        remember(sequence, model, versions.prefixes)
    return outcome


def _start_again(step: Step, versions: ModelVersions) -> Task[None]:
    """Drop the sequences' caches and learn what is served now.

    Raises:
        VersionGone: that has happened too often.
    """
    if max(s.counters.rebuilds for s in step.sequences) >= _MOST_REBUILDS:
        raise VersionGone(
            f"the served model changed {_MOST_REBUILDS} times during one generation: "
            "try again once it has settled",
            "NOT_FOUND",
        )
    for sequence in step.sequences:
        sequence.forget()
    for counters in distinct_counters(step.sequences):
        counters.rebuilds += 1
    yield from with_deadline(versions.learn(), step.deadline)


def _fed_foreign_rows(step: Step, reply: Reply, model: ServedModel) -> bool:
    """Whether rows from the prefix cache went to another model than they are of.

    Calls that begin a sequence are not pinned: a newer version may have answered.
    """
    if step.call.version is not None or not any(s.cached for s in step.sequences):
        return False
    replaced = reply.model_id not in ("", model.model_id)
    return replaced or any(
        s.cached and s.sought_prefix != model.rows_identity for s in step.sequences
    )


def feed(
    sequences: GenericSequence[Sequence], versions: ModelVersions, *, keep: int = 0
) -> Task[list[np.ndarray]]:
    """Feed all pending tokens but the last ``keep`` of each sequence.

    Returns:
        The raw logits ``[V]`` for each one's next token, in order; none with ``keep``.
    """
    logits: dict[int, np.ndarray] = {}
    while True:
        together = len(sequences) > 1
        yield from prepare(sequences, versions, together=together)
        waiting = [
            sequence
            for sequence in sequences
            if sequence.pending > keep or (not keep and id(sequence) not in logits)
        ]
        if not waiting:
            return [] if keep else [logits[id(sequence)] for sequence in sequences]
        step = plan(waiting, versions.of(lead_version(waiting)), keep=keep)
        outcome = yield from run_step(step, versions)
        logits |= {id(sequence): own for sequence, own in outcome if own is not None}


def generate_samples(
    sequences: GenericSequence[Sequence], versions: ModelVersions, capacity: int
) -> Task[None]:
    """Generate several continuations of one prompt, whose cache is built once."""
    first = sequences[0]
    try:
        if first.pending > 1:
            yield from feed([first], versions, keep=1)
        if first.cache is not None:
            for sequence in sequences[1:]:
                sequence.continue_from(first)
        yield from generate_sequences(iter(sequences), versions, capacity)
    finally:
        first.leave_slot()

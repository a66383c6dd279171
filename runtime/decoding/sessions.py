"""Sequences and servers' slots: who gets one, and what is done when it is lost.

A slot is only a copy of what the client can compute again. A sequence that loses its
slot feeds its tokens again in another one; the second time it goes on with an explicit
cache, which no other client can take away.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence as GenericSequence
from contextlib import suppress

import numpy as np

from ..codec import RowBlocks, Tensor
from ..errors import (
    DeadlineExceeded,
    IncompatibleModel,
    MalformedReply,
    OptserveError,
    Unavailable,
    VersionGone,
)
from ..transports.base import Call, Reply
from .expected_reply import ExpectedReply
from .kv_cache import KVCache
from .model_versions import ModelVersions
from .prefix_cache import BLOCK, block_hashes
from .sequence import Sequence
from .served_model import ServedModel
from .session_cache import SessionCache
from .session_pool import SessionPool, Slot
from .task import CallRequest, Task, Wait, with_deadline

_ASK_AGAIN = 5.0  # seconds after which new sequences ask what is served now
_PATIENCE = 1.0  # seconds between two looks of who waits in line
_IDLE = 5.0  # seconds after which a slot whose owner makes no calls goes to others


def seat(
    sequences: GenericSequence[Sequence], versions: ModelVersions, *, together: bool
) -> Task[list[Sequence]]:
    """Give slots to those that need one; returns the sequences that can go on.

    A task that holds a slot never waits for another, so that two can't wait for each
    other: the sequences that find none take their turn when a neighbour has ended.
    With ``together`` all must go on at once, so these use explicit caches instead.
    """
    pool = versions.sessions
    if pool is None:
        return list(sequences)
    yield from _notice_newer_version(sequences, pool, versions)
    waiting = [sequence for sequence in sequences if _needs_slot(sequence, versions)]
    left = list(waiting)
    for sequence in waiting:
        patient = not together and len(left) == len(sequences)
        if (yield from _seated(sequence, pool, versions, patient=patient)):
            left.remove(sequence)
        elif together:
            sequence.use_explicit_cache()
            left.remove(sequence)
        else:
            break  # the others keep their order
    return [sequence for sequence in sequences if sequence not in left]


def begin(sequences: GenericSequence[Sequence]) -> bool:
    """A call on the sequences' slots begins; False if some have been taken away."""
    alive = True
    for sequence in sequences:
        slot = sequence.slot
        if slot is not None and not _pool_of(sequence).begin(slot):
            sequence.lose_slot()
            alive = False
    return alive


def end(sequences: GenericSequence[Sequence], *, doubtful: bool) -> None:
    """The call's reply has come."""
    for sequence in sequences:
        if (slot := sequence.slot) is not None:
            _pool_of(sequence).end(slot, doubtful=doubtful)


def fail(sequences: GenericSequence[Sequence]) -> None:
    """The slots' server can't be reached, or makes no sense."""
    for sequence in sequences:
        if (slot := sequence.slot) is not None:
            _pool_of(sequence).failed(slot.target)
        sequence.lose_slot()


def read_back(sequence: Sequence, versions: ModelVersions) -> Task[None]:
    """Fetch the rows that the prefix cache lacks, before the slot goes to others."""
    slot, prefixes = sequence.slot, versions.prefixes
    if slot is None or slot.revoked or prefixes is None:
        return
    model = versions.of(slot.version)
    identity, layout = model.rows_identity, model.layout
    if not identity or slot.model_id not in ("", model.model_id):
        return
    hashes = block_hashes(identity, sequence.tokens[: sequence.cached])
    hashes = hashes[: prefixes.holds(BLOCK * layout.row_bytes)]
    first = next((i for i, one in enumerate(hashes) if not prefixes.has(one)), None)
    size = (len(hashes) - (first or 0)) * BLOCK
    if first is None or size > model.rows_per_message(model.batch_size(1)):
        return
    inputs: dict[str, Tensor] = {
        "start": _column(first * BLOCK),
        "size": _column(size),
    }
    pool, reply = _pool_of(sequence), None
    if not pool.begin(slot):
        return
    with suppress(OptserveError):  # the sequence has ended well
        reply = yield from _call(
            "session_read", slot, inputs, model, sequence, rows=size
        )
    if reply is not None:
        pool.end(slot, doubtful=False)
        rows = reply.outputs["cache"][0, :size].reshape(-1, BLOCK, *layout.row_shape)
        prefixes.keep(dict(zip(hashes[first:], np.array(rows), strict=True)))


def _notice_newer_version(
    sequences: GenericSequence[Sequence], pool: SessionPool, versions: ModelVersions
) -> Task[None]:
    """Ask now and then: a slot pins its sequence, so replies never tell of another."""
    new = any(sequence.version is None for sequence in sequences)
    if new and pool.ask_again(_ASK_AGAIN):
        with suppress(OptserveError):
            yield from with_deadline(versions.learn(), sequences[0].deadline)


def _needs_slot(sequence: Sequence, versions: ModelVersions) -> bool:
    """Whether it has none and should; too long a one goes on with an explicit cache."""
    if sequence.explicit or sequence.slot:
        return False
    if isinstance(sequence.cache, KVCache) and sequence.version is not None:
        return False
    sizes = versions.current.manifest.sessions
    if not sizes:
        if isinstance(sequence.cache, SessionCache):
            sequence.forget()
        return False
    if len(sequence.tokens) + sequence.remaining - 1 > sizes["positions"]:
        sequence.use_explicit_cache()
        return False
    return True


def _seated(
    sequence: Sequence, pool: SessionPool, versions: ModelVersions, *, patient: bool
) -> Task[bool]:
    """Whether the sequence can go on: in a slot, or for good without one."""
    while not sequence.explicit:
        origin = _origin_of(sequence)
        target = origin.target if origin else None
        model = versions.current
        if not model.manifest.sessions:  # a newer version
            sequence.use_explicit_cache()
            break
        slot = pool.take(sequence.tokens, model, target=target)
        if slot is None and patient:
            slot = yield from _turn(sequence, pool, model)
        if slot is None:
            return False
        prepared = False
        try:
            prepared = yield from _prepared(sequence, slot, pool, versions)
        finally:
            if not prepared:
                pool.drop(slot)
        if prepared:
            return True
        sequence.lose_slot()
    return True


def _turn(sequence: Sequence, pool: SessionPool, model: ServedModel) -> Task[Slot]:
    """Wait in line for a slot.

    Raises:
        DeadlineExceeded: the sequence's time is over.
    """
    future = pool.wait(sequence.tokens, model)
    slot = None
    try:
        while slot is None:
            now = time.monotonic()
            if sequence.deadline is not None and sequence.deadline <= now:
                raise DeadlineExceeded(
                    "all of the server's sessions were taken until the deadline: "
                    "allow more time, send fewer generations at once, or export with "
                    "more sessions"
                )
            until = min(now + _PATIENCE, sequence.deadline or now + _PATIENCE)
            slot = yield Wait(future, until)
            pool.serve(idle=_IDLE)
        return slot
    finally:
        if slot is None and not future.cancel():
            pool.give_back(future.result(), future.result().tokens)


def _prepared(
    sequence: Sequence, slot: Slot, pool: SessionPool, versions: ModelVersions
) -> Task[bool]:
    """Make a slot hold what is known of the sequence; False if it could not be.

    What it holds already counts first, then the rows of the sequence that this one was
    forked from, then those of the prefix cache.
    """
    if not slot.ticket and not (yield from _opened(sequence, slot, pool, versions)):
        return False
    model, known = versions.of(slot.version), sequence.cached
    length = min(slot.common(sequence.tokens), len(sequence.tokens) - 1)
    origin, prefix = _origin_of(sequence), sequence.cache
    pool.begin(slot)
    if length < known and origin is not None and origin.is_beside(slot):
        if not (yield from _copied(sequence, origin, slot, pool, model)):
            return False
        length = known
    elif (
        length < known
        and isinstance(prefix, KVCache)
        and model.rows_identity == sequence.sought_prefix
    ):
        if not (yield from _written(sequence, slot, model, prefix, length)):
            return False
        length = known
    pool.end(slot, doubtful=False)
    sequence.take_slot(SessionCache(pool, slot, length))
    return True


def _copied(
    sequence: Sequence, origin: Slot, slot: Slot, pool: SessionPool, model: ServedModel
) -> Task[bool]:
    """Copy the rows that the sequence has in common with another one's slot."""
    inputs: dict[str, Tensor] = {
        "to_slot": _column(slot.number),
        "to_ticket": _column(slot.ticket, np.int64),
        "cache_length": _column(sequence.cached),
    }
    if not pool.begin(origin):
        return False
    reply = yield from _call("session_copy", origin, inputs, model, sequence)
    pool.end(origin, doubtful=False)
    return reply is not None


def _opened(
    sequence: Sequence, slot: Slot, pool: SessionPool, versions: ModelVersions
) -> Task[bool]:
    model = versions.current
    # Not 0 and the same in all rows: a batch of one session.
    row = np.full(model.batch_size(1), 1 + secrets.randbelow(2**31 - 1), np.int32)
    expected = ExpectedReply(model, "session_open", (), len(row), (1,), 1)
    replicas = (slot.target,) if slot.target else ()
    call = Call("session_open", {"row": row}, expected=expected, replicas=replicas)
    try:
        reply = yield CallRequest(call, sequence.deadline)
        if reply.version not in versions.known:
            learning = versions.learn(reply.version)
            yield from with_deadline(learning, sequence.deadline)
    except Unavailable:
        if not slot.target:
            raise
        pool.failed(slot.target)
        return False
    except IncompatibleModel:  # a newer version without sessions, perhaps
        yield from with_deadline(versions.learn(), sequence.deadline)
        return False
    number, ticket = (int(reply.outputs[name][0]) for name in ("slot", "ticket"))
    pool.opened(slot, Slot(reply.target, reply.version, reply.model_id, number, ticket))
    return True


def _written(
    sequence: Sequence, slot: Slot, model: ServedModel, prefix: KVCache, begin: int
) -> Task[bool]:
    """Send rows of the prefix cache to the slot, in as many calls as they need."""
    most = model.rows_per_message(model.batch_size(1))
    for start in range(begin, len(prefix), most):
        end = min(start + most, len(prefix))
        rows = (prefix.rows(start, end),)
        blocks = RowBlocks((rows,) * model.batch_size(1), model.cache_size(end - start))
        inputs: dict[str, Tensor] = {
            "cache": blocks,
            "start": _column(start),
            "cache_length": _column(end - start),
        }
        reply = yield from _call("session_write", slot, inputs, model, sequence)
        if reply is None:
            return False
    return True


def _call(
    signature: str,
    slot: Slot,
    inputs: dict[str, Tensor],
    model: ServedModel,
    sequence: Sequence,
    *,
    rows: int = 1,
) -> Task[Reply | None]:
    """One call about a slot; None if the slot is not to be used.

    An attempt that failed may still run, and write what was true then.
    """
    count = model.batch_size(1)
    given: dict[str, Tensor] = {
        "slot": _column(slot.number),
        "ticket": _column(slot.ticket, np.int64),
        **inputs,
    }
    repeated = {
        name: tensor if isinstance(tensor, RowBlocks) else np.repeat(tensor, count)
        for name, tensor in given.items()
    }
    call = Call(
        signature,
        repeated,
        (),
        version=slot.version,
        model_id=slot.model_id,
        expected=ExpectedReply(model, signature, (), count, (rows,), rows),
        replicas=(slot.target,) if slot.target else (),
    )
    try:
        reply = yield CallRequest(call, sequence.deadline)
    except (Unavailable, MalformedReply, IncompatibleModel, VersionGone):
        return None
    sequence.counters.bytes_sent += reply.bytes_sent
    sequence.counters.bytes_received += reply.bytes_received
    if reply.retries and signature != "session_read":
        return None
    return reply if reply.outputs["alive"][0] else None


def _column(value: int, dtype: type = np.int32) -> np.ndarray:
    return np.array([value], dtype)


def _pool_of(sequence: Sequence) -> SessionPool:
    assert isinstance(sequence.cache, SessionCache)
    return sequence.cache.pool


def _origin_of(sequence: Sequence) -> Slot | None:
    """The slot that holds the rows of a sequence that was forked from its owner."""
    cache = sequence.cache
    if not isinstance(cache, SessionCache) or cache.origin is None:
        return None
    slot = cache.origin.slot
    return None if slot is None or slot.revoked else slot

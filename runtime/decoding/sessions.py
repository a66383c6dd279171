"""Sequences and servers' slots: who gets one, and what is done when it is lost.

A slot is only a copy of what the client can compute again. A sequence that loses its
slot feeds its tokens again in another one; the second time it goes on with an explicit
cache, which no other client can take away.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as GenericSequence
from contextlib import suppress

from ..errors import DeadlineExceeded, OptserveError
from .kv_cache import KVCache
from .model_versions import ModelVersions
from .prefix_cache import BLOCK, block_hashes
from .sequence import Sequence
from .served_model import ServedModel
from .session_cache import SessionCache
from .session_calls import copy_slot, open_slot, read_slot, write_prefix
from .session_pool import SessionPool, Slot
from .task import Task, Wait, with_deadline

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
    """A call on the sequences' slots begins, unless some have been taken away."""
    seated = [s for s in sequences if s.slot is not None]
    revoked = [s for s in seated if s.slot and not _pool_of(s).begin(s.slot)]
    if revoked:
        end([s for s in seated if s not in revoked], doubtful=False)
        for sequence in revoked:
            sequence.lose_slot()
    return not revoked


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
    """Fetch rows that several prompts begin with, where the prefix cache lacks them.

    The others stay in their slot, where they cost nothing.
    """
    slot, prefixes = sequence.slot, versions.prefixes
    if slot is None or slot.revoked or prefixes is None:
        return
    model = versions.of(slot.version)
    identity, layout = model.rows_identity, model.layout
    if not identity or slot.model_id not in ("", model.model_id):
        return
    hashes = block_hashes(identity, sequence.tokens[: sequence.cached])
    most = min(prefixes.sighted(hashes), prefixes.holds(BLOCK * layout.row_bytes))
    hashes = hashes[:most]
    first = next((i for i, one in enumerate(hashes) if not prefixes.has(one)), None)
    size = (len(hashes) - (first or 0)) * BLOCK
    if first is None or size > model.rows_per_message(model.padded_rows(1)):
        return
    pool = _pool_of(sequence)
    if not pool.begin(slot):
        return
    rows = yield from read_slot(sequence, slot, first * BLOCK, size, versions)
    if rows is not None:
        pool.end(slot, doubtful=False)
        blocks = rows.reshape(-1, BLOCK, *layout.row_shape)
        prefixes.keep(dict(zip(hashes[first:], blocks, strict=True)))


def _notice_newer_version(
    sequences: GenericSequence[Sequence], pool: SessionPool, versions: ModelVersions
) -> Task[None]:
    """Ask now and then: a slot pins its sequence, so replies never tell of another."""
    new = any(sequence.version is None for sequence in sequences)
    if new and versions.current.manifest.sessions and pool.ask_again(_ASK_AGAIN):
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
        opened = prepared = False
        try:
            opened = slot.ticket or (
                yield from open_slot(sequence, slot, pool, versions)
            )
            prepared = opened and (yield from _prepared(sequence, slot, pool, versions))
        finally:
            if not prepared:
                pool.drop(slot)
        if prepared:
            return True
        if opened:
            sequence.lose_slot()
    return True


def _turn(
    sequence: Sequence, pool: SessionPool, model: ServedModel
) -> Task[Slot | None]:
    """Wait in line for a slot; None if the sequence is cancelled meanwhile.

    Raises:
        DeadlineExceeded: the sequence's time is over.
    """
    future = pool.wait(sequence.tokens, model)
    slot = None
    try:
        while slot is None and not sequence.cancelled:
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
            pool.release(future.result(), future.result().tokens)


def _prepared(
    sequence: Sequence, slot: Slot, pool: SessionPool, versions: ModelVersions
) -> Task[bool]:
    """Make a slot hold what is known of the sequence; False if it could not be.

    What it holds already counts first, then the rows of the sequence that this one was
    forked from, then those of the prefix cache.
    """
    model, known = versions.of(slot.version), sequence.cached
    length = min(slot.common(sequence.tokens), len(sequence.tokens) - 1)
    origin, prefix = _origin_of(sequence), sequence.cache
    if not pool.begin(slot):
        return False
    if length < known and origin is not None and origin.is_beside(slot):
        if not (yield from copy_slot(sequence, origin, slot, pool, versions)):
            return False
        length = known
    elif (
        length < known
        and isinstance(prefix, KVCache)
        and model.rows_identity == sequence.sought_prefix
    ):
        if not (yield from write_prefix(sequence, slot, prefix, length, versions)):
            return False
        length = known
    pool.end(slot, doubtful=False)
    sequence.take_slot(SessionCache(pool, slot, length))
    return True


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

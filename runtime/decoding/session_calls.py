"""The calls that a slot needs besides those of the decode loop."""

from __future__ import annotations

import secrets
from contextlib import suppress

import numpy as np

from ..codec import RowBlocks, Tensor
from ..errors import (
    IncompatibleModel,
    MalformedReply,
    OptserveError,
    ServerError,
    Unavailable,
    VersionGone,
)
from ..transports.base import Call, Reply
from .expected_reply import ExpectedReply
from .kv_cache import KVCache
from .model_versions import ModelVersions, answering_model
from .sequence import Sequence
from .session_pool import SessionPool, Slot
from .task import CallRequest, Task, with_deadline


def open_slot(
    sequence: Sequence, slot: Slot, pool: SessionPool, versions: ModelVersions
) -> Task[bool]:
    """Have a server give one; False if it fails, and is left alone for a while.

    Where no server gives one, the sequence uses an explicit cache.
    """
    model = versions.current
    # Not 0 and the same in all rows: a batch of one session.
    row = np.full(model.padded_rows(1), 1 + secrets.randbelow(2**31 - 1), np.int32)
    expected = ExpectedReply(model, "session_open", (), len(row), (1,), 1)
    replicas = (slot.target,) if slot.target else ()
    call = Call("session_open", {"row": row}, expected=expected, replicas=replicas)
    try:
        reply = yield CallRequest(call, sequence.deadline)
        yield from answering_model(call, reply, versions, sequence.deadline)
    except (Unavailable, MalformedReply, ServerError):
        if slot.target:
            pool.failed(slot.target)
        else:
            sequence.use_explicit_cache()
        return False
    except IncompatibleModel:  # a newer version without sessions, perhaps
        yield from with_deadline(versions.learn(), sequence.deadline)
        sequence.lose_slot()
        return False
    number, ticket = (int(reply.outputs[name][0]) for name in ("slot", "ticket"))
    pool.opened(slot, Slot(reply.target, reply.version, reply.model_id, number, ticket))
    return True


def copy_slot(
    sequence: Sequence,
    origin: Slot,
    slot: Slot,
    pool: SessionPool,
    versions: ModelVersions,
) -> Task[bool]:
    """Copy the rows that the sequence has in common with another one's slot."""
    inputs: dict[str, Tensor] = {
        "to_slot": _column(slot.number),
        "to_ticket": _column(slot.ticket, np.int64),
        "cache_length": _column(sequence.cached),
    }
    if not pool.begin(origin):
        return False
    reply = yield from _call("session_copy", origin, inputs, versions, sequence)
    pool.end(origin, doubtful=False)
    return reply is not None


def write_prefix(
    sequence: Sequence,
    slot: Slot,
    prefix: KVCache,
    begin: int,
    versions: ModelVersions,
) -> Task[bool]:
    """Send rows of the prefix cache from ``begin`` on, in as many calls as needed."""
    model = versions.of(slot.version)
    most = model.rows_per_message(model.padded_rows(1))
    for start in range(begin, len(prefix), most):
        end = min(start + most, len(prefix))
        rows = (prefix.rows(start, end),)
        blocks = RowBlocks(
            (rows,) * model.padded_rows(1), model.cache_size(end - start)
        )
        inputs: dict[str, Tensor] = {
            "cache": blocks,
            "start": _column(start),
            "cache_length": _column(end - start),
        }
        reply = yield from _call("session_write", slot, inputs, versions, sequence)
        if reply is None:
            return False
    return True


def read_slot(
    sequence: Sequence, slot: Slot, start: int, size: int, versions: ModelVersions
) -> Task[np.ndarray | None]:
    """Fetch rows; None if they can't be had."""
    inputs: dict[str, Tensor] = {"start": _column(start), "size": _column(size)}
    with suppress(OptserveError):  # the sequence has ended well
        reply = yield from _call(
            "session_read", slot, inputs, versions, sequence, rows=size
        )
        if reply is not None:
            return np.array(reply.outputs["cache"][0, :size])
    return None


def _call(
    signature: str,
    slot: Slot,
    inputs: dict[str, Tensor],
    versions: ModelVersions,
    sequence: Sequence,
    *,
    rows: int = 1,
) -> Task[Reply | None]:
    """One call about a slot; None if the slot is not to be used.

    An attempt that failed may still run, and write what was true then.
    """
    model = versions.of(slot.version)
    count = model.padded_rows(1)
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
        yield from answering_model(call, reply, versions, sequence.deadline)
    except VersionGone:
        yield from with_deadline(versions.learn(), sequence.deadline)
        return None
    except (Unavailable, MalformedReply, IncompatibleModel, ServerError):
        return None
    sequence.counters.bytes_sent += reply.bytes_sent
    sequence.counters.bytes_received += reply.bytes_received
    if reply.retries and signature != "session_read":
        return None
    return reply if reply.outputs["alive"][0] else None


def _column(value: int, dtype: type = np.int32) -> np.ndarray:
    return np.array([value], dtype)

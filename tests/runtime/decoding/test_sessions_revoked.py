"""A slot that another task took away is neither read nor written any more."""

from __future__ import annotations

import numpy as np
import pytest
from optserve.runtime import Sampling
from optserve.runtime.decoding.kv_cache import KVCache
from optserve.runtime.decoding.model_versions import ModelVersions
from optserve.runtime.decoding.sequence import Sequence
from optserve.runtime.decoding.served_model import ServedModel
from optserve.runtime.decoding.session_cache import SessionCache
from optserve.runtime.decoding.session_pool import SessionPool, Slot
from optserve.runtime.decoding.sessions import _prepared, begin
from optserve.runtime.options import GenerationOptions

from tests.runtime.numpy_model import NumpyTransport

MODEL = ServedModel(
    NumpyTransport(sessions={"slots": 3, "positions": 64}).manifest, version=1
)


def seated(pool: SessionPool) -> Sequence:
    """A sequence in a slot of its own."""
    slot = pool.take([2], MODEL)
    assert slot is not None
    number = len(pool._leased)
    pool.opened(slot, Slot("", 1, "", number, number))
    greedy = GenerationOptions(max_new_tokens=4)
    sequence = Sequence([2, 5], greedy, sampling=Sampling(temperature=0), stop_ids=[])
    sequence.take_slot(SessionCache(pool, slot, 0))
    return sequence


def test_a_slot_that_was_taken_away_leaves_its_neighbours_as_they_were():
    pool = SessionPool([])
    revoked, other = seated(pool), seated(pool)
    assert revoked.slot and other.slot
    revoked.slot.revoked = True
    assert not begin([revoked, other])
    assert revoked.slot is None and not other.slot.busy
    assert begin([other]) and other.slot.busy


def test_nothing_is_written_to_a_slot_that_was_taken_away_meanwhile():
    pool = SessionPool([])
    sequence = seated(pool)
    slot = sequence.slot
    assert slot is not None
    slot.revoked = True
    rows = np.zeros((4, *MODEL.layout.row_shape), np.float32)
    sequence.cache, sequence.sought_prefix = KVCache(MODEL.layout, (rows,)), "same"
    calls = _prepared(sequence, slot, pool, ModelVersions(MODEL))
    with pytest.raises(StopIteration) as ended:
        next(calls)
    assert ended.value.value is False

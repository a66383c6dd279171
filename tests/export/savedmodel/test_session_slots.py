"""Slots take their memory once, as they fill, and only who holds one writes to it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from optserve.export.savedmodel.session_slots import SessionSlots
from optserve.runtime.contract import CacheLayout

from tests.export.exports import int32

LAYOUT = CacheLayout(layers=2, heads=2, head_dim=64)  # 2 KiB a row
SLOTS, POSITIONS = 64, 1024
WHOLE = SLOTS * POSITIONS * LAYOUT.row_bytes


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """Slots of 128 MiB by themselves, loaded as servers load an export."""
    from optserve.runtime.server.servable import Servable
    from optserve.runtime.server.settings import SessionOptions

    slots = SessionSlots(SLOTS, POSITIONS, LAYOUT, name="test_session_slots")
    vector, ticket = tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64)
    rows = tf.TensorSpec([None, None, *LAYOUT.row_shape])

    @tf.function(input_signature=[vector], autograph=False)
    def take(row):
        slot, ticket = slots.open(row)
        return {"slot": slot, "ticket": ticket}

    @tf.function(input_signature=[vector, ticket, rows, vector, vector])
    def write(slot, ticket, rows, start, count):
        held = slots.write(slot, ticket, rows, start, count)
        return {"held": tf.identity(held)}

    @tf.function(input_signature=[vector, vector, vector])
    def read(slot, start, size):
        return {"rows": slots.read(slot, start, size)}

    module = tf.Module()
    module.resources = slots.resources
    folder = tmp_path_factory.mktemp("slots")
    functions = {"take": take, "write": write, "read": read}
    tf.saved_model.save(module, str(folder), functions)
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 1e6
    before = resident()
    servable = Servable(str(folder), SessionOptions())
    assert resident() - before < WHOLE / 4  # not yet touched

    def run(name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        signature = servable.signatures[name]
        names = list(signature.outputs)
        return dict(zip(names, servable.run(signature, inputs, names), strict=True))

    yield run
    servable.close()


def resident() -> int:
    return memory("VmRSS")


def memory(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    match = re.search(rf"{field}:\s+(\d+) kB", status)
    assert match is not None
    return int(match.group(1)) * 1024


def rows_of(value: float, count: int) -> np.ndarray:
    return np.full((1, count, *LAYOUT.row_shape), value, np.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_what_the_rows_written_take(call):
    held = call("take", row=np.zeros(SLOTS, np.int32))
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    for i in range(SLOTS):
        mine = {key: value[i : i + 1] for key, value in held.items()}
        rows = rows_of(i, POSITIONS)
        reply = call("write", **mine, rows=rows, start=int32(0), count=int32(POSITIONS))
        assert reply["held"].tolist() == [True]
        read = call("read", slot=mine["slot"], start=int32(9), size=int32(3))
        assert (read["rows"] == i).all()
        if i == 0:  # a copy of the whole would have touched all of it
            assert memory("VmHWM") - before < WHOLE / 4
    assert memory("VmHWM") - before < 1.25 * WHOLE


def test_writes_end_where_a_slot_ends(call):
    held = call("take", row=np.zeros(SLOTS, np.int32))
    order = np.argsort(held["slot"])
    first, second = (
        {key: value[order[i] : order[i] + 1] for key, value in held.items()}
        for i in (0, 1)
    )
    call("write", **second, rows=rows_of(5, 2), start=int32(0), count=int32(2))
    call("write", **first, rows=rows_of(7, 4), start=int32(1022), count=int32(4))
    read = call("read", slot=second["slot"], start=int32(0), size=int32(2))["rows"]
    assert (read == 5).all()
    read = call("read", slot=first["slot"], start=int32(1022), size=int32(2))["rows"]
    assert (read == 7).all()


@pytest.mark.parametrize(("slot", "ticket"), [(0, 1), (-1, 0), (SLOTS, 5), (0, 0)])
def test_who_holds_no_slot_writes_nothing(call, slot, ticket):
    (mine,) = [
        {key: value[b : b + 1] for key, value in held.items()}
        for held in [call("take", row=np.zeros(SLOTS, np.int32))]
        for b in np.flatnonzero(held["slot"] == 0)
    ]
    call("write", **mine, rows=rows_of(3, 1), start=int32(0), count=int32(1))
    other = {"slot": int32(slot), "ticket": np.array([ticket], np.int64)}
    reply = call("write", **other, rows=rows_of(4, 1), start=int32(0), count=int32(1))
    assert reply["held"].tolist() == [False]
    read = call("read", slot=int32(0), start=int32(0), size=int32(1))["rows"]
    assert (read == 3).all()


def test_numbers_tell_rows_apart(call):
    held = call("take", row=int32(0, 7, 0, 7, -7))
    assert len(set(held["slot"].tolist())) == 4
    assert held["ticket"][1] == held["ticket"][3]
    every = call("take", row=np.arange(1, SLOTS + 1, dtype=np.int32))
    assert set(every["slot"].tolist()) == set(range(SLOTS))
    assert call("take", row=int32())["slot"].shape == (0,)

"""The numpy model of sessions passes the schedule that every export must."""

from __future__ import annotations

import numpy as np
from optserve.runtime.transports.base import Call

from tests.runtime.numpy_model import NumpyTransport
from tests.runtime.session_schedule import Schedule


def test_a_random_schedule_equals_explicit_caches():
    transport = NumpyTransport(generate=(1, 4), sessions={"slots": 3, "positions": 40})

    def call(name: str, **inputs: np.ndarray):
        return dict(transport.call(Call(name, inputs)).outputs)

    Schedule(call, transport.manifest, seed=1).run(60)


def test_a_restart_makes_tickets_void():
    transport = NumpyTransport(sessions={"slots": 2, "positions": 40})
    held = transport.call(Call("session_open", {"row": np.zeros(2, np.int32)})).outputs
    assert sorted(held["slot"].tolist()) == [0, 1]
    read = {"start": np.zeros(2, np.int32), "size": np.zeros(2, np.int32)}
    alive = [transport.call(Call("session_read", {**held, **read})).outputs["alive"]]
    transport.restart()
    alive += [transport.call(Call("session_read", {**held, **read})).outputs["alive"]]
    assert np.array(alive).tolist() == [[1, 1], [0, 0]]

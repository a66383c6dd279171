"""Sessions on any server of our export: what explicit caches give."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from optserve.export.verify.cache import unpack
from optserve.runtime.contract import Manifest

from tests.runtime.session_schedule import Schedule

from .test_serving import call

pytestmark = pytest.mark.serving
COARSE = {"float32": 1e-3, "bfloat16": 0.05, "int8": 0.1}


class Close(Schedule):
    """Rows may join others' calls, so numbers are equal but for the order of sums."""

    fewest_slots = 1  # a batcher does not join nothing and something

    def equal(self, actual, expected) -> None:
        """Integers to the bit, numbers as coarse as the cache is stored."""
        expected = np.broadcast_to(expected, actual.shape)
        if actual.dtype.kind == "i":
            np.testing.assert_array_equal(actual, expected)
            return
        layout = self.manifest.cache_layout
        if actual.shape[1:] == layout.row_shape:
            actual, expected = unpack(actual, layout), unpack(expected, layout)
        np.testing.assert_allclose(actual, expected, atol=COARSE[layout.dtype])


@pytest.fixture(scope="module")
def manifest(client) -> Manifest:
    manifest = client.describe()
    if not manifest.sessions:
        pytest.skip("this export keeps no sessions")
    return manifest


@pytest.fixture
def schedule(client, manifest):
    def make(seed: int) -> Schedule:
        def of_client(name: str, **inputs: np.ndarray):
            return dict(call(client, name, **inputs))

        return Close(of_client, manifest, seed, alone=False)

    return make


def test_any_schedule_equals_explicit_caches(schedule):
    schedule(1).run(40)


def test_callers_at_once_do_not_disturb_each_other(schedule, manifest):
    """As many as there are slots, so that nobody loses one."""

    def work(caller: Schedule) -> None:
        for _ in range(8):
            caller.generate()
            caller.read()

    callers = [schedule(seed) for seed in range(min(8, manifest.sessions["slots"]))]
    for caller in callers:
        caller.open(1)
    with ThreadPoolExecutor(len(callers)) as pool:
        list(pool.map(work, callers))


def test_tickets_of_before_are_void(schedule, manifest):
    caller = schedule(2)
    (session,) = caller.open(1)
    caller.open(manifest.sessions["slots"])
    assert not session.alive
    caller.opened = [session]
    caller.generate()
    caller.read()

"""Whose turn it is for a slot, step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from optserve.runtime.decoding.prefix_cache import BLOCK
from optserve.runtime.decoding.served_model import ServedModel
from optserve.runtime.decoding.session_pool import SessionPool, Slot

from tests.runtime.numpy_model import NumpyTransport

SLOTS = 3
MODEL = ServedModel(
    NumpyTransport(sessions={"slots": SLOTS, "positions": 64}).manifest, version=1
)
TEXT = list(range(4, 4 + 2 * BLOCK))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(pool: SessionPool, slot: Slot | None) -> Slot:
    """The slot, as if a server had given it."""
    assert slot is not None
    if not slot.ticket:
        number = opened.count = getattr(opened, "count", 0) + 1
        pool.opened(slot, Slot(slot.target, 1, "", number % SLOTS, number))
    return slot


def taken(pool: SessionPool, count: int) -> list[Slot]:
    return [opened(pool, pool.take([2], MODEL)) for _ in range(count)]


def test_no_more_than_the_servers_have_and_the_emptiest_first(clock):
    pool = SessionPool(["a", "b"], clock=clock)
    slots = taken(pool, 2 * SLOTS)
    assert pool.take([2], MODEL) is None
    assert [slot.target for slot in slots[:4]] == ["a", "b", "a", "b"]
    pool.release(slots[0], [2, 5])
    again = pool.take([2], MODEL)
    assert again is not None
    assert (again.ticket, again.target) == (slots[0].ticket, "a")


def test_the_only_model_may_have_any_name(clock):
    pool = SessionPool([], clock=clock)
    for number in range(SLOTS):
        slot = pool.take([2], MODEL)
        assert slot is not None
        pool.opened(slot, Slot("local", 1, "", number, 1 + number))
    assert pool.take([2], MODEL) is None


def test_those_who_wait_are_served_in_order_and_before_others(clock):
    pool = SessionPool([], clock=clock)
    slots = taken(pool, SLOTS)
    first, left, second = (pool.wait([2], MODEL) for _ in range(3))
    assert left.cancel()
    pool.release(slots[0], [])
    assert first.result(0).ticket == slots[0].ticket
    assert pool.take([2], MODEL) is None
    pool.drop(slots[1])
    assert second.result(0).ticket == 0  # to be opened
    pool.release(slots[2], [])
    assert pool.take([2], MODEL) is not None


def test_a_slot_is_found_by_its_tokens(clock):
    pool = SessionPool([], clock=clock)
    slots = taken(pool, SLOTS)
    for slot, tokens in zip(slots, (TEXT, TEXT[:BLOCK], [7, 7]), strict=True):
        pool.release(slot, tokens)
    assert pool.held([*TEXT, 9]) == len(TEXT)
    numbers = [slot.number for slot in slots]
    for tokens, number in (
        ([7, 7, 1], numbers[2]),  # all of it is a prefix
        ([*TEXT[:-1], 9], numbers[0]),  # the longest
        ([*TEXT[:-1], 9], numbers[1]),
    ):
        slot = pool.take(tokens, MODEL)
        assert slot is not None
        assert slot.number == number


def test_what_another_call_may_write_to_is_given_to_nobody(clock):
    pool = SessionPool([], clock=clock)
    slots = taken(pool, SLOTS)
    assert pool.begin(slots[0])  # and no reply
    pool.begin(slots[1])
    pool.end(slots[1], doubtful=True)
    pool.begin(slots[2])
    pool.end(slots[2], doubtful=False)
    for slot in slots:
        pool.release(slot, TEXT)
    again = pool.take(TEXT, MODEL)
    assert again is not None
    assert again.ticket == slots[2].ticket
    assert pool.take(TEXT, MODEL) is None
    clock.now += 2
    others = [pool.take(TEXT, MODEL) for _ in range(2)]
    assert [slot.ticket for slot in others if slot] == [0, 0]  # to be opened anew


def test_only_an_idle_slot_is_taken_away_and_only_for_those_who_wait(clock):
    pool = SessionPool([], clock=clock)
    idle, fresh, busy = taken(pool, SLOTS)
    pool.begin(busy)
    clock.now += 10
    pool.begin(fresh)
    pool.end(fresh, doubtful=False)
    pool.serve(idle=5)
    assert pool.begin(idle)
    pool.end(idle, doubtful=False)
    clock.now += 10
    pool.begin(fresh)
    pool.end(fresh, doubtful=False)
    waiting = pool.wait([2], MODEL)
    pool.serve(idle=5)
    assert waiting.result(0).ticket == idle.ticket
    assert not pool.begin(idle)
    pool.release(idle, TEXT)  # by its former owner
    assert pool.take(TEXT, MODEL) is None


def test_losses_make_it_ask_for_less_and_peace_for_more(clock):
    pool = SessionPool([], clock=clock)
    slots = taken(pool, SLOTS)
    pool.drop(slots[0], evicted=True)
    pool.drop(slots[1], evicted=True)  # of the same restart, perhaps
    slots[1:2] = taken(pool, 1)
    assert pool.take([2], MODEL) is None
    clock.now += 2
    pool.drop(slots[2], evicted=True)
    assert pool.take([2], MODEL) is None
    for _ in range(16):
        pool.release(slots[1], [])
        slots[1] = opened(pool, pool.take([2], MODEL))
    assert pool.take([2], MODEL) is not None
    assert pool.take([2], MODEL) is None


def test_a_server_that_fails_is_left_alone_for_a_while(clock):
    pool = SessionPool(["a", "b"], clock=clock)
    first, second = taken(pool, 2)
    pool.release(first, [])
    pool.failed("a")
    assert [pool.take([2], MODEL, target="a"), second.target] == [None, "b"]
    pool.failed("b")
    anywhere = pool.take([2], MODEL)
    assert anywhere is not None
    assert anywhere.target == ""
    assert pool.take([2], MODEL) is None
    clock.now += 10
    assert {slot.target for slot in taken(pool, 3)} == {"a", "b"}


def test_slots_of_another_version_are_left(clock):
    pool = SessionPool([], clock=clock)
    (slot,) = taken(pool, 1)
    pool.release(slot, TEXT)
    newer = pool.take(TEXT, replace(MODEL, version=2))
    assert newer is not None
    assert newer.ticket == 0

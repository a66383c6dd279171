"""Who goes next, with whom, and for how many tokens."""

from __future__ import annotations

import asyncio
import itertools
import time

import numpy as np
import pytest
from optserve.runtime.transports import batch_policy
from optserve.runtime.transports.base import Call
from optserve.runtime.transports.batch_policy import (
    Batch,
    Limits,
    Pace,
    Waiting,
)

ARRIVALS = itertools.count()
PACE = Pace(step=2 / 32)
LIMITS = Limits(lambda call: 32, lambda call, rows: rows, in_flight=2)


def next_batch(waiting, running, limits, pace=PACE):
    return batch_policy.next_batch(waiting, running, limits, pace)


def waiting(size=1, steps=8, *, name="generate_8", age=0.0, replicas=()):
    inputs = {
        "input_ids": np.zeros((1, size), np.int32),
        "max_new_tokens": np.array([steps], np.int32),
    }
    if not name.startswith(("generate", "session")):
        del inputs["max_new_tokens"]
    return Waiting(
        Call(name, inputs, replicas=replicas),
        None,
        asyncio.Future(loop=LOOP),
        next(ARRIVALS),
        since=time.monotonic() - age,
    )


LOOP = asyncio.new_event_loop()


def running(kind, *, replicas=(), short=False):
    member = waiting(2 if kind == "prompt" else 1, replicas=replicas)
    return Batch((member,), kind, short=short)


def sizes(batch):
    return [member.size for member in batch.members]


def test_a_lone_call_is_not_changed():
    for one in (waiting(), waiting(100)):
        batch = next_batch([one], [], LIMITS)
        assert batch.members == (one,)
        assert batch.steps in (None, 8)


def test_prompts_go_first_and_make_one_token():
    steps, prompt = waiting(), waiting(50)
    batch = next_batch([steps, prompt], [], LIMITS)
    assert batch.members == (prompt,) and batch.steps == 1


def test_prompts_and_decode_steps_take_turns():
    assert next_batch([waiting()], [running("prompt")], LIMITS) is None
    assert next_batch([waiting()], [running("decode")], LIMITS) is None
    assert next_batch([waiting(50)], [running("prompt")], LIMITS) is None
    # A call of few steps is soon over; beside a long one a new caller begins at once.
    assert next_batch([waiting(50)], [running("decode", short=True)], LIMITS) is None
    assert next_batch([waiting(50)], [running("decode")], LIMITS).kind == "prompt"


def test_rows_that_wait_too_long_get_a_few_tokens_between_prompts():
    old = [waiting(age=5, steps=32, name="generate_32") for _ in range(3)]
    batch = next_batch([*old, waiting(50)], [], LIMITS)
    assert batch.members == tuple(old) and batch.short
    assert batch.steps == batch_policy._FEW
    patient = Pace(short=3.0)  # their calls take long
    assert next_batch([*old, waiting(50)], [], LIMITS, patient).kind == "prompt"


def test_prompts_of_like_length_go_together():
    group = [waiting(size) for size in (100, 30, 96, 104, 240)]
    batch = next_batch(group, [], LIMITS)
    assert sizes(batch) == [100, 96, 104]  # in their order
    long = [waiting(500) for _ in range(5)]
    assert len(next_batch(long, [], LIMITS).members) == 2  # 1,024 tokens at most


def test_rows_that_an_export_pads_count_as_padding():
    eight = Limits(lambda call: 8, lambda call, rows: 1 if rows == 1 else 8, 2)
    prompts = [waiting(64) for _ in range(8)]
    assert len(next_batch(prompts[:7], [], eight).members) == 7
    assert len(next_batch(prompts[:3], [], eight).members) == 1


def test_signatures_and_servers_are_kept_apart_and_n_is_not():
    group = [waiting(), waiting(name="generate_32"), waiting(name="session_generate_8")]
    assert len(next_batch(group, [], LIMITS).members) == 2
    left, right = (waiting(replicas=(address,)) for address in "ab")
    two = Limits(lambda call: 32, lambda call, rows: rows, in_flight=4, addresses=2)
    assert next_batch([left, right], [], two).members == (left,)
    busy = [running("decode", replicas=("a",))]
    assert next_batch([left, right], busy, two).members == (right,)


def test_of_more_rows_than_fit_those_of_like_length_go_together():
    def one(cached):
        member = waiting()
        member.call.inputs["cache_length"] = np.array([cached], np.int32)
        return member

    limits = Limits(lambda call: 4, lambda call, rows: rows, in_flight=2)
    lengths = [90, 10, 80, 20, 70, 30, 60]
    group = [one(cached) for cached in lengths]
    first = next_batch(group, [], limits)
    assert {m.cached for m in first.members} == {70, 80, 90}
    assert first.members[0] is group[0]
    second = next_batch([m for m in group if m not in first.members], [], limits)
    assert {m.cached for m in second.members} == {10, 20, 30, 60}


def test_prompts_of_one_server_do_not_hold_up_another():
    two = Limits(lambda call: 32, lambda call, rows: rows, in_flight=4, addresses=2)
    group = [waiting(50, replicas=("a",)), waiting(replicas=("b",))]
    busy = [running("prompt", replicas=("a",))]
    batch = next_batch(group, busy, two)
    assert batch.members == (group[1],) and not batch.short


def test_the_rows_of_a_call_are_bounded_by_its_longest():
    def rows(call):
        return 2 if call.inputs["input_ids"][0, 0] else 32

    short, long = [waiting() for _ in range(4)], waiting()
    long.call.inputs["input_ids"][:] = 1
    limits = Limits(rows, lambda call, rows: rows, 2)
    assert len(next_batch(short, [], limits).members) == 4
    assert len(next_batch([*short[:2], long, *short[2:]], [], limits).members) == 2


def best_steps(asked):
    """Tokens in the time, for every number of steps."""

    def rate(k):
        return sum(min(k, one) for one in asked) / (k + batch_policy._CALL_COST)

    return max(rate(k) for k in range(1, 33)), rate


@pytest.mark.parametrize(
    "asked", [[32], [32, 1], [8] * 7 + [32], [1] * 20 + [32], [3, 9, 27, 32], [5, 5]]
)
def test_steps_make_the_most_tokens_in_the_time(asked):
    group = [waiting(steps=k, name="generate_32") for k in asked]
    batch = next_batch(group, [], LIMITS)
    assert len(batch.members) == len(asked)
    best, rate = best_steps(asked)
    assert rate(batch.steps) == pytest.approx(best)


def test_calls_that_several_share_take_some_seconds_at_most():
    pace = Pace()
    group = [waiting(steps=32, name="generate_32") for _ in range(3)]
    assert next_batch(group, [], LIMITS, pace).steps == batch_policy._FEW
    pace.ended(running("decode"), seconds=2.0, made=8)  # 0.2 s each, as one call's cost
    assert next_batch(group, [], LIMITS, pace).steps == 20
    assert next_batch(group[:1], [], LIMITS, pace).steps == 32


def test_texts_to_score_are_prompts():
    text = waiting(1, name="score")
    assert next_batch([text, waiting()], [], LIMITS).members == (text,)

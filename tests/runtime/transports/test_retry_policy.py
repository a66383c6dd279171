"""Whose turn it is, and what follows a failure, step by step without a network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from optserve.runtime import codec
from optserve.runtime.errors import (
    DeadlineExceeded,
    MalformedReply,
    OptserveError,
    ServerError,
    Unavailable,
    VersionGone,
)
from optserve.runtime.transports.base import Call
from optserve.runtime.transports.connection import Connection, Ejection, Retry
from optserve.runtime.transports.operations import Operations
from optserve.runtime.transports.replicas import Replicas
from optserve.runtime.transports.status_mapping import Outcome
from optserve.runtime.transports.steps import Attempt, Pause

CALL = Call("decode", {"x": np.ones((1, 2), np.float32)})
PINNED = Call("decode", {"x": np.ones((1, 2), np.float32)}, version=1)


# --- whose turn it is --------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def replicas(count: int, clock: Clock, **ejection) -> Replicas:
    names = [f"r{i}" for i in range(count)]
    return Replicas(names, Ejection(**ejection), clock=clock, jitter=lambda: 1.0)


def test_round_robin() -> None:
    turns = replicas(3, Clock())
    assert [turns.pick() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert turns.pick(tried={1}) == 2
    assert turns.pick(tried={0, 1, 2}) is None


def test_ejection_and_return() -> None:
    clock = Clock()
    turns = replicas(3, clock, first=1.0, longest=3.0)
    turns.failed(1)
    assert {turns.pick() for _ in range(6)} == {0, 2}
    assert turns.healthy() == ["r0", "r2"]
    clock.now += 1.01
    picked = [turns.pick() for _ in range(6)]
    assert picked.count(1) == 1  # one call tries it, the others stay away
    turns.succeeded(1)
    assert {turns.pick() for _ in range(3)} == {0, 1, 2}


def test_ejection_doubles_up_to_the_longest() -> None:
    clock = Clock()
    turns = replicas(2, clock, first=1.0, longest=3.0)
    for seconds in (1.0, 2.0, 3.0, 3.0):
        turns.failed(0)
        clock.now += seconds - 0.01
        assert turns.healthy() == ["r1"]
        clock.now += 0.02
        assert turns.healthy() == ["r0", "r1"]


def test_if_all_are_out_the_earliest_back_is_tried() -> None:
    clock = Clock()
    turns = replicas(3, clock)
    for i in (2, 0, 1):
        turns.failed(i)
        clock.now += 0.01
    assert turns.pick() == 2
    assert turns.pick(tried={2}) == 0


# --- the policy, step by step ------------------------------------------------


OK = Outcome(
    "OK", data=codec.encode_predict_response(codec.ModelSpec("opt", "", 1), {})
)
DOWN = Outcome("UNAVAILABLE", "Connection refused")
FULL = Outcome("UNAVAILABLE", "The batch scheduling queue is full")
GONE = Outcome("NOT_FOUND", "Servable not found for request: Specific(opt, 1)")
MEMORY = Outcome("RESOURCE_EXHAUSTED", "OOM when allocating tensor")


def play(answers, *, targets: int = 3, call=CALL, timeout=None, retry=None):
    """Run a call against scripted outcomes (a list, or a function of the index).

    Returns what it returned or raised, the indices tried, and the waits.
    """
    clock = Clock()
    names = tuple(f"r{i}:1" for i in range(targets))
    operations = Operations(
        names,
        "opt",
        Connection(retry=retry or Retry(connect=10, recover=10)),
        clock=clock,
        jitter=lambda: 1.0,
    )
    script = iter(answers) if isinstance(answers, list) else None
    tried: list[int] = []
    waits: list[float] = []
    steps = operations.predict(call, timeout)
    outcome = None
    try:
        while True:
            step = steps.send(outcome)
            if isinstance(step, Pause):
                waits.append(step.seconds)
                clock.now += step.seconds
                outcome = None
                continue
            assert isinstance(step, Attempt)
            tried.append(step.target)
            clock.now += 0.001
            outcome = next(script) if script else answers(step.target)
    except StopIteration as stop:
        return stop.value, tried, waits
    except OptserveError as error:
        return error, tried, waits


def test_other_replicas_are_tried_at_once() -> None:
    reply, tried, waits = play([DOWN, FULL, OK])
    assert (reply.retries, tried, waits) == (2, [0, 1, 2], [])
    assert reply.target == "r2:1"


def test_a_call_goes_to_the_replicas_that_it_names_and_fails_soon() -> None:
    named = replace(CALL, replicas=("r1:1",))
    reply, tried, _ = play([FULL, DOWN, OK], call=named)
    assert (tried, reply.target) == ([1, 1, 1], "r1:1")
    error, tried, waits = play(lambda _: DOWN, call=named)
    assert isinstance(error, Unavailable)
    assert set(tried) == {1}
    assert sum(waits) <= 0.5
    reply, tried, waits = play([FULL] * 6 + [OK], call=named)
    assert reply.retries == 6
    assert sum(waits) > 0.5
    error, tried, _ = play(lambda _: GONE, call=replace(PINNED, replicas=("r1:1",)))
    assert isinstance(error, VersionGone)
    assert tried == [1]


def test_then_it_waits_longer_each_round() -> None:
    reply, tried, waits = play([DOWN] * 3 + [FULL] * 3 + [DOWN] * 3 + [OK])
    assert reply.retries == 9
    assert sorted(tried[:3]) == sorted(tried[3:6]) == [0, 1, 2]
    assert waits == pytest.approx([0.1, 0.2, 0.4])


def test_waits_are_jittered() -> None:
    operations = Operations(("a:1",), "opt", Connection(), jitter=lambda: 0.0)
    steps = operations.predict(CALL, None)
    next(steps)
    step = steps.send(DOWN)
    assert isinstance(step, Pause)
    assert step.seconds == pytest.approx(0.05)


def test_patience_ends() -> None:
    error, tried, waits = play(lambda i: DOWN, retry=Retry(connect=3, longest_wait=1))
    assert isinstance(error, Unavailable)
    assert 2 < sum(waits) <= 3
    assert "r0:1 or the 2 other addresses" in str(error)
    error, tried, waits = play(lambda i: DOWN, retry=Retry(connect=0))
    assert (tried, waits) == ([0, 1, 2], [])


def test_the_last_wait_ends_at_the_deadline() -> None:
    error, _, waits = play(lambda i: DOWN, timeout=1.0)
    assert isinstance(error, DeadlineExceeded)
    assert "Connection refused" in str(error)
    assert sum(waits) == pytest.approx(1.0, abs=0.05)


def test_a_server_out_of_memory_is_not_asked_for_ever() -> None:
    error, tried, _ = play(lambda i: MEMORY, targets=1)
    assert isinstance(error, Unavailable)
    assert "too busy" in str(error)
    assert len(tried) == 5


def test_a_version_missing_on_one_replica() -> None:
    reply, tried, waits = play([GONE, OK], call=PINNED)
    assert (reply.retries, tried, waits) == (1, [0, 1], [])


def test_a_version_missing_everywhere() -> None:
    error, tried, waits = play(lambda i: GONE, call=PINNED)
    assert isinstance(error, VersionGone)
    assert (tried, waits) == ([0, 1, 2], [])


def test_a_version_missing_while_a_replica_is_down() -> None:
    """The one that is down may have it: it gets a little time to come back."""
    answers = [GONE, DOWN, GONE, GONE, GONE, OK]
    reply, _, waits = play(answers, call=PINNED)
    assert reply.retries == 5
    assert len(waits) == 1
    error, _, waits = play(lambda i: DOWN if i else GONE, call=PINNED)
    assert isinstance(error, VersionGone)
    assert 1 < sum(waits) < 3.1


def test_an_unknown_model_is_reported_at_once() -> None:
    error, tried, _ = play(lambda i: GONE)
    assert isinstance(error, ServerError)
    assert not isinstance(error, VersionGone)
    assert tried == [0, 1, 2]


def test_a_refusal_is_not_repeated() -> None:
    error, tried, _ = play(lambda i: Outcome("INVALID_ARGUMENT", "wrong shape"))
    assert isinstance(error, ServerError)
    assert tried == [0]


def test_a_certificate_that_is_not_trusted() -> None:
    untrusted = Outcome("UNAVAILABLE", "SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED")
    error, tried, waits = play(lambda i: untrusted)
    assert isinstance(error, Unavailable)
    assert (tried, waits) == ([0, 1, 2], [])
    # a missing version is an answer: from then on there is patience
    reply, _, waits = play([GONE, untrusted, untrusted, OK], call=PINNED)
    assert (reply.retries, len(waits)) == (3, 1)


def test_nonsense_is_asked_of_the_others_once() -> None:
    error, tried, _ = play(lambda i: Outcome("OK", data=b"\xff"))
    assert isinstance(error, MalformedReply)
    assert tried == [0, 1, 2]
    reply, tried, _ = play([Outcome("OK", data=b"\xff"), OK])
    assert reply.retries == 1


def test_an_answer_from_another_version_is_not_taken() -> None:
    two = codec.encode_predict_response(codec.ModelSpec("opt", "", 2), {})
    reply, tried, _ = play([Outcome("OK", data=two), OK], call=PINNED)
    assert (reply.version, tried) == (1, [0, 1])


@pytest.mark.parametrize("shape", [(), (0,), (2, 8)])
def test_rows_that_were_not_asked_for_are_nonsense(shape) -> None:
    """Also where another version answered than the call was planned for."""
    model, tokens = codec.ModelSpec("opt", "", 2), np.zeros(shape, np.int32)
    wrong = codec.encode_predict_response(model, {"tokens": tokens})
    reply, tried, _ = play([Outcome("OK", data=wrong), OK])
    assert (reply.retries, tried) == (1, [0, 1])


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome("INTERNAL", "Received RST_STREAM with error code 2"),
        Outcome("UNKNOWN", "Stream removed"),
        Outcome("ABORTED", "try again"),
        Outcome("CANCELLED", "CANCELLED"),
        Outcome("DEADLINE_EXCEEDED", "Deadline Exceeded"),
    ],
)
def test_broken_connections_are_retried(outcome) -> None:
    reply, tried, _ = play([outcome, OK], timeout=60)
    assert (reply.retries, tried) == (1, [0, 1])

"""Several replicas: turns, ejection and return, retries, pinned versions."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from optserve.runtime import codec
from optserve.runtime.connection import Connection, Ejection, Retry
from optserve.runtime.errors import (
    DeadlineExceeded,
    MalformedReply,
    OptserveError,
    ServerError,
    Unavailable,
    VersionGone,
)
from optserve.runtime.grpc_core import Core, Pause, Send
from optserve.runtime.grpc_status import Outcome
from optserve.runtime.grpc_transport import GrpcTransport
from optserve.runtime.replicas import Replicas
from optserve.runtime.transport import Call

from .fake_tfs import Blocking, FakeTfs, abort

CALL = Call("decode", {"x": np.ones((1, 2), np.float32)})
PINNED = Call("decode", {"x": np.ones((1, 2), np.float32)}, version=1)
QUICK = Retry(connect=0.4, recover=0.4, first_wait=0.02, longest_wait=0.1)


@pytest.fixture(params=[GrpcTransport, Blocking], ids=["blocking", "asyncio"])
def connect(request):
    """Makes a transport of either kind; closed at the end."""
    made = []

    def make(targets, **options):
        transport = request.param(targets, model="opt", **options)
        made.append(transport)
        return transport

    yield make
    for transport in made:
        transport.__exit__(None, None, None)


@pytest.fixture
def three():
    with FakeTfs() as a, FakeTfs() as b, FakeTfs() as c:
        yield [a, b, c]


def addresses(servers) -> list[str]:
    return [server.target for server in servers]


# --- whose turn it is -----------------------------------------------------------


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


# --- the policy, step by step ---------------------------------------------------


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
    core = Core(
        names,
        "opt",
        Connection(retry=retry or Retry(connect=10, recover=10)),
        clock=clock,
        jitter=lambda: 1.0,
    )
    script = iter(answers) if isinstance(answers, list) else None
    tried: list[int] = []
    waits: list[float] = []
    steps = core.predict(call, timeout)
    outcome = None
    try:
        while True:
            step = steps.send(outcome)
            if isinstance(step, Pause):
                waits.append(step.seconds)
                clock.now += step.seconds
                outcome = None
                continue
            assert isinstance(step, Send)
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


def test_then_it_waits_longer_each_round() -> None:
    reply, tried, waits = play([DOWN] * 3 + [FULL] * 3 + [DOWN] * 3 + [OK])
    assert reply.retries == 9
    assert sorted(tried[:3]) == sorted(tried[3:6]) == [0, 1, 2]
    assert waits == pytest.approx([0.1, 0.2, 0.4])


def test_waits_are_jittered() -> None:
    core = Core(("a:1",), "opt", Connection(), jitter=lambda: 0.0)
    steps = core.predict(CALL, None)
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


# --- real connections -----------------------------------------------------------


def test_calls_go_round(three, connect) -> None:
    transport = connect(addresses(three))
    targets = [transport.call(CALL, timeout=10).target for _ in range(6)]
    assert targets == addresses(three) * 2


def test_a_dead_replica_costs_one_attempt(three, connect) -> None:
    transport = connect(addresses(three))
    three[1].stop()
    replies = [transport.call(CALL, timeout=10) for _ in range(12)]
    assert sum(reply.retries for reply in replies) <= 2
    assert {reply.target for reply in replies} == {three[0].target, three[2].target}


def test_a_replica_that_returns_is_used_again(three, connect) -> None:
    transport = connect(addresses(three), ejection=Ejection(first=0.1, longest=0.2))
    three[0].stop()
    for _ in range(6):
        transport.call(CALL, timeout=10)
    three[0].start()
    before = three[0].served
    end = time.monotonic() + 5
    while three[0].served == before and time.monotonic() < end:
        transport.call(CALL, timeout=10)
        time.sleep(0.02)
    assert three[0].served > before


def test_a_replica_that_dies_during_a_call(three, connect) -> None:
    arrived = threading.Event()

    def die(data, context):
        arrived.set()
        time.sleep(1)
        return b""

    three[0].behave = die
    transport = connect(addresses(three))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(transport.call, CALL, timeout=10)
        assert arrived.wait(5)
        three[0].stop()
        reply = running.result(10)
    assert reply.retries == 1
    assert reply.target == three[1].target


def test_a_stalled_replica_with_a_time_for_each_attempt(three, connect) -> None:
    release = threading.Event()
    three[0].behave = lambda data, context: release.wait(20) and b""
    transport = connect(addresses(three), attempt_timeout=0.3)
    start = time.monotonic()
    reply = transport.call(CALL, timeout=10)
    assert reply.retries == 1
    assert 0.25 < time.monotonic() - start < 2
    release.set()


def test_a_replica_that_sends_garbage(three, connect) -> None:
    three[0].behave = lambda data, context: b"\xff\xff"
    reply = connect(addresses(three)).call(CALL, timeout=10)
    assert (reply.retries, reply.target) == (1, three[1].target)


def test_a_full_queue(three, connect) -> None:
    for server in three:
        server.behave = abort("UNAVAILABLE", "The batch scheduling queue is full")
    transport = connect(addresses(three), retry=QUICK)
    with pytest.raises(Unavailable, match="all 3 servers are too busy"):
        transport.call(CALL, timeout=10)
    three[2].behave = None
    assert transport.call(CALL, timeout=10).target == three[2].target


def test_pinned_versions(three, connect) -> None:
    three[0].versions = three[1].versions = (2,)
    transport = connect(addresses(three))
    for _ in range(3):
        reply = transport.call(PINNED, timeout=10)
        assert (reply.version, reply.target) == (1, three[2].target)
    assert {transport.call(CALL, timeout=10).version for _ in range(3)} == {1, 2}
    three[2].versions = (2,)
    with pytest.raises(VersionGone, match="version 1 of model 'opt'") as caught:
        transport.call(PINNED, timeout=10)
    assert caught.value.code == "NOT_FOUND"


def test_a_single_server_that_restarts(connect) -> None:
    with FakeTfs() as server:
        transport = connect(server.target)
        transport.call(CALL, timeout=10)
        server.stop()
        timer = threading.Timer(0.7, server.start)
        timer.start()
        reply = transport.call(CALL, timeout=20)
        assert reply.retries > 0
        timer.join()


def test_replicas_killed_and_restarted_under_load(three, connect) -> None:
    """Every call gets its own right answer whatever happens to the servers."""
    transport = connect(
        addresses(three), ejection=Ejection(first=0.05, longest=0.2), retry=Retry()
    )
    stop = threading.Event()
    chaos = random.Random(3)

    def disturb() -> None:
        while not stop.is_set():
            victim = chaos.choice(three)
            victim.stop()
            stop.wait(chaos.uniform(0.02, 0.2))
            victim.start()
            stop.wait(0.05)

    def work(i: int) -> bool:
        x = np.full((4, 1000), i, np.float32)
        reply = transport.call(Call("decode", {"x": x}), timeout=30)
        return bool((reply.outputs["y"] == 2 * i).all())

    disturber = threading.Thread(target=disturb)
    disturber.start()
    with ThreadPoolExecutor(6) as pool:
        right = list(pool.map(work, range(600)))
    stop.set()
    disturber.join()
    assert all(right)
    assert len(right) == 600

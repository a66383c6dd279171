"""Replicas that die, return, stall or lose a version, over real connections."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from optserve.runtime.errors import Unavailable, VersionGone
from optserve.runtime.transports.base import Call
from optserve.runtime.transports.connection import Ejection, Retry

from tests.runtime.fake_tfs import FakeTfs, abort

CALL = Call("decode", {"x": np.ones((1, 2), np.float32)})
PINNED = Call("decode", {"x": np.ones((1, 2), np.float32)}, version=1)
QUICK = Retry(connect=0.4, recover=0.4, first_wait=0.02, longest_wait=0.1)


@pytest.fixture
def three():
    with FakeTfs() as a, FakeTfs() as b, FakeTfs() as c:
        yield [a, b, c]


def addresses(servers) -> list[str]:
    return [server.target for server in servers]


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

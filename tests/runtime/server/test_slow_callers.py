"""Calls that are half sent, slow, or too many hold up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from optserve.runtime.errors import OptserveError
from optserve.runtime.server import receptions
from optserve.runtime.server.address import Address
from optserve.runtime.server.grpc_front import GrpcFront, Limits, Workers
from optserve.runtime.server.receptions import Receptions
from optserve.runtime.server.serving_error import ServingError

from .raw_http2 import RawConnection

METHOD = "/a.Service/Method"


@contextlib.contextmanager
def serving(method, limits: Limits | None = None):
    """The target of a server with one method."""
    front = GrpcFront({"a.Service": {"Method": method}}, limits or Limits())
    address = Address("127.0.0.1", 0, None)
    front.start(address, None)
    try:
        yield address.target
    finally:
        front.stop(0)


@contextlib.contextmanager
def half_sent(target: str, count: int):
    """So many calls that have begun and send no message, on a few connections."""
    end = threading.Event()

    def nothing_yet():
        end.wait()
        yield from ()

    channels = [grpc.insecure_channel(target) for _ in range(4)]
    calls = []
    for i in range(count):
        call = channels[i % 4].stream_unary(METHOD)
        calls.append(call.future(nothing_yet(), metadata=[("number", str(i))]))
    try:
        yield calls
    finally:
        for call in calls:
            call.cancel()
        end.set()
        for channel in channels:
            channel.close()


def test_a_thousand_half_sent_calls_leave_a_quick_caller_quick():
    with (
        serving(bytes.upper, Limits(threads=2)) as target,
        half_sent(target, 1000) as slow,
        grpc.insecure_channel(target) as channel,
    ):
        quick = channel.unary_unary(METHOD)
        for _ in range(20):
            assert quick(b"quick", timeout=10, wait_for_ready=True) == b"QUICK"
        assert not any(call.done() for call in slow)


def test_a_message_that_does_not_come_ends_its_call():
    limits = Limits(receive_seconds=0.2)
    with serving(bytes.upper, limits) as target, half_sent(target, 10) as slow:
        for call in slow:
            error = call.exception(timeout=10)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "did not arrive as a whole within 0.2 s" in error.details()


@pytest.mark.parametrize(("left", "ended"), [(100, 10), (None, 0), (1 << 40, 0)])
def test_where_memory_is_short_slow_messages_are_given_up(monkeypatch, left, ended):
    """The longest under way first; quick callers notice nothing."""
    monkeypatch.setattr(receptions, "_SLOW_SECONDS", 0.2)
    monkeypatch.setattr(receptions, "_LOOK_SECONDS", 0.05)
    monkeypatch.setitem(Receptions.__init__.__kwdefaults__, "available", lambda: left)
    with (
        serving(bytes.upper) as target,
        half_sent(target, 10) as slow,
        grpc.insecure_channel(target) as channel,
    ):
        quick = channel.unary_unary(METHOD)
        for _ in range(20):
            assert quick(b"quick", timeout=10, wait_for_ready=True) == b"QUICK"
            time.sleep(0.05)
        errors = [call.exception(timeout=10) for call in slow[:ended]]
        assert sum(call.done() for call in slow) == ended
    assert {error.code().name for error in errors} <= {"RESOURCE_EXHAUSTED"}
    assert all("short of memory" in error.details() for error in errors)


def test_the_longest_under_way_are_given_up_first(monkeypatch):
    monkeypatch.setattr(receptions, "_SLOW_SECONDS", 0.0)

    async def go() -> list[bool]:
        receiving = Receptions(seconds=9, spare_bytes=10, available=lambda: 9)
        calls = []
        for _ in range(4):
            never = asyncio.get_running_loop().create_future()
            calls.append(asyncio.create_task(receiving.whole(never)))
            await asyncio.sleep(0.01)
        receiving.look()
        await asyncio.sleep(0.01)
        ended = [call.done() for call in calls]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        return ended

    assert asyncio.run(go()) == [True, True, False, False]


def test_a_call_without_a_message_is_refused():
    with serving(bytes.upper) as target, grpc.insecure_channel(target) as channel:
        with pytest.raises(grpc.RpcError) as refusal:
            channel.stream_unary(METHOD)(iter(()), timeout=10)
        assert refusal.value.code() is grpc.StatusCode.INTERNAL
        assert channel.unary_unary(METHOD)(b"x", timeout=10) == b"X"


class Blocked:
    """A method that runs until it is let go."""

    def __init__(self) -> None:
        self.started, self.go = threading.Semaphore(0), threading.Event()
        self.calls = 0

    def __call__(self, data: bytes) -> bytes:
        self.calls += 1
        self.started.release()
        assert self.go.wait(20)
        return data


def test_more_calls_than_can_wait_are_refused_as_overload():
    method = Blocked()
    with (
        serving(method, Limits(threads=1, waiting=2)) as target,
        grpc.insecure_channel(target) as channel,
        ThreadPoolExecutor(4) as pool,
    ):
        call = channel.unary_unary(METHOD)
        first = pool.submit(call, b"1", timeout=20)
        assert method.started.acquire(timeout=10)
        others = [pool.submit(call, b"2", timeout=20) for _ in range(3)]
        refused = next(f for f in iterate_done(others))
        assert refused.exception().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.exception().details() == "Server Threadpool Exhausted"
        method.go.set()
        assert first.result(10) == b"1"
        assert sum(f.exception(10) is None for f in others) == 2


def iterate_done(futures):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        yield from (f for f in futures if f.done())
        time.sleep(0.01)


def test_a_crowd_is_answered_or_refused_and_nobody_is_cut_off():
    with (
        serving(bytes.upper, Limits(threads=4)) as target,
        grpc.insecure_channel(target) as channel,
    ):
        call = channel.unary_unary(METHOD)
        crowd = [call.future(b"x", timeout=60) for _ in range(3000)]
        answers = [future.exception(60) for future in crowd]
    codes = {answer and answer.code().name for answer in answers}
    assert None in codes and codes <= {None, "RESOURCE_EXHAUSTED"}


def test_a_call_given_up_while_it_waits_never_runs():
    method = Blocked()
    with (
        serving(method, Limits(threads=1)) as target,
        grpc.insecure_channel(target) as channel,
    ):
        call = channel.unary_unary(METHOD)
        first = call.future(b"1", timeout=20)
        assert method.started.acquire(timeout=10)
        with pytest.raises(grpc.RpcError):
            call(b"2", timeout=0.1)
        time.sleep(0.2)  # its end reaches the server
        method.go.set()
        assert first.result(10) == b"1" and call(b"3", timeout=10) == b"3"
        assert method.calls == 2


def test_bytes_held_are_bounded():
    method = Blocked()
    workers = Workers(Limits(threads=2, held_bytes=100))
    first = workers.submit(method, b"x" * 300)  # one may be larger than the bound
    assert method.started.acquire(timeout=10)
    with pytest.raises(ServingError, match="Exhausted"):
        workers.submit(method, b"x")
    assert workers.largest_message() == 300
    method.go.set()
    assert first.result(10) == b"x" * 300
    assert workers.submit(method, b"y").result(10) == b"y"
    assert workers.largest_message() <= 300 and workers.largest_message() == 0
    with pytest.raises(AttributeError):
        workers.submit(lambda data: data.nothing, b"z" * 50).result(10)
    assert workers.largest_message() == 50  # refused, and it took its memory
    workers.unread(80)
    assert workers.largest_message() == 80 == workers.largest_message()
    with pytest.raises(ServingError, match="Exhausted"):
        workers.submit(method, b"x" * 21)
    workers.unread(-80)
    assert workers.largest_message() == 0
    workers.close()


def test_replies_that_nobody_reads_are_bounded():
    """A caller that takes no byte of its replies, though it asks for more and more."""
    limits = Limits(held_bytes=10 << 20)
    with (
        serving(lambda data: bytes(3 << 20), limits) as target,
        grpc.insecure_channel(target, [("grpc.max_receive_message_length", -1)]) as ch,
    ):
        quick = ch.unary_unary(METHOD)
        with RawConnection(target, window=0) as mute:
            for _ in range(6):
                mute.call(METHOD, b"x")
            refusal = eventually(lambda: error_of(quick))
            assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        eventually(lambda: error_of(quick) is None)
        assert len(quick(b"x", timeout=10)) == 3 << 20


def error_of(call) -> grpc.RpcError | None:
    try:
        call(b"x", timeout=10)
    except grpc.RpcError as error:
        return error
    return None


def eventually(holds):
    """What ``holds`` gives once that is true."""
    deadline = time.monotonic() + 10
    while not (answer := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


@pytest.mark.parametrize("details", ["x" * 10**6, "é" * 10**5, "\U0001f600" * 10**5])
def test_a_long_refusal_arrives_as_what_it_is(details):
    """Details travel as a header, and gRPC refuses a long one with a status of its own,
    which a client takes for an overload."""

    def refuse(data: bytes) -> bytes:
        raise ServingError(grpc.StatusCode.NOT_FOUND, details)

    with serving(refuse) as target, grpc.insecure_channel(target) as channel:
        refusal = error_of(channel.unary_unary(METHOD))
    assert refusal is not None and refusal.code() is grpc.StatusCode.NOT_FOUND
    assert refusal.details()[:100] == details[:100] and refusal.details()[-1] == "…"


def test_a_refusal_names_a_path_of_any_bytes():
    path = os.fsdecode(b"/models/\xff\xfe")
    error = ServingError(grpc.StatusCode.INTERNAL, f"no {path}")
    assert error.details == r"no /models/\udcff\udcfe"


def test_an_address_that_cannot_be_had_leaves_no_thread():
    before = set(threading.enumerate())  # some of which may just end
    front = GrpcFront({}, Limits())
    with pytest.raises(OptserveError, match="cannot listen"):
        front.start(Address("192.0.2.1", 8500, None), None)
    assert set(threading.enumerate()) <= before


def test_stopping_ends_calls_that_are_half_sent():
    front = GrpcFront({"a.Service": {"Method": bytes.upper}}, Limits())
    address = Address("127.0.0.1", 0, None)
    front.start(address, None)
    with half_sent(address.target, 20) as slow:
        grpc.channel_ready_future(grpc.insecure_channel(address.target)).result(10)
        begin = time.monotonic()
        front.stop(0.1)
        assert time.monotonic() - begin < 5 and front.wait(0)
        assert all(call.exception(10) is not None for call in slow)
    front.stop(0)

"""Both gRPC transports against one server: calls, options, status, endings."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from optserve.runtime.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    Unavailable,
)
from optserve.runtime.transports.base import Call
from optserve.runtime.transports.connection import Connection, Retry, Tls
from optserve.runtime.transports.grpc_async import AsyncGrpcTransport
from optserve.runtime.transports.grpc_sync import GrpcTransport

from tests.runtime.fake_tfs import Blocking, FakeTfs, abort
from tests.runtime.overrun import SLACK, overrun

X = np.arange(6, dtype=np.float32).reshape(2, 3)
CALL = Call("decode", {"x": X})


# --- calls -------------------------------------------------------------------


def test_a_call(server, connect) -> None:
    reply = connect(server.target).call(CALL, timeout=10)
    np.testing.assert_array_equal(reply.outputs["y"], X * 2)
    assert reply.version == 1
    assert reply.target == server.target
    assert reply.retries == 0
    assert reply.seconds > 0
    assert reply.bytes_sent > X.nbytes
    assert reply.bytes_received > X.nbytes


def test_messages_far_above_grpcs_default_limit(server, connect) -> None:
    cache = np.ones((1, 256, 12, 2, 12, 64), np.float32)
    reply = connect(server.target).call(Call("decode", {"x": cache}), timeout=30)
    assert reply.outputs["y"].shape == cache.shape
    assert float(reply.outputs["y"][0, -1, -1, -1, -1, -1]) == 2


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compression(server, connect, compression) -> None:
    zeros = Call("decode", {"x": np.zeros(100_000, np.float32)})
    reply = connect(server.target, compression=compression).call(zeros, timeout=10)
    assert not reply.outputs["y"].any()


def test_unix_socket(tmp_path, connect) -> None:
    with FakeTfs(address=f"unix:{tmp_path}/s") as server:
        assert connect(server.target).call(CALL, timeout=10).version == 1


def test_dns_target(server, connect) -> None:
    port = server.target.rpartition(":")[2]
    reply = connect(f"dns:///localhost:{port}").call(CALL, timeout=10)
    assert reply.version == 1


def test_a_proxy_is_not_asked_for_this_machine(server, connect, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    transport = connect(server.target, retry=Retry(connect=0))
    assert transport.call(CALL, timeout=10).version == 1


def test_from_many_threads(server, connect) -> None:
    transport = connect(server.target)

    def work(i: int) -> bool:
        x = np.full((3, 3), i, np.float32)
        reply = transport.call(Call("decode", {"x": x}), timeout=20)
        return bool((reply.outputs["y"] == 2 * i).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))


# --- what goes with a call ---------------------------------------------------


def test_metadata_and_user_agent(server, connect) -> None:
    pairs = [("Authorization", "Bearer abc"), ("trace-bin", b"\x00\xff")]
    transport = connect(server.target, metadata=pairs, user_agent="mine/1")
    transport.call(CALL, timeout=10)
    (got,) = server.metadata
    assert got["authorization"] == "Bearer abc"
    assert got["trace-bin"] == b"\x00\xff"
    assert got["user-agent"].startswith("mine/1 ")


def test_metadata_function_runs_for_each_attempt(server, connect) -> None:
    tokens = iter(range(10))
    server.behave = abort("UNAVAILABLE", "queue full")
    transport = connect(
        server.target,
        metadata=lambda: [("authorization", f"Bearer {next(tokens)}")],
        retry=Retry(connect=0.3, recover=0.3, first_wait=0.05),
    )
    with pytest.raises(Unavailable, match="too busy"):
        transport.call(CALL, timeout=10)
    assert [m["authorization"] for m in server.metadata[:2]] == ["Bearer 0", "Bearer 1"]


def test_awaitable_metadata(server) -> None:
    async def token():
        await asyncio.sleep(0)
        return [("authorization", "Bearer later")]

    with Blocking(server.target, model="opt", metadata=token) as transport:
        transport.call(CALL, timeout=10)
    assert server.metadata[0]["authorization"] == "Bearer later"
    with (
        pytest.warns(RuntimeWarning, match="never awaited"),
        GrpcTransport(server.target, model="opt", metadata=token) as transport,
        pytest.raises(InvalidRequest, match="asyncio"),
    ):
        transport.call(CALL, timeout=10)


@pytest.mark.parametrize(
    "pair",
    [
        ("authorization", "Bearer s3cret\n"),
        ("authorization", b"s3cret"),
        ("a b", "s3cret"),
        ("x-bin", "s3cret"),
        ("grpc-timeout", "s3cret"),
        ("authorization", "s3cret-ü"),
    ],
)
def test_metadata_that_cannot_be_sent(connect, pair) -> None:
    for source in ([pair], lambda: [pair]):
        with pytest.raises(InvalidRequest, match="call metadata") as caught:
            connect("127.0.0.1:1", metadata=source).call(CALL, timeout=5)
        assert "s3cret" not in str(caught.value)


def test_secrets_are_not_shown(connect, authority, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    chain, key = authority.issue("me")
    tls = Tls(roots=authority.roots, certificate_chain=chain, private_key=key)
    options = Connection(metadata=[("authorization", "s3cret")], tls=tls)
    assert "s3cret" not in repr(options)
    assert "PRIVATE KEY" not in repr(options)
    transport = connect(
        ["127.0.0.1:1", "127.0.0.1:2"],
        metadata=[("authorization", "s3cret")],
        retry=Retry(connect=0),
    )
    with pytest.raises(Unavailable) as caught:
        transport.call(CALL, timeout=5)
    assert "s3cret" not in str(caught.value) + caplog.text
    assert caplog.text  # something was logged


# --- deadlines ---------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.2, 0.7])
def test_a_stalled_server_is_cut_at_the_deadline(server, connect, seconds) -> None:
    release = threading.Event()
    server.behave = lambda data, context: release.wait(20) and b""
    transport = connect(server.target)
    transport.wait_until_ready(5)  # connected
    work = lambda: transport.call(CALL, timeout=seconds)  # noqa: E731
    assert abs(overrun(work, seconds)) < SLACK
    release.set()


def test_the_deadline_holds_over_retries(connect) -> None:
    transport = connect("127.0.0.1:1", retry=Retry(connect=60))
    work = lambda: transport.call(CALL, timeout=0.6)  # noqa: E731
    assert abs(overrun(work, 0.6)) < SLACK


def test_the_deadline_holds_while_connecting(connect) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        transport = connect(f"127.0.0.1:{silent.getsockname()[1]}")
        work = lambda: transport.call(CALL, timeout=0.5)  # noqa: E731
        assert abs(overrun(work, 0.5)) < SLACK


def test_no_time_left(server, connect) -> None:
    for timeout in (0.0, -1.0):
        with pytest.raises(DeadlineExceeded):
            connect(server.target).call(CALL, timeout=timeout)
    assert not server.metadata


# --- status ------------------------------------------------------------------


def test_status_and_readiness(server, connect) -> None:
    server.versions = (3, 5)
    transport = connect([server.target, "127.0.0.1:1"])
    up, down = transport.status(timeout=5)
    assert [v.version for v in up.versions] == [5, 3]
    assert up.available
    assert not up.error
    assert down.target == "127.0.0.1:1"
    assert not down.available
    assert "UNAVAILABLE" in down.error
    transport.wait_until_ready(timeout=5)


def test_readiness_is_waited_for(connect) -> None:
    with FakeTfs() as server:
        server.stop()
        transport = connect(server.target)
        begin = time.monotonic()
        with pytest.raises(Unavailable):
            transport.wait_until_ready(0.5)
        assert time.monotonic() - begin < 5
        server.start()
        server.state = "LOADING"
        with pytest.raises(Unavailable, match="version 1 LOADING"):
            transport.wait_until_ready(1.2)
        timer = threading.Timer(0.3, lambda: setattr(server, "state", "AVAILABLE"))
        timer.start()
        transport.wait_until_ready(5)


def test_readiness_of_another_model(server, connect) -> None:
    with pytest.raises(Unavailable, match=r"'other' was not ready.*NOT_FOUND"):
        connect(server.target, model="other").wait_until_ready(1)


def test_metadata_of_signatures(server, connect, data_dir) -> None:
    recorded = data_dir / "tfs-recordings" / "typed_fields" / "metadata.response.bin"
    server.behave = lambda data, context: recorded.read_bytes()
    got = connect(server.target).metadata(timeout=5)
    assert got.model.version == 1
    assert got.signatures["prefill"].inputs["x"].shape == (None, 4)


# --- endings -----------------------------------------------------------------


def test_closing_breaks_off_calls(server, connect) -> None:
    release, arrived = threading.Event(), threading.Event()

    def stall(data, context):
        arrived.set()
        release.wait(20)
        return b""

    server.behave = stall
    transport = connect(server.target)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(transport.call, CALL, timeout=20)
        assert arrived.wait(5)
        transport.close()
        with pytest.raises(Cancelled, match="closed"):
            running.result(5)
        release.set()
    with pytest.raises(Cancelled, match="closed"):
        transport.call(CALL, timeout=5)
    transport.close()


def test_closing_ends_a_pause(connect) -> None:
    wait = Retry(connect=60, first_wait=60, longest_wait=60)
    transport = connect("127.0.0.1:1", retry=wait)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(transport.call, CALL)
        time.sleep(0.3)
        transport.close()
        with pytest.raises(Cancelled, match="closed"):
            running.result(2)


def test_cancelling_a_task_cancels_the_call(server) -> None:
    arrived, ended = threading.Event(), threading.Event()

    def stall(data, context):
        context.add_callback(ended.set)
        arrived.set()
        ended.wait(20)
        return b""

    server.behave = stall

    async def main() -> None:
        async with AsyncGrpcTransport(server.target, model="opt") as transport:
            task = asyncio.create_task(transport.call(CALL, timeout=20))
            await asyncio.to_thread(arrived.wait, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(ended.wait, 5)  # the server was told
            server.behave = None
            assert (await transport.call(CALL, timeout=5)).version == 1

    asyncio.run(main())


def test_another_event_loop(server) -> None:
    transport = AsyncGrpcTransport(server.target, model="opt")

    async def use() -> None:
        await transport.call(CALL, timeout=5)

    async def first() -> None:
        await use()
        with pytest.raises(InvalidRequest, match="another event loop"):
            await asyncio.to_thread(asyncio.run, use())
        await transport.close()

    asyncio.run(first())


def test_after_a_fork(server, connect, monkeypatch) -> None:
    transport = connect(server.target)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(InvalidRequest, match="fork"):
        transport.call(CALL, timeout=5)

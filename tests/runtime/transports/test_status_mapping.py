"""What the gRPC transports refuse, and how they report what a server refuses."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from optserve.runtime.errors import (
    IncompatibleModel,
    InvalidRequest,
    MalformedReply,
    ServerError,
    Unavailable,
)
from optserve.runtime.transports.base import Call
from optserve.runtime.transports.connection import Keepalive, Limits, Retry, Tls

from tests.runtime.fake_tfs import FakeTfs, abort

X = np.arange(6, dtype=np.float32).reshape(2, 3)
CALL = Call("decode", {"x": X})


def test_connection_refused(connect) -> None:
    transport = connect("127.0.0.1:1", retry=Retry(connect=0.2))
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 .*refused.*optserve serve"):
        transport.call(CALL, timeout=10)


@pytest.mark.parametrize(
    ("code", "details", "error", "words"),
    [
        (
            "INTERNAL",
            "XLA compilation disabled\n\t [[{{node x}}]]",
            ServerError,
            "--xla_cpu_compilation_enabled=true",
        ),
        (
            "FAILED_PRECONDITION",
            'Serving signature key "decode" not found.',
            IncompatibleModel,
            "no signature 'decode'.*optserve export",
        ),
        ("INVALID_ARGUMENT", "Expects arg[0] to be float", ServerError, "Expects arg"),
        ("PERMISSION_DENIED", "no", ServerError, "bearer token"),
        ("UNIMPLEMENTED", "", IncompatibleModel, "not a TensorFlow Serving"),
        (
            "RESOURCE_EXHAUSTED",
            "SERVER: Received message larger than max (9 vs. 4)",
            InvalidRequest,
            "request is larger than a limit",
        ),
        (
            "RESOURCE_EXHAUSTED",
            "SERVER: Sent message larger than max (9 vs. 4)",
            InvalidRequest,
            "reply is larger than a limit",
        ),
    ],
)
def test_final_refusals(server, connect, code, details, error, words) -> None:
    server.behave = abort(code, details)
    with pytest.raises(error, match=words) as caught:
        connect(server.target).call(CALL, timeout=10)
    if isinstance(caught.value, ServerError):
        assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert len(server.metadata) == 1


def test_a_servers_own_limit(connect) -> None:
    with FakeTfs(options=[]) as server:
        big = Call("decode", {"x": np.zeros(2_000_000, np.float32)})
        with pytest.raises(InvalidRequest, match="request is larger than a limit"):
            connect(server.target).call(big, timeout=10)


def test_another_kind_of_server(connect) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(IncompatibleModel, match="not a TensorFlow Serving"):
        connect(f"127.0.0.1:{port}").call(CALL, timeout=10)
    server.stop(0)


def test_not_a_grpc_server(connect) -> None:
    with socket.socket() as web:
        web.bind(("127.0.0.1", 0))
        web.listen()

        def answer() -> None:
            while True:
                try:
                    with web.accept()[0] as client:
                        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                except OSError:
                    return

        threading.Thread(target=answer, daemon=True).start()
        transport = connect(
            f"127.0.0.1:{web.getsockname()[1]}", retry=Retry(connect=0.2)
        )
        with pytest.raises(Unavailable, match="no server answers"):
            transport.call(CALL, timeout=10)
        web.shutdown(socket.SHUT_RDWR)


def test_unknown_model(server, connect) -> None:
    with pytest.raises(ServerError, match="no model named 'other'") as caught:
        connect(server.target, model="other").call(CALL, timeout=10)
    assert caught.value.code == "NOT_FOUND"


def test_garbage(server, connect) -> None:
    server.behave = lambda data, context: b"\xff\xff"
    with pytest.raises(MalformedReply, match="does not end"):
        connect(server.target).call(CALL, timeout=10)
    assert len(server.metadata) == 1


def test_requests_above_the_limit_are_not_sent(server, connect) -> None:
    transport = connect(server.target, limits=Limits(message=1000))
    with pytest.raises(InvalidRequest, match="at most 1000"):
        transport.call(Call("decode", {"x": np.zeros(999)}), timeout=10)
    assert not server.metadata


@pytest.mark.parametrize(
    "targets",
    ["", [], "localhost", "http://a:1", "a:70000", "a:1/b", ["127.0.0.1:1", "b"], [3]],
)
def test_wrong_addresses(connect, targets) -> None:
    with pytest.raises(InvalidRequest, match="address"):
        connect(targets)


def test_wrong_options(connect, tmp_path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    for options, words in (
        ({"tls": Tls(roots=tmp_path / "nowhere.pem")}, "No such file"),
        ({"tls": Tls(roots=str(empty))}, "must be PEM text"),
        ({"compression": "zip"}, "compression"),
        ({"attempt_timeout": 0}, "attempt_timeout"),
        ({"model": ""}, "no name"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            connect("127.0.0.1:1", **options)
    for make in (
        lambda: Tls(private_key=b"x"),
        lambda: Keepalive(interval=0),
        lambda: Limits(message=1 << 31),
        lambda: Retry(connect=-1),
    ):
        with pytest.raises(InvalidRequest):
            make()


LONG = "x" * 50_000


@pytest.mark.parametrize("place", ["details", "trailing", "initial"])
def test_a_reply_with_headers_beyond_measure_is_no_overload(server, connect, place):
    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        if place == "initial":
            context.send_initial_metadata([("x", LONG)])
        elif place == "trailing":
            context.set_trailing_metadata([("x", LONG)])
        context.abort(grpc.StatusCode.INTERNAL, LONG if place == "details" else "")
        raise AssertionError("abort raises")

    server.behave = answer
    with pytest.raises(MalformedReply, match="metadata size exceeds"):
        connect(server.target).call(CALL, timeout=10)


def test_metadata_that_no_server_takes_is_told(server, connect):
    with pytest.raises(
        InvalidRequest, match=r"call metadata is larger than 127.* less"
    ):
        connect(server.target, metadata=[("x", LONG)]).call(CALL, timeout=10)


@pytest.mark.parametrize("target", ["dns:///", "ipv4:999.1.1.1:1", f"unix:{'x' * 200}"])
def test_addresses_that_grpc_makes_no_channel_of(connect, target):
    with pytest.raises(InvalidRequest, match="is not a server's address"):
        connect(target).call(CALL, timeout=10)


def test_a_name_that_is_no_text(connect):
    """As an argument's bytes become that are not UTF-8."""
    with pytest.raises(InvalidRequest, match=r"name '\\udcff' is not text"):
        connect("127.0.0.1:1", model="\udcff")

"""Connections that send half a request, or take no answer, end; others go on."""

from __future__ import annotations

import json
import socket
import ssl
import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from optserve.runtime.gateway import GatewaySettings
from optserve.runtime.gateway.connections import BoundedConnection

from .conftest import running

BODY = {"prompt": [2, 5], "max_tokens": 3, "ignore_eos": True, "return_token_ids": True}
DATA = json.dumps(BODY).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(DATA)
QUESTION = HEAD + b"\r\n" + DATA
HALF_SENT = {
    "nothing": b"",
    "half a line": QUESTION[:10],
    "half a head": QUESTION[:45],
    "a request, and half a head": QUESTION + QUESTION[:45],
    "half a body that nobody reads": b"POST / HTTP/1.1\r\nHost: x\r\n"
    b"Content-Length: 9\r\n\r\n1",
}


@contextmanager
def callers(address: str, count: int, data: bytes = b""):
    """So many connections that have sent this, and send no more by themselves."""
    host, port = address.rpartition("/")[2].split(":")
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            caller = stack.enter_context(socket.create_connection((host, int(port))))
            caller.settimeout(20)
            caller.sendall(data)
            opened.append(caller)
        yield opened


def ends(caller: socket.socket) -> bytes:
    """All that comes until the other side ends the connection."""
    received = bytearray()
    try:
        while data := caller.recv(1 << 16):
            received += data
    except ConnectionResetError:
        pass
    return bytes(received)


def answered(address: str, **options) -> list[int]:
    """What an ordinary caller gets."""
    answer = httpx.post(f"{address}/v1/completions", json=BODY, timeout=20, **options)
    return answer.json()["choices"][0]["token_ids"]


@pytest.mark.parametrize("data", HALF_SENT.values(), ids=HALF_SENT)
def test_a_request_that_does_not_come_ends_its_connection(monkeypatch, data):
    monkeypatch.setattr(BoundedConnection, "request_seconds", 0.3)
    with running() as (address, _), callers(address, 20, data) as slow:
        assert len(answered(address)) == 3
        for caller in slow:
            assert ends(caller).count(b"HTTP/1.1") == (len(data) > 100) + (b"9" in data)


def test_a_head_byte_by_byte_takes_no_longer(monkeypatch):
    monkeypatch.setattr(BoundedConnection, "request_seconds", 0.3)
    with running() as (address, _), callers(address, 1) as (slow,):
        begin = time.monotonic()
        with pytest.raises(OSError):  # the other side has gone
            for _ in range(400):
                slow.sendall(b"x")
                time.sleep(0.01)
        assert time.monotonic() - begin < 3


def test_an_answer_may_take_longer_than_a_request(monkeypatch):
    seconds = 0.8  # also a busy machine sends a request in less
    monkeypatch.setattr(BoundedConnection, "request_seconds", seconds)
    with running(delay=seconds + 0.1) as (address, _):
        with callers(address, 1, QUESTION) as (caller,):
            assert b"200 OK" in ends(caller)
        with httpx.Client(base_url=address) as http:
            for _ in range(2):  # on one connection
                assert http.post("/v1/completions", json=BODY).status_code == 200


def test_many_idle_connections_give_way_to_whoever_asks(monkeypatch):
    monkeypatch.setattr(BoundedConnection, "most_idle", 8)
    with running() as (address, _), callers(address, 100, QUESTION[:30]) as slow:
        assert len(answered(address)) == 3
        for caller in slow[:90]:  # the oldest
            assert ends(caller) == b""
        slow[-1].sendall(QUESTION[30:])
        assert b"200 OK" in slow[-1].recv(1 << 16)


def test_a_connection_that_has_brought_a_request_is_kept_longest(monkeypatch):
    monkeypatch.setattr(BoundedConnection, "most_idle", 8)
    with running() as (address, _), callers(address, 1, QUESTION) as (kept,):
        assert b"200 OK" in kept.recv(1 << 16)
        with callers(address, 50) as others:
            for other in others[:40]:
                assert ends(other) == b""
            kept.sendall(QUESTION)
            assert b"200 OK" in kept.recv(1 << 16)


def test_a_caller_that_takes_nothing_is_let_go(monkeypatch):
    monkeypatch.setattr(BoundedConnection, "answer_seconds", 0.3)
    body = json.dumps({"prompt": "a " * 500_000, "return_token_strs": True}).encode()
    head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(body)
    sent = head + b"\r\n" + body
    with running() as (address, _), callers(address, 2, sent) as (idle, reader):
        whole = bytearray()
        while b"}" not in whole:  # slowly, but without a stop
            whole += reader.recv(200_000)
            time.sleep(0.02)
        received = ends(idle)
        assert 0 < len(received) < len(whole)


def test_half_done_tls_handshakes_hold_up_nobody(authority, tmp_path):
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate, private = authority.issue("127.0.0.1")
    chain.write_bytes(certificate)
    key.write_bytes(private)
    trust = ssl.create_default_context(cadata=authority.roots.decode())
    with (
        running(GatewaySettings(), certificate=chain, key=key) as (address, _),
        callers(address, 200, b"\x16\x03\x01\x02\x00\x01") as slow,
    ):
        assert len(answered(address, verify=trust)) == 3
        slow[0].setblocking(False)
        with pytest.raises(BlockingIOError):  # it is waited for
            slow[0].recv(1)

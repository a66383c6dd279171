"""TLS: who is trusted, who is refused."""

from __future__ import annotations

import os
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from optserve.runtime.errors import InvalidRequest, Unavailable
from optserve.runtime.transports.base import Call
from optserve.runtime.transports.connection import Retry, Tls
from optserve.runtime.transports.grpc_sync import GrpcTransport

from tests.runtime.fake_tfs import Authority, FakeTfs

X = np.arange(6, dtype=np.float32).reshape(2, 3)
CALL = Call("decode", {"x": X})


def secure(authority: Authority, host: str = "127.0.0.1", *, clients=None) -> FakeTfs:
    chain, key = authority.issue(host)
    return FakeTfs(
        credentials=grpc.ssl_server_credentials(
            [(key, chain)], clients and clients.roots, clients is not None
        )
    )


def test_tls(authority, connect, tmp_path) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_bytes(authority.roots)
    with secure(authority) as server:
        for given in (authority.roots, roots, str(roots), authority.roots.decode()):
            transport = connect(server.target, tls=Tls(roots=given))
            assert transport.call(CALL, timeout=10).version == 1


def test_a_wrong_certificate_is_refused_at_once(authority, connect) -> None:
    with secure(Authority()) as server:
        transport = connect(server.target, tls=Tls(roots=authority.roots))
        start = time.monotonic()
        with pytest.raises(Unavailable, match=r"no secure connection.*roots"):
            transport.call(CALL, timeout=10)
        assert time.monotonic() - start < 2
        assert not server.metadata


def test_a_wrong_name_is_refused_unless_expected(authority, connect) -> None:
    with secure(authority, "model.example") as server:
        transport = connect(server.target, tls=Tls(roots=authority.roots))
        with pytest.raises(Unavailable, match="server_name"):
            transport.call(CALL, timeout=10)
        named = Tls(roots=authority.roots, server_name="model.example")
        assert connect(server.target, tls=named).call(CALL, timeout=10).version == 1


def test_mutual_tls(authority, connect) -> None:
    ours = Authority()
    with secure(authority, clients=ours) as server:
        chain, key = ours.issue("client")
        mine = Tls(roots=authority.roots, certificate_chain=chain, private_key=key)
        assert connect(server.target, tls=mine).call(CALL, timeout=10).version == 1
        chain, key = Authority().issue("client")
        other = Tls(roots=authority.roots, certificate_chain=chain, private_key=key)
        for tls in (Tls(roots=authority.roots), other):
            transport = connect(server.target, tls=tls, retry=Retry(connect=0.2))
            with pytest.raises(Unavailable):
                transport.call(CALL, timeout=10)


def test_tls_against_a_server_in_the_clear(server, connect, authority) -> None:
    transport = connect(
        server.target, tls=Tls(roots=authority.roots), retry=Retry(connect=0.2)
    )
    with pytest.raises(Unavailable):
        transport.call(CALL, timeout=10)


def test_whoever_lacks_tls_or_a_certificate_is_told(authority, connect) -> None:
    with secure(authority, clients=Authority()) as server:
        for tls in (None, Tls(roots=authority.roots)):
            transport = connect(server.target, tls=tls, retry=Retry(connect=0.2))
            with pytest.raises(Unavailable, match=r"may want TLS .* client's"):
                transport.call(CALL, timeout=10)


def test_a_key_of_another_certificate_is_refused_before_connecting(authority) -> None:
    chain, _ = authority.issue("client")
    _, key = authority.issue("client")
    tls = Tls(roots=authority.roots, certificate_chain=chain, private_key=key)
    with pytest.raises(InvalidRequest, match="do not belong together") as error:
        tls.load()
    assert "PRIVATE" not in str(error.value)


DAMAGED = b"-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("option", ["roots", "certificate_chain", "private_key"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "damaged", "large"])
def test_files_that_hold_no_certificate_are_refused_before_connecting(
    authority, option, kind, tmp_path
) -> None:
    path = Path(kind) if kind == "/dev/zero" else tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "damaged":
        path.write_bytes(DAMAGED)
    elif kind == "large":
        path.write_bytes(DAMAGED + bytes(17 << 20))
    chain, key = authority.issue("localhost")
    right = {"certificate_chain": chain, "private_key": key}
    given = {"roots": authority.roots} if option == "roots" else right
    with pytest.raises(InvalidRequest, match=r"can't be read|hold no PEM|cannot be"):
        GrpcTransport("localhost:1", model="opt", tls=Tls(**{**given, option: path}))


def test_an_empty_server_name_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="server_name is empty"):
        Tls(server_name="")

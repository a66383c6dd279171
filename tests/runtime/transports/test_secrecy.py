"""Tokens never travel in the clear, unless somebody has said that they may."""

from __future__ import annotations

import asyncio

import pytest
from optserve.runtime import (
    AsyncClient,
    Client,
    InvalidRequest,
    Retry,
    Tls,
    Unavailable,
)

from tests.runtime.fake_tfs import FakeTfs

SECRET = "s3cret"
NAMES = ["authorization", "Authorization", "proxy-authorization", "x-api-key", "apikey"]
NAMES += ["x-functions-key", "subscription_key", "x-jwt-assertion", "x-credential"]
NAMES += ["cookie", "x-auth-token", "x-amz-security-token", "db-password"]
REMOTE = [
    "models.example:1",
    "10.0.0.7:1",
    "dns:///models:1",
    "127.0.0.1.evil.example:1",
]
REMOTE += ["ipv4:127.0.0.1:1,10.0.0.7:1", "[::2]:1", "vsock:3:1", "0.0.0.0:1"]


def pairs(name: str = "authorization") -> list[tuple[str, str]]:
    return [("x-request-id", "7"), (name, f"Bearer {SECRET}")]


def opened(target, **options) -> None:
    Client(target, retry=Retry(connect=0), **options).close()


def opened_async(target, **options) -> None:
    async def go():
        async with AsyncClient(target, retry=Retry(connect=0), **options):
            pass

    asyncio.run(go())


@pytest.fixture(params=[opened, opened_async])
def open_client(request):
    return request.param


@pytest.mark.parametrize("target", REMOTE)
@pytest.mark.parametrize("source", [pairs(), pairs], ids=["pairs", "function"])
def test_not_to_other_machines(open_client, target, source):
    with pytest.raises(InvalidRequest, match="without encryption") as caught:
        open_client(["127.0.0.1:1", target], metadata=source)
    assert target in str(caught.value) and SECRET not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_what_counts_as_a_secret(open_client, name):
    with pytest.raises(InvalidRequest, match="without encryption"):
        open_client("10.0.0.7:1", metadata=pairs(name))


@pytest.mark.parametrize(
    "options", [{"insecure_token": True}, {"metadata": [("x-request-id", "7")]}]
)
def test_where_it_may(open_client, options):
    """Port 1 of a loopback name that only looks like another machine's."""
    with pytest.raises(Unavailable):
        open_client(
            "localhost.localdomain.invalid:1", **{"metadata": pairs(), **options}
        )


def test_this_machine_needs_no_encryption(server, tmp_path, connect):
    address = f"unix:{tmp_path}/s"
    with FakeTfs(address=address) as at_socket:
        for fake in (server, at_socket):
            transport = connect(fake.target, metadata=pairs)
            transport.wait_until_ready(timeout=10)


@pytest.mark.parametrize("option", ["roots", "server_name", "none"])
def test_any_option_of_tls_means_tls(open_client, server, option, authority):
    """The server speaks plain text only: it must not see a thing."""
    given = {"roots": authority.roots, "server_name": "models.example"}
    tls = Tls(**{option: given[option]} if option in given else {})
    with pytest.raises(Unavailable):
        open_client(server.target, tls=tls, metadata=pairs())
    assert not server.metadata


def test_the_systems_authorities_are_trusted(authority, tmp_path, monkeypatch, connect):
    import grpc

    bundle = tmp_path / "authorities.pem"
    bundle.write_bytes(authority.roots)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    certificate, key = authority.issue("127.0.0.1")
    credentials = grpc.ssl_server_credentials([(key, certificate)])
    with FakeTfs(credentials=credentials) as fake:
        connect(fake.target, tls=Tls(), metadata=pairs).wait_until_ready(timeout=10)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing.pem"))
        stranger = connect(fake.target, tls=Tls(), metadata=pairs)
        with pytest.raises(Unavailable):
            stranger.wait_until_ready(timeout=0.5)

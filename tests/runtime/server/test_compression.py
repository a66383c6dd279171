"""Compressed requests: what gRPC's own clients send, bombs, and damage."""

from __future__ import annotations

import gzip
import random
import zlib

import grpc
import pytest
from optserve.runtime.server.compression import inflated, is_compressed
from optserve.runtime.server.grpc_front import Limits
from optserve.runtime.server.serving_error import ServingError

from .test_recordings import DATA
from .test_slow_callers import METHOD, serving

ALGORITHMS = [grpc.Compression.Gzip, grpc.Compression.Deflate]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_requests_that_grpc_compressed_arrive_as_they_were(algorithm):
    with (
        serving(bytes.upper, Limits()) as target,
        grpc.insecure_channel(target, compression=algorithm) as channel,
    ):
        call = channel.unary_unary(METHOD)
        for message in (b"a" * 100_000, b"short", b"", random.Random(1).randbytes(999)):
            assert call(message, timeout=10) == message.upper()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_request_that_grows_beyond_the_limit_is_refused(algorithm, monkeypatch):
    monkeypatch.setattr(
        "optserve.runtime.server.grpc_front.inflated",
        lambda data: inflated(data, limit=1 << 20),
    )
    with (
        serving(bytes.upper, Limits()) as target,
        grpc.insecure_channel(target, compression=algorithm) as channel,
    ):
        call = channel.unary_unary(METHOD)
        with pytest.raises(grpc.RpcError) as refusal:
            call(b"\0" * (64 << 20), timeout=20)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "more than 1048576 bytes when inflated" in refusal.value.details()
        assert call(b"\0" * (1 << 20), timeout=20) == b"\0" * (1 << 20)


def test_no_more_than_the_limit_is_ever_inflated():
    bomb = gzip.compress(bytes(300 << 20), compresslevel=1)
    with pytest.raises(ServingError, match="send it without compression"):
        inflated(bomb, limit=1000)
    assert inflated(gzip.compress(b"x" * 1000), limit=1000) == b"x" * 1000


@pytest.mark.parametrize("make", [gzip.compress, zlib.compress])
def test_damage_is_an_error_of_ours(make):
    sound = make(random.Random(2).randbytes(2000))
    for n in range(2, len(sound), 97):
        with pytest.raises(ServingError):
            inflated(sound[:n])
        with pytest.raises(ServingError):
            inflated(sound[:n] + b"\xff\xff" + sound[n + 2 :])


def test_no_request_is_taken_for_a_compressed_one():
    requests = list(DATA.glob("*/*.request.bin"))
    assert requests
    for path in requests:
        assert not is_compressed(path.read_bytes())
    assert not is_compressed(b"") and not is_compressed(b"\x0a")

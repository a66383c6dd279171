"""Replies longer than what was asked for can need: not received, plain or packed."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import textwrap

import grpc
import numpy as np
import pytest
from optserve.runtime import AsyncClient, Client, MalformedReply, codec
from optserve.runtime.transports.grpc_channel import reply_limit

from tests.runtime.numpy_model import NumpyTransport
from tests.runtime.numpy_server import serving

OPTIONS = {"max_new_tokens": 3, "stop_token_ids": []}
PACKED = [grpc.Compression.NoCompression, grpc.Compression.Gzip]


def swollen(call, outputs) -> None:
    """A cache of 150 MB, all zeros."""
    if "new_cache" in outputs:
        outputs["new_cache"] = np.zeros((1, 50_000, 3, 2, 4, 32), np.float32)


@pytest.mark.parametrize("compression", PACKED)
def test_a_swollen_reply_is_refused_before_it_is_in_memory(compression):
    """In a process of its own, whose memory is looked at."""
    script = """
        import resource, sys
        from optserve.runtime import Client, MalformedReply
        with Client(sys.argv[1]) as client:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                client.generate([[2, 5]], max_new_tokens=3)
            except MalformedReply as error:
                print(error)
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print((after - before) >> 10)
    """
    with serving(NumpyTransport(lie=swollen), compression=compression) as address:
        command = [sys.executable, "-c", textwrap.dedent(script), address]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    message, megabytes = out.splitlines()
    assert message.startswith(address) and "larger than max" in message
    assert int(megabytes) < 100


def test_a_tensor_that_would_repeat_one_value_for_ever_takes_no_memory():
    """A few bytes that say [1, 100000, 3, 2, 4, 8]: two values, the last repeats."""

    def lie(call, outputs) -> None:
        if "new_cache" in outputs:
            outputs["new_cache"] = np.zeros((1, 8, 3, 2, 4, 8), np.float32)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with serving(NumpyTransport(lie=lie)) as address:
        original = codec.encode_predict_response

        def repeating(model, outputs, **options):
            data = original(model, outputs, **options)
            if "new_cache" not in outputs:
                return data
            return original(
                model, {k: v for k, v in outputs.items() if k != "new_cache"}
            ) + _two_values("new_cache", (1, 10_000_000, 3, 2, 4, 8))

        codec.encode_predict_response = repeating
        try:
            with Client(address) as client, pytest.raises(MalformedReply):
                client.generate([[2, 5]], **OPTIONS)
        finally:
            codec.encode_predict_response = original
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) >> 10 < 100


def _two_values(name: str, shape: tuple[int, ...]) -> bytes:
    from optserve.runtime.codec.wire import LENGTH, block, tag, varint

    sizes = b"".join(block(2, b"\x08" + varint(size)) for size in shape)
    values = np.array([1.0, 2.0], np.float32).tobytes()
    tensor = b"\x08\x01" + block(2, sizes) + tag(5, LENGTH) + varint(8) + values
    return block(1, block(1, name.encode()) + block(2, tensor))


@pytest.mark.parametrize("compression", PACKED)
def test_right_replies_are_received_whatever_their_size(compression):
    with Client(transport=NumpyTransport()) as client:
        expected = client.generate([[2, *range(4, 50)]], **OPTIONS)[0].tokens
    with serving(NumpyTransport(), compression=compression) as address:
        with Client(address) as client:
            assert client.generate([[2, *range(4, 50)]], **OPTIONS)[0].tokens == (
                expected
            )

        async def go():
            async with AsyncClient(address) as client:
                return await client.generate([[2, *range(4, 50)]], **OPTIONS)

        assert asyncio.run(go())[0].tokens == expected


def test_limits():
    assert [reply_limit(size) for size in (0, 1 << 20, (4 << 20) + 1, 2**31 - 1)] == [
        4 << 20,
        4 << 20,
        32 << 20,
        2**31 - 1,
    ]

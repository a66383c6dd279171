"""Damaged requests are refused, and the server goes on serving."""

from __future__ import annotations

import random

import pytest

from .calls import Caller
from .test_recordings import read, send

NAMES = ("echo_all_dtypes", "prefill", "scalar", "prefill_output_filter")
REFUSALS = {
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "PERMISSION_DENIED",  # reloading is off
}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """``data`` with some bytes changed, cut out or put in."""
    bytes_ = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(bytes_))
        match rng.randrange(4):
            case 0:
                bytes_[at] = rng.randrange(256)
            case 1:
                bytes_[at] ^= 1 << rng.randrange(8)
            case 2:
                del bytes_[at : at + rng.randint(1, 5)]
            case _:
                bytes_[at:at] = rng.randbytes(rng.randint(1, 5))
        if not bytes_:
            break
    return bytes(bytes_)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_predict_requests(name, typed_server):
    rng = random.Random(name)
    sound = read("typed_fields", name, "request")
    method = "PredictionService/Predict"
    with Caller(typed_server.target) as caller:
        call = caller.channel.unary_unary(f"/tensorflow.serving.{method}")
        for _ in range(150):
            status, details, _ = send(call, damaged(sound, rng))
            assert status == "OK" or status in REFUSALS, (status, details)
            assert "Error:" not in details, details  # a Python exception's name
        assert send(call, sound)[0] == "OK"


def test_a_tensor_without_a_name_is_one_all_the_same(typed_server):
    """An empty entry of the inputs, which the official classes read."""
    with Caller(typed_server.target) as caller:
        call = caller.channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict"
        )
        status, details, _ = send(call, b"\x0a\x05\x0a\x03rec" + b"\x12\x00")
    assert (status, details) == ("INVALID_ARGUMENT", "tensor parsing error: ")


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("metadata", "PredictionService/GetModelMetadata"),
        ("status", "ModelService/GetModelStatus"),
        ("status", "ModelService/HandleReloadConfigRequest"),
    ],
)
def test_damaged_small_requests(name, method, typed_server):
    rng = random.Random(name)
    sound = read("typed_fields", name, "request")
    with Caller(typed_server.target) as caller:
        call = caller.channel.unary_unary(f"/tensorflow.serving.{method}")
        for _ in range(60):
            status, details, _ = send(call, damaged(sound, rng))
            assert status == "OK" or status in REFUSALS, (status, details)
    assert typed_server.models()

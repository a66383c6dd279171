"""What the codec refuses: arrays that can't be sent, malformed messages, bombs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from optserve.runtime import codec
from optserve.runtime.errors import InvalidRequest, MalformedReply

predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")


def test_unsendable_arrays_are_refused() -> None:
    spec = codec.ModelSpec("m")
    with pytest.raises(InvalidRequest, match="'t': a tensor of dtype datetime64"):
        codec.encode_predict_request(spec, {"t": np.zeros(2, "datetime64[s]")})
    with pytest.raises(InvalidRequest, match="holds int"):
        codec.encode_predict_request(spec, {"t": np.array([1], object)})
    with pytest.raises(InvalidRequest, match="at most 100 are possible"):
        codec.encode_predict_request(spec, {"t": np.zeros(99)}, limit=100)


def test_a_request_over_2_gib_is_refused_before_it_is_built() -> None:
    huge = np.broadcast_to(np.zeros((1 << 20,), np.float32), (600, 1 << 20))
    with pytest.raises(InvalidRequest, match="2147483647"):
        codec.encode_predict_request(codec.ModelSpec("m"), {"cache": huge})


def reply_with(shape: list[int], number: int = 1, **values) -> bytes:
    message = predict_pb2.PredictResponse()
    tensor = message.outputs["t"]
    tensor.dtype = number
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    for field, value in values.items():
        if field == "tensor_content":
            tensor.tensor_content = value
        else:
            getattr(tensor, field).extend(value)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (reply_with([1 << 60], float_val=[1, 2]), "more than 2 GiB"),
        (reply_with([1 << 40, 0]), "more than 2 GiB"),
        (reply_with([1 << 32, 1 << 32], float_val=[1]), "more than 2 GiB"),
        (reply_with([1 << 28], float_val=[1, 2]), "are allowed"),
        (reply_with([-1], float_val=[1]), "negative"),
        (reply_with([1] * 33, float_val=[1]), "rank 33"),
        (reply_with([1], float_val=[1, 2]), "2 values"),
        (reply_with([3], tensor_content=b"123"), "needs 12"),
        (reply_with([3], number=20), "dtype number 20"),
        (reply_with([3], number=101), "dtype number 101"),
        (reply_with([9], number=7, tensor_content=b"12"), "9 strings in 2 bytes"),
        (reply_with([1], number=7, tensor_content=b"\x05ab"), "need 5 bytes"),
        (reply_with([1], number=8, scomplex_val=[1]), "half a complex64"),
        (b"\x0a\xff", "does not end"),
        (b"\x0a\x05abc", "ends 2 bytes after"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x02\x00", "field number 0"),
        (b"\x12\x03\x0a\x01\xff", "not UTF-8"),
        (b"\xff" * 11, "does not end"),
    ],
)
def test_malformed_replies(data: bytes, why: str) -> None:
    with pytest.raises(MalformedReply, match=why) as caught:
        codec.decode_predict_response(data)
    assert isinstance(caught.value, ValueError)


def test_expansion_is_bounded_over_all_tensors() -> None:
    message = predict_pb2.PredictResponse()
    for name in "ab":
        message.outputs[name].CopyFrom(
            predict_pb2.PredictResponse.FromString(
                reply_with([1000], float_val=[1, 2])
            ).outputs["t"]
        )
    data = message.SerializeToString()
    codec.decode_predict_response(data, expansion_limit=8000)
    with pytest.raises(MalformedReply, match="4000 bytes, 3999 are allowed"):
        codec.decode_predict_response(data, expansion_limit=7999)


def test_a_constant_tensor_takes_no_memory() -> None:
    tracemalloc.start()
    reply = codec.decode_predict_response(reply_with([1 << 28], float_val=[7]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reply.outputs["t"][-1] == 7
    assert peak < 1 << 20


def test_many_tiny_tensors_are_refused() -> None:
    tiny = b"".join(
        b"\x0a\x06\x0a\x04" + str(1000 + i % 9000).encode() for i in range(9000)
    )
    with pytest.raises(MalformedReply, match="more than 4096 tensors"):
        codec.decode_predict_response(tiny)

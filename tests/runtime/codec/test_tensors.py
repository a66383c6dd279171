"""The wire codec against TensorFlow Serving's bytes and the official classes."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from optserve.runtime import codec
from optserve.runtime.codec import RowBlocks
from optserve.runtime.errors import MalformedMessage

from tests.runtime.recordings import ENCODINGS, RECORDINGS, official, recordings, same

tf = pytest.importorskip("tensorflow")
predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")

RNG = np.random.default_rng(5)
BF16 = ml_dtypes.bfloat16


def arrays() -> dict[str, np.ndarray]:
    """Every dtype, several shapes, extreme values."""
    out: dict[str, np.ndarray] = {
        "b": RNG.integers(0, 2, (3, 4)).astype(bool),
        "s": np.array([[b"", b"abc"], [b"\xff\x00", b"x" * 200]], object),
        "scalar": np.float32(3.5),
        "one": np.ones((1, 1, 1), np.int32),
        "wide": RNG.standard_normal((0, 7)).astype(np.float32),
        "constant": np.full((9, 9), 2.5, np.float32),
        "zeros": np.zeros((9, 9), np.int64),
        "c64": (RNG.standard_normal(6) + 1j).astype(np.complex64),
        "c128": RNG.standard_normal((2, 3)) + 1j,
        "no_strings": np.empty((0, 2), object),
    }
    for name in ("float16", "float32", "float64"):
        x = RNG.standard_normal((2, 5)).astype(name)
        x[0, :3] = np.nan, np.inf, -0.0
        out[name] = x
    out["bfloat16"] = RNG.standard_normal((2, 5)).astype(BF16)
    for name in [
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
    ]:
        info = np.iinfo(name)
        x = RNG.integers(info.min, info.max, (3, 700), dtype=name, endpoint=True)
        x[0, :3] = info.min, info.max, 1
        out[name] = x
    return out


# --- TensorFlow Serving's bytes ----------------------------------------------


@pytest.mark.parametrize("path", recordings("response"))
def test_recorded_replies(path: Path) -> None:
    data = path.read_bytes()
    reply = codec.decode_predict_response(data)
    theirs = predict_pb2.PredictResponse.FromString(data)
    assert reply.model == codec.ModelSpec("rec", theirs.model_spec.signature_name, 1)
    assert reply.outputs.keys() == dict(theirs.outputs).keys()
    for name, tensor in theirs.outputs.items():
        same(reply.outputs[name], official(tensor))


@pytest.mark.parametrize("path", recordings("request"))
def test_recorded_requests(path: Path) -> None:
    data = path.read_bytes()
    if "garbage" in path.name:
        with pytest.raises(MalformedMessage) as caught:
            codec.decode_predict_request(data)
        assert caught.value.tensor is None
        return
    if "short_tensor_content" in path.name:
        with pytest.raises(MalformedMessage, match="tensor 'x'") as caught:
            codec.decode_predict_request(data)
        assert caught.value.tensor == "x"
        return
    request = codec.decode_predict_request(data)
    theirs = predict_pb2.PredictRequest.FromString(data)
    spec = theirs.model_spec
    assert request.model.name == spec.name
    assert request.model.signature == spec.signature_name
    assert request.model.version == (
        spec.version.value if spec.HasField("version") else None
    )
    assert request.model.version_label == spec.version_label
    assert request.outputs == tuple(theirs.output_filter)
    assert request.inputs.keys() == dict(theirs.inputs).keys()
    for name, tensor in theirs.inputs.items():
        same(request.inputs[name], official(tensor))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("path", recordings("response"))
def test_replies_as_tensorflow_serving_writes_them(path: Path, encoding: str) -> None:
    """Each tensor's bytes are the recording's (a map's order is arbitrary)."""
    reply = codec.decode_predict_response(path.read_bytes())
    ours = predict_pb2.PredictResponse.FromString(
        codec.encode_predict_response(
            reply.model, reply.outputs, tensor_content=encoding == "tensor_content"
        )
    )
    recorded = RECORDINGS / encoding / path.name
    assert ours == predict_pb2.PredictResponse.FromString(recorded.read_bytes())


# --- the official classes ----------------------------------------------------


def test_requests_parse_with_the_official_classes() -> None:
    inputs = arrays()
    spec = codec.ModelSpec("opt", "decode", 7)
    data = codec.encode_predict_request(spec, inputs, ["logits", "new_cache"])
    theirs = predict_pb2.PredictRequest.FromString(data)
    assert theirs.model_spec.name == "opt"
    assert theirs.model_spec.signature_name == "decode"
    assert theirs.model_spec.version.value == 7
    assert list(theirs.output_filter) == ["logits", "new_cache"]
    for name, array in inputs.items():
        same(np.asarray(array), official(theirs.inputs[name]))
    again = codec.decode_predict_request(data)
    assert again.model == spec
    assert again.outputs == ("logits", "new_cache")
    for name, array in inputs.items():
        same(again.inputs[name], np.asarray(array))


@pytest.mark.parametrize("raw", [False, True])
def test_replies_round_trip(raw: bool) -> None:
    outputs = arrays()
    spec = codec.ModelSpec("opt", "", 0)
    data = codec.encode_predict_response(spec, outputs, tensor_content=raw)
    assert isinstance(data, bytes)
    reply = codec.decode_predict_response(data)
    theirs = predict_pb2.PredictResponse.FromString(data)
    assert theirs.model_spec.HasField("version")
    assert reply.model == spec
    for name, array in outputs.items():
        same(reply.outputs[name], np.asarray(array))
        if np.asarray(array).size:
            same(np.asarray(array), official(theirs.outputs[name]))


@pytest.mark.parametrize("label", ["", "stable"])
def test_model_specs(label: str) -> None:
    spec = codec.ModelSpec("m", "", None, label)
    data = codec.encode_predict_request(spec, {})
    theirs = predict_pb2.PredictRequest.FromString(data).model_spec
    assert (theirs.name, theirs.version_label) == ("m", label)
    assert not theirs.HasField("version")
    assert codec.decode_predict_request(data).model == spec


def test_repeated_trailing_values_are_expanded() -> None:
    message = predict_pb2.PredictResponse()
    message.outputs["constant"].CopyFrom(
        tf.compat.v1.make_tensor_proto(2.5, shape=[3, 5], dtype=tf.float32)
    )
    for name, number, field, values in (
        ("tail", 3, "int_val", [1, -2, 300]),
        ("half", 19, "half_val", [15360, 49152]),
        ("strings", 7, "string_val", [b"a", b"bc"]),
        ("zeros", 1, "float_val", []),
        ("empty_strings", 7, "string_val", []),
    ):
        tensor = message.outputs[name]
        tensor.dtype = number
        tensor.tensor_shape.dim.add(size=2)
        tensor.tensor_shape.dim.add(size=4)
        getattr(tensor, field).extend(values)
    reply = codec.decode_predict_response(message.SerializeToString())
    got = {name: array.reshape(-1).tolist() for name, array in reply.outputs.items()}
    assert got["constant"] == [2.5] * 15
    assert got["tail"] == [1, -2] + [300] * 6
    assert got["half"] == [1.0] + [-2.0] * 7
    assert got["strings"] == [b"a"] + [b"bc"] * 7
    assert got["zeros"] == [0.0] * 8
    assert got["empty_strings"] == [b""] * 8


def test_unpacked_values_and_split_messages() -> None:
    """Older writers don't pack; protobuf lets any message come in parts."""
    floats = np.array([1.5, -2.0, 3.25], "<f4")
    unpacked = b"".join(b"\x2d" + x.tobytes() for x in floats[:2])
    unpacked += b"\x2a\x04" + floats[2].tobytes()
    tensor = b"\x08\x01\x12\x04\x12\x02\x08\x03" + unpacked
    ints = b"\x08\x03\x12\x04\x12\x02\x08\x03" + b"\x38\x07\x3a\x03\xac\x02\x01"

    def entry(key: bytes, *parts: bytes) -> bytes:
        body = b"\x0a" + bytes([len(key)]) + key
        body += b"".join(b"\x12" + bytes([len(part)]) + part for part in parts)
        return b"\x0a" + bytes([len(body)]) + body

    data = entry(b"f", tensor[:8], tensor[8:]) + entry(b"i", ints)
    data += b"\x12\x03\x0a\x01m" + b"\x12\x04\x12\x02\x08\x05"
    reply = codec.decode_predict_response(data)
    theirs = predict_pb2.PredictResponse.FromString(data)
    for name in ("f", "i"):
        same(reply.outputs[name], official(theirs.outputs[name]))
    assert reply.model == codec.ModelSpec("m", "", 5)


def test_non_contiguous_arrays_are_sent_as_they_look() -> None:
    buffer = RNG.standard_normal((3, 40, 2, 2, 4, 64)).astype(np.float32)
    inputs = {
        "slice": buffer[:2, :17],
        "transposed": buffer.transpose(1, 0, 2, 3, 4, 5),
        "strided": buffer[:, ::3, :, 0, ::2, 1::5],
        "reversed": buffer[::-1],
        "broadcast": np.broadcast_to(buffer[:1, :1], buffer.shape),
        "big_endian": buffer.astype(">f4"),
        "fortran": np.asfortranarray(buffer),
    }
    data = codec.encode_predict_request(codec.ModelSpec("m"), inputs)
    theirs = predict_pb2.PredictRequest.FromString(data)
    for name, array in inputs.items():
        np.testing.assert_array_equal(official(theirs.inputs[name]), array)


def test_a_cache_in_pieces() -> None:
    a = RNG.standard_normal((5, 3, 2, 8)).astype(np.float32)
    b = RNG.standard_normal((9, 3, 2, 8)).astype(np.float32)
    cases = {
        "ragged": RowBlocks(((a, b[2:4]), (b[::-1],)), 12),
        "full": RowBlocks(((a,),), 5),
        "padded": RowBlocks(((a,),), 2000),
        "bare": RowBlocks(((a[:0],), (a[:0],)), 4),
        "no_slots": RowBlocks(((a[:0],),), 0),
    }
    data = codec.encode_predict_request(codec.ModelSpec("m"), cases)
    theirs = predict_pb2.PredictRequest.FromString(data)
    for name, blocks in cases.items():
        same(np.asarray(blocks), official(theirs.inputs[name]))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_bfloat16_without_ml_dtypes(encoding: str, monkeypatch) -> None:
    """A base install reads it as float32, which holds every value exactly."""
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    data = (RECORDINGS / encoding / "echo_all_dtypes.response.bin").read_bytes()
    got = codec.decode_predict_response(data).outputs["bf16"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.array([[1, -2.5, 3.0040553e38]], np.float32))


def test_strings_from_text_and_fixed_width_arrays() -> None:
    inputs = {"u": np.array(["héllo", ""]), "b": np.array([b"ab", b"c"])}
    data = codec.encode_predict_request(codec.ModelSpec("m"), inputs)
    got = codec.decode_predict_request(data).inputs
    assert got["u"].tolist() == ["héllo".encode(), b""]
    assert got["b"].tolist() == [b"ab", b"c"]


# --- memory ------------------------------------------------------------------


def test_a_cache_of_19_mb_is_copied_once_and_read_where_it_lies() -> None:
    buffer = RNG.standard_normal((1, 300, 12, 2, 12, 64)).astype(np.float32)
    cache = buffer[:, :256]
    spec = codec.ModelSpec("opt", "decode", 1)
    inputs = {"input_ids": np.ones((1, 1), np.int32), "cache": cache}
    tracemalloc.start()
    codec.encode_predict_request(spec, inputs)
    assert tracemalloc.get_traced_memory()[1] < cache.nbytes * 1.01 + 1e5
    tracemalloc.stop()
    for raw in (False, True):
        data = codec.encode_predict_response(spec, {"c": cache}, tensor_content=raw)
        view = codec.decode_predict_response(data).outputs["c"]
        assert not view.flags.owndata

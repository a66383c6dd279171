"""Arbitrary bytes give a typed error or what the official classes read."""

from __future__ import annotations

import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from optserve.runtime import codec
from optserve.runtime.codec.wire import decode_varints, encode_varints, varint
from optserve.runtime.errors import MalformedMessage

predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")

SEEDS = [
    path.read_bytes()
    for path in sorted(
        (Path(__file__).parents[2] / "data" / "tfs-recordings").rglob("*.bin")
    )
]
DECODERS = (
    codec.decode_predict_response,
    codec.decode_predict_request,
    codec.decode_status_response,
    codec.decode_metadata_response,
)
OFFICIAL = (predict_pb2.PredictResponse, predict_pb2.PredictRequest)
DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="<"),
    hnp.unsigned_integer_dtypes(endianness="<"),
    hnp.floating_dtypes(endianness="<", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="<", sizes=(64, 128)),
)


@given(
    DTYPES.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0))),
    st.text(max_size=8),
    st.booleans(),
)
def test_any_array_round_trips(array: np.ndarray, name: str, raw: bool) -> None:
    array = np.asarray(array)
    spec = codec.ModelSpec("m", "s", 3)
    reply = codec.encode_predict_response(spec, {name: array}, tensor_content=raw)
    request = codec.encode_predict_request(spec, {name: array})
    for got in (
        codec.decode_predict_response(reply).outputs[name],
        codec.decode_predict_request(request).inputs[name],
    ):
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        assert got.tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=300)), st.booleans())
def test_any_strings_round_trip(values: list[bytes], raw: bool) -> None:
    array = np.empty(len(values), object)
    array[:] = values
    data = codec.encode_predict_response(
        codec.ModelSpec("m"), {"s": array}, tensor_content=raw
    )
    assert codec.decode_predict_response(data).outputs["s"].tolist() == values


@given(hnp.arrays(np.uint64, hnp.array_shapes(max_dims=1, min_side=0, max_side=50)))
def test_varints_round_trip(values: np.ndarray) -> None:
    np.testing.assert_array_equal(decode_varints(encode_varints(values)), values)


def test_varints_over_chunks() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << 62, 600_000) >> rng.integers(0, 62, 600_000)
    np.testing.assert_array_equal(decode_varints(encode_varints(values)), values)


def mutate(rng: np.random.Generator) -> bytes:
    """A recording with bytes changed, cut out, doubled or joined to another."""
    data = bytearray(SEEDS[rng.integers(len(SEEDS))])
    for _ in range(rng.integers(1, 6)):
        size = len(data)
        at = int(rng.integers(size + 1))
        match rng.integers(6):
            case 0 if size:
                data[at % size] = int(rng.integers(256))
            case 1 if size:
                data[at % size] ^= 1 << int(rng.integers(8))
            case 2:
                del data[at : at + int(rng.integers(1, 9))]
            case 3:
                data[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 4:
                data[at:at] = data[at : at + int(rng.integers(1, 40))]
            case 5:
                data += SEEDS[rng.integers(len(SEEDS))]
    return bytes(data)


def test_mutated_recordings() -> None:
    """We read what the official class reads, and memory stays bounded."""
    rng = np.random.default_rng(1)
    same = refused = 0
    for _ in range(4000):
        data = mutate(rng)
        for decode in DECODERS[2:]:
            with suppress(MalformedMessage):
                decode(data)
        for decode, official in zip(DECODERS, OFFICIAL, strict=False):
            with suppress(MalformedMessage):
                got = decode(data, expansion_limit=1 << 16)
                try:
                    theirs = official.FromString(data)
                except DecodeError:
                    refused += 1  # it also looks into fields that we skip
                    continue
                assert theirs.model_spec.name == got.model.name
                assert theirs.model_spec.version.value == (got.model.version or 0)
                compare(got, theirs)
                same += 1
    assert same > 500  # or the mutations say nothing
    assert refused < same // 50


def compare(got, theirs) -> None:
    ours = got.outputs if isinstance(theirs, OFFICIAL[0]) else got.inputs
    tensors = theirs.outputs if isinstance(theirs, OFFICIAL[0]) else theirs.inputs
    assert ours.keys() >= dict(tensors).keys()  # it drops entries with unknown fields
    for name, tensor in tensors.items():
        assert ours[name].shape == tuple(dim.size for dim in tensor.tensor_shape.dim)
        if tensor.dtype == 1 and not tensor.tensor_content and ours[name].size:
            values = np.array(list(tensor.float_val) or [0], np.float32)
            flat = ours[name].reshape(-1)
            np.testing.assert_array_equal(flat[: values.size], values)
            np.testing.assert_array_equal(
                flat[values.size :], np.resize(values[-1], flat.size - values.size)
            )


def test_memory_on_mutated_recordings() -> None:
    rng = np.random.default_rng(2)
    tracemalloc.start()
    for _ in range(300):
        data = mutate(rng)
        for decode in DECODERS[:2]:
            with suppress(MalformedMessage):
                decode(data, expansion_limit=1 << 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    for decode in DECODERS:
        with suppress(MalformedMessage):
            decode(data)


@pytest.mark.parametrize(
    "piece",
    [
        b"\x0a\x00",  # tensors without a name
        b"\x12\x00",  # model specs
        b"\x12\x02\x0a\x00",
        b"\x9a\x06\x00",  # unknown fields
        b"\x10\x00",
    ],
)
def test_many_tiny_fields_take_linear_time(piece: bytes) -> None:
    data = piece * 20_000
    start = time.perf_counter()
    tracemalloc.start()
    for decode in DECODERS[:2]:
        with suppress(MalformedMessage):
            decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(data) + (1 << 16)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "piece",
    [
        b"\x12\x02\x08\x01",  # a tensor in parts
        b"\x12\x04\x12\x02\x12\x00",  # its shape in parts
        b"\x12\x06\x2a\x04\0\0\0\0",  # its values in parts
    ],
)
def test_tensors_in_very_many_parts(piece: bytes) -> None:
    """Four times the parts take about four times as long, not sixteen times."""

    def seconds(count: int) -> float:
        body = b"\x0a\x01t" + piece * count
        data = b"\x0a" + varint(len(body)) + body
        start = time.perf_counter()
        with suppress(MalformedMessage):
            codec.decode_predict_response(data)
        return time.perf_counter() - start

    assert min(seconds(80_000) for _ in range(2)) < 10 * seconds(20_000)


@pytest.mark.parametrize("field", [b"\x38\x01", b"\x42\x00", b"\x2d\0\0\0\0"])
def test_many_unpacked_values_take_linear_memory(field: bytes) -> None:
    body = b"\x08\x01\x12\x04\x12\x02\x08\x01" + field * 20_000
    size = varint(len(body))
    entry = b"\x12" + size + body
    data = b"\x0a" + varint(len(entry)) + entry
    tracemalloc.start()
    with suppress(MalformedMessage):
        codec.decode_predict_response(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(data)

"""Requests that no client of ours sends: a status, and the next caller is served."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from optserve.runtime import Client

from .mutations import NUMBERS, changed_bytes, hostile_array, pick

tf_serving = pytest.importorskip("tensorflow_serving.apis.predict_pb2")
from optserve.runtime.server import EmbeddedServer  # noqa: E402

from tests.export.exports import exported  # noqa: E402

pytestmark = pytest.mark.fuzz
METHOD = "/tensorflow.serving.PredictionService/Predict"
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.OUT_OF_RANGE,
}
PROMPT = [2, 5, 6, 7]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(exported("pre_ln").parent) as server:
        yield server


@pytest.fixture(scope="module")
def row_shape(server) -> tuple[int, ...]:
    with Client(server.target) as client:
        return client.describe().cache_layout.row_shape


def inputs(row_shape: tuple[int, ...]) -> dict[str, dict[str, np.ndarray]]:
    """Right inputs of some signatures."""
    ids = {
        "input_ids": np.array([PROMPT], np.int32),
        "input_length": np.array([4], np.int32),
    }
    cache = {
        "cache": np.zeros([1, 3, *row_shape], np.float32),
        "cache_length": np.array([2], np.int32),
    }
    return {
        "prefill": ids,
        "decode": ids | cache,
        "score": ids | cache,
        "embed": ids,
        "describe": {"row": np.zeros([1], np.int32)},
    }


def request(signature: str, arrays: dict[str, np.ndarray], rng: np.random.Generator):
    """An official message; at times a shape promises what is not there."""
    import tensorflow as tf

    message = tf_serving.PredictRequest()
    message.model_spec.name = "opt"
    message.model_spec.signature_name = signature
    for name, array in arrays.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        if rng.random() < 0.1:
            dim = message.inputs[name].tensor_shape.dim.add()
            dim.size = int(np.clip(float(pick(rng, NUMBERS)), -(2**62), 2**62))
    return message


def is_message(data: bytes) -> bool:
    """Whether the official class reads it."""
    try:
        tf_serving.PredictRequest.FromString(data)
    except DecodeError:
        return False
    return True


def test_requests(fuzz, server, row_shape):
    right = inputs(row_shape)
    with Client(server.target) as client, grpc.insecure_channel(server.target) as raw:
        call = raw.unary_unary(METHOD)
        expected = client.generate([PROMPT], max_new_tokens=4)[0].tokens

        def target(rng: np.random.Generator) -> str:
            signature = pick(rng, sorted(right))
            arrays = dict(right[signature])
            if rng.random() < 0.8:
                name = pick(rng, sorted(arrays))
                arrays[name] = hostile_array(rng, arrays[name])
            data = request(signature, arrays, rng).SerializeToString()
            if rng.random() < 0.3:
                data = changed_bytes(rng, data)
            try:
                call(data, timeout=30)
            except grpc.RpcError as error:
                code = error.code()
                if code is grpc.StatusCode.INTERNAL:  # as gRPC says it of no message
                    assert not is_message(data), (data, error.details())
                    return "not a message"
                assert code in REFUSALS, (code, error.details())
                return code.name
            return "answered"

        counts = fuzz(target)
        assert counts["answered"] < counts.total()
        assert client.generate([PROMPT], max_new_tokens=4)[0].tokens == expected

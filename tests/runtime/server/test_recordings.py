"""Replays TensorFlow Serving's recordings: same status, same message, same tensors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

DATA = Path(__file__).parents[2] / "data" / "tfs-recordings"
CASES = [
    pytest.param(folder.name, case, id=f"{folder.name}-{case['name']}")
    for folder in sorted(DATA.iterdir())
    for case in json.loads((folder / "index.json").read_text())
]
# Messages that come from an op end with the op's place in the graph. The function's
# number there depends on what else was traced before it in the exporting process.
FUNCTION_NUMBER = re.compile(r"(__inference_\w+?)_\d+")


def read(encoding: str, name: str, part: str) -> bytes:
    return (DATA / encoding / f"{name}.{part}.bin").read_bytes()


def send(call, data: bytes):
    """(status name, details, reply bytes) of a call with raw bytes."""
    try:
        return "OK", "", call(data, timeout=30)
    except grpc.RpcError as error:
        return error.code().name, error.details(), b""


@pytest.fixture
def connection(request, encoding):
    server = "typed_server" if encoding == "typed_fields" else "content_server"
    with grpc.insecure_channel(request.getfixturevalue(server).target) as channel:
        yield channel


@pytest.mark.parametrize(("encoding", "case"), CASES)
def test_same_answer(encoding, case, connection):
    sent = read(encoding, case["name"], "request")
    call = connection.unary_unary(f"/tensorflow.serving.{case['method']}")
    status, details, reply = send(call, sent)
    assert status == case["status"]
    if status != "OK":
        if status != "UNIMPLEMENTED":  # there grpc itself has the word
            assert normal(details) == normal(case["details"])
        return
    recorded = read(encoding, case["name"], "response")
    assert len(reply) == case["response_bytes"] == len(recorded)
    compare = {
        "Predict": same_predict,
        "GetModelMetadata": same_metadata,
        "GetModelStatus": same_status,
    }
    compare[case["method"].split("/")[1]](reply, recorded)


def normal(details: str) -> str:
    return FUNCTION_NUMBER.sub(r"\1", details)


def same_predict(got: bytes, recorded: bytes) -> None:
    ours = predict_pb2.PredictResponse.FromString(got)
    theirs = predict_pb2.PredictResponse.FromString(recorded)
    assert ours.model_spec == theirs.model_spec
    assert set(ours.outputs) == set(theirs.outputs)
    for name, tensor in theirs.outputs.items():
        # TensorFlow's own decoder; protobuf equality would trip over NaN
        a, b = (
            tf.io.parse_tensor(t.SerializeToString(), tensor.dtype).numpy()
            for t in (ours.outputs[name], tensor)
        )
        assert a.dtype == b.dtype and a.shape == b.shape
        same = (
            a.tolist() == b.tolist()
            if a.dtype == object
            else a.tobytes() == b.tobytes()
        )
        assert same, name
        fields = [field.name for field, _ in tensor.ListFields()]
        assert [field.name for field, _ in ours.outputs[name].ListFields()] == fields


def same_metadata(got: bytes, recorded: bytes) -> None:
    ours, theirs = (
        get_model_metadata_pb2.GetModelMetadataResponse.FromString(data)
        for data in (got, recorded)
    )
    maps = []
    for message in (ours, theirs):
        signatures = get_model_metadata_pb2.SignatureDefMap()
        assert message.metadata["signature_def"].Unpack(signatures)
        maps.append(signatures)
    assert maps[0] == maps[1]
    assert ours.model_spec == theirs.model_spec


def same_status(got: bytes, recorded: bytes) -> None:
    read = get_model_status_pb2.GetModelStatusResponse.FromString
    assert read(got) == read(recorded)

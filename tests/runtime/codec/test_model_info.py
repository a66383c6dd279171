"""GetModelStatus and GetModelMetadata against recordings and official classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from optserve.runtime import codec

from tests.runtime.recordings import RECORDINGS, recordings

status_pb2 = pytest.importorskip("tensorflow_serving.apis.get_model_status_pb2")
metadata_pb2 = pytest.importorskip("tensorflow_serving.apis.get_model_metadata_pb2")


@pytest.mark.parametrize("path", recordings("response", "ModelService/GetModelStatus"))
def test_recorded_status(path: Path) -> None:
    assert codec.decode_status_response(path.read_bytes()) == [
        codec.VersionStatus(1, "AVAILABLE")
    ]


@pytest.mark.parametrize("path", recordings("request", "ModelService/GetModelStatus"))
def test_status_requests(path: Path) -> None:
    theirs = status_pb2.GetModelStatusRequest.FromString(path.read_bytes()).model_spec
    version = theirs.version.value if theirs.HasField("version") else None
    spec = codec.ModelSpec(theirs.name, "", version)
    assert codec.encode_status_request(spec) == path.read_bytes()


def test_status_of_several_versions() -> None:
    message = status_pb2.GetModelStatusResponse()
    message.model_version_status.add(version=1, state="END")
    failed = message.model_version_status.add(version=3, state="LOADING")
    failed.status.error_code, failed.status.error_message = 5, "no file"
    assert codec.decode_status_response(message.SerializeToString()) == [
        codec.VersionStatus(3, "LOADING", 5, "no file"),
        codec.VersionStatus(1, "END"),
    ]


@pytest.mark.parametrize(
    "path", recordings("response", "PredictionService/GetModelMetadata")
)
def test_recorded_metadata(path: Path) -> None:
    got = codec.decode_metadata_response(path.read_bytes())
    assert got.model == codec.ModelSpec("rec", "", 1)
    prefill = got.signatures["prefill"]
    assert prefill.inputs == {
        "x": codec.TensorInfo("float32", (None, 4)),
        "n": codec.TensorInfo("int32", (None,)),
    }
    assert prefill.outputs["total"] == codec.TensorInfo("float32", (None,))
    echo = got.signatures["echo"].inputs
    assert {name: info.dtype for name, info in echo.items()} == {
        "f32": "float32",
        "f16": "float16",
        "bf16": "bfloat16",
        "f64": "float64",
        "i32": "int32",
        "i64": "int64",
        "u8": "uint8",
        "i8": "int8",
        "b": "bool",
        "u32": "uint32",
        "s": "string",
    }


def test_metadata_request() -> None:
    recorded = (RECORDINGS / "typed_fields" / "metadata.request.bin").read_bytes()
    spec = codec.ModelSpec("rec")
    theirs = metadata_pb2.GetModelMetadataRequest.FromString(recorded)
    ours = metadata_pb2.GetModelMetadataRequest.FromString(
        codec.encode_metadata_request(spec)
    )
    assert ours == theirs

"""Calls through the official stubs."""

from __future__ import annotations

import contextlib
from typing import Any

import grpc
import tensorflow as tf
from optserve.runtime.server import EmbeddedServer
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)


class Caller:
    """One connection to a server."""

    def __init__(self, target: str, model: str = "toy", credentials=None) -> None:
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        self.channel = (
            grpc.secure_channel(target, credentials, options)
            if credentials
            else grpc.insecure_channel(target, options)
        )
        self.model, self.target = model, target
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(
            self.channel
        )
        self.service = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def request(
        self,
        signature: str = "",
        *,
        version: int | None = None,
        label: str = "",
        **inputs: Any,
    ) -> predict_pb2.PredictRequest:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self.model
        request.model_spec.signature_name = signature
        if version is not None:
            request.model_spec.version.value = version
        if label:
            request.model_spec.version_label = label
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        return request

    def predict(self, signature: str = "", **given: Any) -> dict[str, Any]:
        reply = self.prediction.Predict(self.request(signature, **given), timeout=30)
        outputs = {n: tf.make_ndarray(t) for n, t in reply.outputs.items()}
        return outputs | {"version": reply.model_spec.version.value}

    def states(self) -> dict[int, str]:
        """State names by version."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model
        reply = self.service.GetModelStatus(request, timeout=30)
        names = get_model_status_pb2.ModelVersionStatus.State
        return {v.version: names.Name(v.state) for v in reply.model_version_status}


@contextlib.contextmanager
def serving(path, model: str = "toy", **options: Any):
    """A caller of a server that serves ``path`` until the block ends."""
    with (
        EmbeddedServer(path, name=model, **options) as server,
        Caller(server.target, model) as caller,
    ):
        yield caller


@contextlib.contextmanager
def refused(code: str, words: str = ""):
    """Assert that the block raises an RpcError of this status, with these words."""
    try:
        yield
    except grpc.RpcError as error:
        assert error.code().name == code, (error.code(), error.details())
        assert words in error.details()
    else:
        raise AssertionError(f"expected {code}")

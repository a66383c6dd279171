"""The gRPC methods: PredictionService and ModelService.

Predict works on the messages' bytes, so that a cache of many megabytes is never parsed
into protobuf objects; the small methods use the official message classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
)

from ..codec.predict import (
    ModelSpec,
    decode_predict_request,
    encode_predict_response,
)
from ..errors import InvalidRequest, MalformedMessage
from .config_files import models_from_config
from .grpc_front import Method
from .manager import ModelManager
from .model_version import Version
from .predict import Runner, predict
from .serving_error import ServingError, internal, invalid_argument, not_found

SIGNATURE_DEF = "signature_def"


class Services:
    """Answers calls with the models that a manager holds."""

    def __init__(
        self,
        manager: ModelManager,
        run: Runner,
        *,
        tensor_content: bool,
        allow_reload: bool,
    ) -> None:
        self._manager = manager
        self._run = run
        self._tensor_content = tensor_content
        self._allow_reload = allow_reload

    def methods(self) -> dict[str, dict[str, Method]]:
        """What the gRPC server answers, by service and method."""
        return {
            "tensorflow.serving.PredictionService": {
                "Predict": self.predict,
                "GetModelMetadata": _official(
                    self.metadata, get_model_metadata_pb2.GetModelMetadataRequest
                ),
            },
            "tensorflow.serving.ModelService": {
                "GetModelStatus": _official(
                    self.status, get_model_status_pb2.GetModelStatusRequest
                ),
                "HandleReloadConfigRequest": _official(
                    self.reload, model_management_pb2.ReloadConfigRequest
                ),
            },
        }

    def predict(self, data: bytes) -> bytes:
        """PredictRequest bytes to PredictResponse bytes; raises ``ServingError``."""
        try:
            request = decode_predict_request(data)
        except MalformedMessage as error:
            if error.tensor is None:
                raise internal("") from None
            raise invalid_argument(f"tensor parsing error: {error.tensor}") from None
        spec = request.model
        with self._manager.lease(spec.name, spec.version, spec.version_label) as (
            version,
            servable,
        ):
            name, outputs = predict(servable, request, self._run)
            try:
                return encode_predict_response(
                    ModelSpec(spec.name, name, version),
                    outputs,
                    tensor_content=self._tensor_content,
                )
            except InvalidRequest as error:
                raise ServingError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
                ) from None

    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Signatures of a model version."""
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid_argument(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise invalid_argument(f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with self._manager.lease(*_spec(request.model_spec)) as (version, servable):
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, signature in servable.signatures.items():
                signatures.signature_def[name].CopyFrom(signature.proto)
            response.model_spec.name = request.model_spec.name
            response.model_spec.version.value = version
            response.metadata[SIGNATURE_DEF].Pack(signatures)
        return response

    def status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """States of a model's versions, newest first."""
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        name, number, label = _spec(request.model_spec)
        if label:
            number = self._manager.labelled(name, label)
        versions = self._manager.versions(name)
        if number is not None:
            versions = [v for v in versions if v.number == number]
            if not versions:
                raise not_found(f"Could not find version {number} of model {name}")
        if not versions:
            raise not_found(f"Could not find any versions of model {name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in versions:
            _describe(version, response.model_version_status.add())
        return response

    def reload(
        self, request: model_management_pb2.ReloadConfigRequest
    ) -> model_management_pb2.ReloadConfigResponse:
        """Serve other models, or other versions of them, where that is allowed."""
        if not self._allow_reload:
            raise ServingError(
                grpc.StatusCode.PERMISSION_DENIED,
                "HandleReloadConfigRequest is off: start the server with "
                "--allow-reload to let callers change what it serves",
            )
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest."
                " Only ModelConfigList is currently supported"
            )
        self._manager.reconfigure(models_from_config(request.config))
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        return response


def _spec(spec: Any) -> tuple[str, int | None, str]:
    version = spec.version.value if spec.HasField("version") else None
    return spec.name, version, spec.version_label


def _describe(version: Version, proto: Any) -> None:
    proto.version = version.number
    proto.state = int(version.state)
    proto.status.SetInParent()
    if version.error is not None:
        proto.status.error_code = version.error.number
        proto.status.error_message = version.error.details


def _official(
    method: Callable[[Any], Message], request_class: Callable[[], Message]
) -> Method:
    def on_bytes(data: bytes) -> bytes:
        request = request_class()
        try:
            request.ParseFromString(data)
        except DecodeError:
            raise internal("") from None
        return method(request).SerializeToString()

    return on_bytes

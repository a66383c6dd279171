"""The messages of TensorFlow Serving's gRPC API, without generated classes.

Compatible on the wire with ``tensorflow_serving.apis`` and never in its way: nothing
is registered, so both may live in one process. ``wire`` knows protobuf, ``tensors``
TensorProto, ``predict`` and ``model_info`` the messages.
"""

from ..errors import MalformedMessage
from .model_info import (
    ModelMetadata,
    SignatureInfo,
    TensorInfo,
    VersionStatus,
    decode_metadata_response,
    decode_status_response,
    encode_metadata_request,
    encode_status_request,
)
from .predict import (
    ModelSpec,
    PredictRequest,
    PredictResponse,
    decode_predict_request,
    decode_predict_response,
    encode_predict_request,
    encode_predict_response,
)
from .row_blocks import RowBlocks, Tensor
from .tensors import EXPANSION_LIMIT

__all__ = [
    "EXPANSION_LIMIT",
    "MalformedMessage",
    "ModelMetadata",
    "ModelSpec",
    "PredictRequest",
    "PredictResponse",
    "RowBlocks",
    "SignatureInfo",
    "Tensor",
    "TensorInfo",
    "VersionStatus",
    "decode_metadata_response",
    "decode_predict_request",
    "decode_predict_response",
    "decode_status_response",
    "encode_metadata_request",
    "encode_predict_request",
    "encode_predict_response",
    "encode_status_request",
]

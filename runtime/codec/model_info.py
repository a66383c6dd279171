"""GetModelStatus and GetModelMetadata: is the model there, and what are its signatures.

After ``get_model_status.proto``, ``get_model_metadata.proto`` and TensorFlow's
``meta_graph.proto`` (SignatureDef, TensorInfo).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .dtypes import BY_NUMBER
from .predict import ModelSpec, decode_model_spec, encode_model_spec
from .tensors import decode_shape
from .wire import LENGTH, VARINT, Buffer, block, fields, signed, text

STATES = {
    0: "UNKNOWN",
    10: "START",
    20: "LOADING",
    30: "AVAILABLE",
    40: "UNLOADING",
    50: "END",
}


@dataclass(frozen=True)
class VersionStatus:
    """One version of a model: ``state`` is one of ``STATES``' names."""

    version: int
    state: str
    error_code: int = 0
    error_message: str = ""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a served signature.

    ``dtype`` is numpy's name ("string" for bytes, "" if unknown here); ``shape`` has
    None for a size that varies, and is None itself if the rank is unknown.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class SignatureInfo:
    """A served signature: its inputs and outputs by alias."""

    inputs: dict[str, TensorInfo] = field(default_factory=dict)
    outputs: dict[str, TensorInfo] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelMetadata:
    """A served model's signatures by name; ``model`` names the version."""

    model: ModelSpec
    signatures: dict[str, SignatureInfo]


def encode_status_request(model: ModelSpec) -> bytes:
    """A GetModelStatusRequest's bytes."""
    return block(1, encode_model_spec(model))


def encode_metadata_request(model: ModelSpec) -> bytes:
    """A GetModelMetadataRequest's bytes, asking for ``signature_def``."""
    return block(1, encode_model_spec(model)) + block(2, b"signature_def")


def decode_status_response(data: bytes) -> list[VersionStatus]:
    """The versions that a GetModelStatusResponse lists, newest first.

    Raises:
        MalformedMessage: not a GetModelStatusResponse.
    """
    statuses = [
        _version_status(data, a, b)
        for number, wire_type, a, b, _ in fields(data, 0, len(data))
        if number == 1 and wire_type == LENGTH
    ]
    return sorted(statuses, key=lambda status: -status.version)


def _version_status(data: Buffer, start: int, end: int) -> VersionStatus:
    version = state = code = 0
    message = ""
    for number, wire_type, a, b, value in fields(data, start, end):
        if number == 1 and wire_type == VARINT:
            version = signed(value)
        elif number == 2 and wire_type == VARINT:
            state = value
        elif number == 3 and wire_type == LENGTH:
            for inner, inner_type, c, d, inner_value in fields(data, a, b):
                if inner == 1 and inner_type == VARINT:
                    code = inner_value
                elif inner == 2 and inner_type == LENGTH:
                    message = text(data, c, d)
    return VersionStatus(version, STATES.get(state, "UNKNOWN"), code, message)


def decode_metadata_response(data: bytes) -> ModelMetadata:
    """The signatures that a GetModelMetadataResponse carries.

    Raises:
        MalformedMessage: not a GetModelMetadataResponse.
    """
    model = ModelSpec("")
    signatures: dict[str, SignatureInfo] = {}
    for number, wire_type, a, b, _ in fields(data, 0, len(data)):
        if number == 1 and wire_type == LENGTH:
            model = decode_model_spec(data, a, b)
        elif number == 2 and wire_type == LENGTH:
            key, any_start, any_end = _entry(data, a, b)
            if key != "signature_def":
                continue
            for inner, inner_type, c, d, _ in fields(data, any_start, any_end):
                if inner == 2 and inner_type == LENGTH:
                    signatures = _signature_map(data, c, d)
    return ModelMetadata(model, signatures)


def _entry(data: Buffer, start: int, end: int) -> tuple[str, int, int]:
    """A map entry's key, and where its value's bytes are."""
    key, first, last = "", start, start
    for number, wire_type, a, b, _ in fields(data, start, end):
        if number == 1 and wire_type == LENGTH:
            key = text(data, a, b)
        elif number == 2 and wire_type == LENGTH:
            first, last = a, b
    return key, first, last


def _signature_map(data: Buffer, start: int, end: int) -> dict[str, SignatureInfo]:
    signatures = {}
    for number, wire_type, a, b, _ in fields(data, start, end):
        if number == 1 and wire_type == LENGTH:
            name, first, last = _entry(data, a, b)
            signatures[name] = _signature(data, first, last)
    return signatures


def _signature(data: Buffer, start: int, end: int) -> SignatureInfo:
    signature = SignatureInfo()
    for number, wire_type, a, b, _ in fields(data, start, end):
        if wire_type == LENGTH and number in (1, 2):
            alias, first, last = _entry(data, a, b)
            side = signature.inputs if number == 1 else signature.outputs
            side[alias] = _tensor_info(data, first, last)
    return signature


def _tensor_info(data: Buffer, start: int, end: int) -> TensorInfo:
    dtype = ""
    shape: tuple[int | None, ...] | None = ()
    for number, wire_type, a, b, value in fields(data, start, end):
        if number == 2 and wire_type == VARINT:
            dtype = BY_NUMBER[value].name if value in BY_NUMBER else ""
        elif number == 3 and wire_type == LENGTH:
            sizes = decode_shape(data, a, b)
            shape = (
                None
                if sizes is None
                else tuple(None if size < 0 else size for size in sizes)
            )
    return TensorInfo(dtype, shape)

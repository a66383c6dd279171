"""PredictRequest and PredictResponse, after ``tensorflow_serving/apis/predict.proto``.

Requests are assembled with one copy of each tensor; replies are views of the message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ..contract import MESSAGE_LIMIT
from ..errors import InvalidRequest, MalformedMessage
from .row_blocks import Tensor
from .tensors import EXPANSION_LIMIT, Budget, RawTensor, encode_tensor
from .wire import (
    LENGTH,
    VARINT,
    Buffer,
    block,
    fields,
    signed,
    tag,
    text,
    varint,
)

_MAX_TENSORS = 4096  # bounds what a message of many tiny entries may allocate


@dataclass(frozen=True)
class ModelSpec:
    """Which model, version and signature; ``model.proto``.

    ``version`` None and ``version_label`` empty mean the newest version; ``signature``
    empty means ``serving_default``.
    """

    name: str
    signature: str = ""
    version: int | None = None
    version_label: str = ""


@dataclass(frozen=True)
class PredictRequest:
    """A decoded request. ``outputs`` names those to fetch, empty for all."""

    model: ModelSpec
    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class PredictResponse:
    """A decoded reply. ``model`` names the version that answered."""

    model: ModelSpec
    outputs: dict[str, np.ndarray]


def encode_predict_request(
    model: ModelSpec,
    inputs: Mapping[str, Tensor],
    outputs: Iterable[str] = (),
    *,
    limit: int = MESSAGE_LIMIT,
) -> bytes:
    """The message's bytes; every tensor in ``tensor_content``, copied once.

    Raises:
        InvalidRequest: a dtype that can't be sent, or more than ``limit`` bytes.
    """
    head = block(1, encode_model_spec(model))
    tail = b"".join(block(3, name.encode()) for name in outputs)
    buffers, size = _tensor_map(2, inputs)
    total = size + len(head) + len(tail)
    if total > limit:
        raise InvalidRequest(
            f"the request would have {total} bytes, at most {limit} are possible: "
            "send fewer rows or a shorter cache"
        )
    return b"".join([head, *buffers, tail])


def encode_predict_response(
    model: ModelSpec,
    outputs: Mapping[str, np.ndarray],
    *,
    tensor_content: bool = False,
) -> bytes:
    """The reply's bytes, in typed fields like a default server's or in raw bytes.

    Raises:
        InvalidRequest: a dtype that can't be sent, or a reply above 2 GiB.
    """
    buffers, size = _tensor_map(
        1, outputs, typed=not tensor_content, strings_in_content=tensor_content
    )
    tail = block(2, encode_model_spec(model))
    if size + len(tail) > MESSAGE_LIMIT:
        raise InvalidRequest(
            f"the reply would have {size + len(tail)} bytes, "
            f"at most {MESSAGE_LIMIT} are possible"
        )
    return b"".join([*buffers, tail])


def decode_predict_request(
    data: Buffer, *, expansion_limit: int = EXPANSION_LIMIT
) -> PredictRequest:
    """A request's inputs, as views where possible.

    Raises:
        MalformedMessage: not a PredictRequest; ``tensor`` names a tensor at fault.
    """
    model, tensors, outputs = _parse(data, 1, 2, 3)
    return PredictRequest(model, _arrays(tensors, expansion_limit), tuple(outputs))


def decode_predict_response(
    data: Buffer, *, expansion_limit: int = EXPANSION_LIMIT
) -> PredictResponse:
    """A reply's outputs, as views where possible.

    Args:
        data: the message.
        expansion_limit: bytes that repeated trailing values may take in all.

    Raises:
        MalformedMessage: not a PredictResponse; ``tensor`` names a tensor at fault.
    """
    model, tensors, _ = _parse(data, 2, 1, None)
    return PredictResponse(model, _arrays(tensors, expansion_limit))


def encode_model_spec(model: ModelSpec) -> bytes:
    """A ModelSpec's bytes."""
    out = block(1, model.name.encode()) if model.name else b""
    if model.version is not None:
        value = tag(1, VARINT) + varint(model.version) if model.version else b""
        out += block(2, value)
    elif model.version_label:
        out += block(4, model.version_label.encode())
    if model.signature:
        out += block(3, model.signature.encode())
    return out


def decode_model_spec(data: Buffer, start: int, end: int) -> ModelSpec:
    """The ModelSpec in ``data[start:end]``."""
    name = signature = label = ""
    version: int | None = None
    for number, wire_type, a, b, _ in fields(data, start, end):
        if wire_type != LENGTH:
            continue
        if number == 1:
            name = text(data, a, b)
        elif number == 2:
            version, label = _int64_value(data, a, b, version or 0), ""
        elif number == 3:
            signature = text(data, a, b)
        elif number == 4:
            version, label = None, text(data, a, b)
    return ModelSpec(name, signature, version, label)


def _int64_value(data: Buffer, start: int, end: int, value: int) -> int:
    for number, wire_type, _, _, word in fields(data, start, end):
        if number == 1 and wire_type == VARINT:
            value = signed(word)
    return value


def _tensor_map(
    field: int, tensors: Mapping[str, Tensor], **options: bool
) -> tuple[list[Buffer], int]:
    """A ``map<string, TensorProto>`` field as buffers, and their length in all."""
    buffers: list[Buffer] = []
    total = 0
    for name, array in tensors.items():
        try:
            body, size = encode_tensor(array, **options)
        except InvalidRequest as error:
            raise InvalidRequest(f"tensor {name!r}: {error}") from None
        entry = block(1, name.encode()) + tag(2, LENGTH) + varint(size)
        head = tag(field, LENGTH) + varint(len(entry) + size) + entry
        buffers += [head, *body]
        total += len(head) + size
    return buffers, total


def _parse(
    data: Buffer, spec_field: int, tensor_field: int, name_field: int | None
) -> tuple[ModelSpec, dict[str, RawTensor], list[str]]:
    """The fields that both messages have; no array is made yet."""
    if not isinstance(data, bytes):
        data = memoryview(data).cast("B")
    spec = bytearray()  # given in parts, their concatenation is the merged message
    tensors: dict[str, RawTensor] = {}
    names: list[str] = []
    for number, wire_type, a, b, _ in fields(data, 0, len(data)):
        if wire_type != LENGTH:
            continue
        if number == spec_field:
            spec += data[a:b]
        elif number == tensor_field:
            key, tensor = _map_entry(data, a, b)
            tensors[key] = tensor  # a key given twice: the last one counts
            if len(tensors) > _MAX_TENSORS:
                raise MalformedMessage(f"it has more than {_MAX_TENSORS} tensors")
        elif number == name_field:
            names.append(text(data, a, b))
    return decode_model_spec(spec, 0, len(spec)), tensors, names


def _map_entry(data: Buffer, start: int, end: int) -> tuple[str, RawTensor]:
    """One entry of a ``map<string, TensorProto>``: its key and its value."""
    key = ""
    value = (start, start)
    parts: bytearray | None = None  # of a value in parts, as above
    for number, wire_type, a, b, _ in fields(data, start, end):
        if wire_type == LENGTH and number == 1:
            key = text(data, a, b)
        elif wire_type == LENGTH and number == 2:
            if parts is None and value[1] > value[0]:
                parts = bytearray(data[slice(*value)])
            if parts is not None:
                parts += data[a:b]
            value = (a, b)
    if parts is not None:
        return key, RawTensor(bytes(parts), 0, len(parts))
    return key, RawTensor(data, *value)


def _arrays(tensors: dict[str, RawTensor], limit: int) -> dict[str, np.ndarray]:
    budget = Budget(limit)
    arrays = {}
    for name, tensor in tensors.items():
        try:
            arrays[name] = tensor.array(budget)
        except MalformedMessage:
            raise
        except ValueError as error:
            raise MalformedMessage(
                f"malformed message: tensor {name!r}: {error}", tensor=name
            ) from None
    return arrays

"""TensorProto to and from numpy, after ``tensorflow/core/framework/tensor.proto``.

A tensor travels in ``tensor_content`` (little-endian raw bytes) or in a field typed
after its dtype. Typed values may be fewer than the shape says: the last one repeats,
and none at all means zeros (``FromProtoField`` in tensorflow's ``tensor.cc``).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np

from ..contract import MESSAGE_LIMIT
from ..errors import InvalidRequest, MalformedMessage
from .dtypes import BY_NAME, BY_NUMBER, FIELD_WIRE, DType, bfloat16
from .row_blocks import RowBlocks, Tensor
from .wire import (
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    Buffer,
    block,
    decode_varints,
    encode_varints,
    fields,
    read_varint,
    signed,
    tag,
    varint,
)

EXPANSION_LIMIT = 256 << 20
"""Bytes that one message's repeated trailing values may expand to by default."""

_MAX_RANK = 32  # numpy 1's own limit
_MIN_BLOCK = 1 << 14  # bytes; below it joining buffers costs more than one more copy
_ZEROS = memoryview(bytes(1 << 16))
_LITTLE = sys.byteorder == "little"


# --- writing --------------------------------------------------------------------


def encode_tensor(
    array: Tensor, *, typed: bool = False, strings_in_content: bool = False
) -> tuple[list[Buffer], int]:
    """A TensorProto as buffers to join, and their length in all.

    Large buffers are views of ``array``, which must not change before they are joined.

    Args:
        array: any shape and strides; object and string arrays hold bytes or str.
            ``RowBlocks`` are sent block by block (never in typed fields).
        typed: use the dtype's own field, as the server does by default.
        strings_in_content: strings go to ``tensor_content``, as the server's
            ``--enable_serialization_as_tensor_content`` does.

    Raises:
        InvalidRequest: a dtype that has no place in a TensorProto.
    """
    if isinstance(array, RowBlocks) and not typed and array.dtype.isbuiltin == 1:
        return _encode_blocks(array)
    array = np.asarray(array)
    dtype = _dtype_of(array)
    head = b"\x08" + varint(dtype.number) + block(2, _encode_shape(array.shape))
    body: Sequence[Buffer]
    if not array.size:
        field, body = 0, []
    elif dtype.name == "string":
        values = _byte_strings(array)
        if not strings_in_content:
            payload = b"".join(block(dtype.field, value) for value in values)
            return [head, payload], len(head) + len(payload)
        field, body = 4, [b"".join([*(varint(len(v)) for v in values), *values])]
    elif typed and dtype.wire == VARINT:
        field, body = dtype.field, [encode_varints(_integers(array, dtype)).data]
    else:
        field = dtype.field if typed else 4
        body = _contiguous_buffers(_carried(array, dtype))
    if not field:
        return [head], len(head)
    size = sum(len(buffer) for buffer in body)
    head += tag(field, LENGTH) + varint(size)
    return [head, *body], len(head) + size


def _encode_blocks(blocks: RowBlocks) -> tuple[list[Buffer], int]:
    """A TensorProto of blocks and zeros: still one copy, onto the wire."""
    dtype = BY_NAME[blocks.dtype.name]
    body: list[Buffer] = []
    for part in blocks.memory():
        if isinstance(part, int):
            whole, rest = divmod(part, len(_ZEROS))
            body += [_ZEROS] * whole + [_ZEROS[:rest]]
        elif part.size:
            body += _contiguous_buffers(_carried(part, dtype))
    size = blocks.nbytes
    head = b"\x08" + varint(dtype.number) + block(2, _encode_shape(blocks.shape))
    if size:
        head += tag(4, LENGTH) + varint(size)
    return [head, *body], len(head) + size


def _dtype_of(array: np.ndarray) -> DType:
    kind = array.dtype.kind
    name = "string" if kind in "OSU" else array.dtype.name
    if name not in BY_NAME:
        raise InvalidRequest(
            f"a tensor of dtype {array.dtype} cannot be sent: "
            f"convert it to one of {', '.join(BY_NAME)}"
        )
    return BY_NAME[name]


def _encode_shape(shape: Sequence[int]) -> bytes:
    sizes = (b"\x08" + varint(size) if size else b"" for size in shape)
    return b"".join(block(2, size) for size in sizes)


def _byte_strings(array: np.ndarray) -> list[bytes]:
    values: list[bytes] = []
    for value in array.reshape(-1).tolist():
        if isinstance(value, str):
            value = value.encode()
        if not isinstance(value, bytes):
            raise InvalidRequest(
                f"a string tensor holds {type(value).__name__}: give bytes or str"
            )
        values.append(value)
    return values


def _carried(array: np.ndarray, dtype: DType) -> np.ndarray:
    """``array`` with the bytes that travel; a view on little-endian machines."""
    if not _LITTLE or array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.view(dtype.carrier)


def _integers(array: np.ndarray, dtype: DType) -> np.ndarray:
    flat = array.reshape(-1)
    return flat.view(np.uint16) if dtype.field == 13 else flat


def _contiguous_buffers(array: np.ndarray) -> list[Buffer]:
    """The array's bytes as views, so that joining them is the only copy.

    A cache cut out of a larger buffer is contiguous from some axis on: one buffer for
    each index of the axes before it. Only finely scattered arrays are copied first.
    """
    axis = array.ndim
    inner = array.itemsize
    while axis and (array.strides[axis - 1] == inner or array.shape[axis - 1] == 1):
        axis -= 1
        inner *= array.shape[axis]
    if axis and inner < _MIN_BLOCK:
        array, axis = np.ascontiguousarray(array), 0
    return [
        np.ascontiguousarray(array[index]).reshape(-1).view(np.uint8).data
        for index in np.ndindex(array.shape[:axis])
    ]


# --- reading --------------------------------------------------------------------


class Budget:
    """How many bytes the tensors of one message may still expand to."""

    def __init__(self, limit: int = EXPANSION_LIMIT) -> None:
        self.left = limit

    def take(self, size: int) -> None:
        """Count ``size`` bytes before they are allocated."""
        if size > self.left:
            raise ValueError(
                f"its trailing value would be repeated to {size} bytes, "
                f"{self.left} are allowed"
            )
        self.left -= size


class RawTensor:
    """A TensorProto's fields, located but not yet an array."""

    def __init__(self, data: Buffer, start: int, end: int) -> None:
        self.number = 0
        self.shape: list[int] = []
        self.rank_known = True
        self.content: tuple[int, int] | None = None
        self._data = data
        self._typed: dict[int, tuple[int, int] | bytearray] = {}
        self._strings: list[bytes] = []
        self._parse(data, start, end)

    def _parse(self, data: Buffer, start: int, end: int) -> None:
        for number, wire_type, a, b, value in fields(data, start, end):
            if number == 1 and wire_type == VARINT:
                self.number = value
            elif number == 2 and wire_type == LENGTH:
                more = decode_shape(data, a, b)
                if more is None:
                    self.rank_known = False
                else:
                    self.shape += more
            elif number == 4 and wire_type == LENGTH:
                self.content = (a, b)
            elif number == 8 and wire_type == LENGTH:
                self._strings.append(bytes(data[a:b]))
            elif wire_type in (FIELD_WIRE.get(number), LENGTH) and number in FIELD_WIRE:
                self._add(number, a, b)

    def _add(self, field: int, a: int, b: int) -> None:
        """Packed or not, a field's values are the concatenation of its payloads."""
        wire_type = FIELD_WIRE[field]
        item = {FIXED32: 4, FIXED64: 8, VARINT: 1}[wire_type]
        if (b - a) % item or (
            wire_type == VARINT and b > a and self._data[b - 1] > 127
        ):
            raise MalformedMessage(f"malformed message: field {field} ends in a value")
        old = self._typed.get(field)
        if old is None:
            self._typed[field] = (a, b)
            return
        if isinstance(old, tuple):
            old = bytearray(self._data[old[0] : old[1]])
            self._typed[field] = old
        old += self._data[a:b]

    def array(self, budget: Budget) -> np.ndarray:
        """The tensor; a view of the message where it can be.

        Raises:
            ValueError: dtype, shape and values don't fit together.
            MalformedMessage: a typed field isn't a list of varints.
        """
        dtype = BY_NUMBER.get(self.number)
        if dtype is None:
            raise ValueError(f"its dtype number {self.number} is not supported")
        shape = self._checked_shape(dtype)
        count = math.prod(shape)
        if not count:
            return np.empty(shape, _result_dtype(dtype))
        if self.content is not None and self.content[1] > self.content[0]:
            flat = self._from_content(dtype, count)
        elif dtype.name == "string":
            flat = _object_array(self._strings)
        else:
            flat = self._from_typed(dtype)
        return _fill(_restored(flat, dtype), count, budget).reshape(shape)

    def _checked_shape(self, dtype: DType) -> tuple[int, ...]:
        if not self.rank_known:
            raise ValueError("its rank is unknown")
        if len(self.shape) > _MAX_RANK:
            raise ValueError(f"its rank {len(self.shape)} is above {_MAX_RANK}")
        if any(size < 0 for size in self.shape):
            raise ValueError(f"its shape {self.shape} has a negative size")
        item = np.dtype(dtype.carrier).itemsize
        if math.prod(max(size, 1) for size in self.shape) * item > MESSAGE_LIMIT:
            raise ValueError(f"its shape {self.shape} needs more than 2 GiB")
        return tuple(self.shape)

    def _from_content(self, dtype: DType, count: int) -> np.ndarray:
        assert self.content is not None
        start, end = self.content
        if dtype.name == "string":
            return _object_array(_split_strings(self._data, start, end, count))
        expected = count * np.dtype(dtype.carrier).itemsize
        if end - start != expected:
            raise ValueError(
                f"its tensor_content has {end - start} bytes, its shape "
                f"{self.shape} of {dtype.name} needs {expected}"
            )
        return np.frombuffer(self._data, dtype.carrier, count, start)

    def _from_typed(self, dtype: DType) -> np.ndarray:
        got = self._typed.get(dtype.field, (0, 0))
        raw = (
            np.frombuffer(self._data, np.uint8, got[1] - got[0], got[0])
            if isinstance(got, tuple)
            else np.frombuffer(got, np.uint8)
        )
        if dtype.wire != VARINT:
            item = np.dtype(dtype.carrier).itemsize
            if raw.size % item:
                raise ValueError(f"it has half a {dtype.name}")
            return raw.view(dtype.carrier)
        words = decode_varints(raw)
        if dtype.name == "bool":
            return words != 0
        if dtype.name == "float16":
            return words.astype(np.uint16).view(np.float16)
        return words.astype(dtype.carrier)


def decode_shape(data: Buffer, start: int, end: int) -> list[int] | None:
    """Sizes of a TensorShapeProto (−1 unknown), None if the rank is unknown."""
    sizes: list[int] = []
    unknown = False
    for number, wire_type, a, b, value in fields(data, start, end):
        if number == 2 and wire_type == LENGTH:
            size = 0
            for inner, inner_type, _, _, inner_value in fields(data, a, b):
                if inner == 1 and inner_type == VARINT:
                    size = signed(inner_value)
            sizes.append(size)
        elif number == 3 and wire_type == VARINT:
            unknown = bool(value)
    return None if unknown else sizes


def _result_dtype(dtype: DType) -> np.dtype:
    if dtype.name == "bfloat16":
        return bfloat16() or np.dtype(np.float32)
    return np.dtype(dtype.carrier)


def _restored(flat: np.ndarray, dtype: DType) -> np.ndarray:
    """Carrier values as the dtype's own: bfloat16, and bools that are 0 or 1."""
    if dtype.name == "bool" and flat.view(np.uint8).max(initial=0) > 1:
        return flat.view(np.uint8) != 0
    if dtype.name != "bfloat16":
        return flat
    known = bfloat16()
    if known is not None:
        return flat.view(known)
    return (flat.astype(np.uint32) << 16).view(np.float32)  # exact: its upper half


def _fill(flat: np.ndarray, count: int, budget: Budget) -> np.ndarray:
    """``count`` values of fewer: the last one repeats, none means zeros."""
    if flat.size == count:
        return flat
    if flat.size > count:
        raise ValueError(f"it has {flat.size} values, its shape holds {count}")
    if flat.size <= 1:  # a view with stride 0 takes no memory
        empty = b"" if flat.dtype == object else 0
        one = flat if flat.size else np.full(1, empty, flat.dtype)
        return np.broadcast_to(one, count)
    budget.take(count * flat.itemsize)
    filled = np.empty(count, flat.dtype)
    filled[: flat.size] = flat
    filled[flat.size :] = flat[-1]
    return filled


def _object_array(values: list[bytes]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _split_strings(data: Buffer, start: int, end: int, count: int) -> list[bytes]:
    """Strings of a ``tensor_content``: ``count`` varint lengths, then the bytes."""
    if count > end - start:
        raise ValueError(f"it has {count} strings in {end - start} bytes")
    sizes = []
    for _ in range(count):
        size, start = read_varint(data, start, end)
        sizes.append(size)
    if sum(sizes) != end - start:
        raise ValueError(f"its strings need {sum(sizes)} bytes, not {end - start}")
    values = []
    for size in sizes:
        values.append(bytes(data[start : start + size]))
        start += size
    return values

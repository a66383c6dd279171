"""Protocol Buffers wire format: varints and fields, no generated classes.

https://protobuf.dev/programming-guides/encoding/. Parsing costs time linear in the
message and never more memory than a small multiple of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import MalformedMessage

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

Buffer = bytes | bytearray | memoryview
Field = tuple[int, int, int, int, int]
"""(field number, wire type, payload start, payload end, value if it is a varint)"""

_MAX_VARINT = 10
_WORD = (1 << 64) - 1
_CHUNK = 1 << 18  # varints handled at once: keeps numpy's temporaries in the cache
_ONE_BYTE = [bytes([value]) for value in range(0x80)]  # most tags, sizes and values


def varint(value: int) -> bytes:
    """A non-negative integer (or a negative int64, in its ten bytes)."""
    if 0 <= value < 0x80:
        return _ONE_BYTE[value]
    value &= _WORD
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int, wire_type: int) -> bytes:
    """What stands before a field's payload."""
    return varint(number << 3 | wire_type)


def block(number: int, payload: bytes) -> bytes:
    """A length-delimited field: string, bytes, message or packed list."""
    return tag(number, LENGTH) + varint(len(payload)) + payload


def read_varint(data: Buffer, pos: int, end: int) -> tuple[int, int]:
    """The unsigned varint at ``pos`` and the position after it."""
    if pos < end and data[pos] < 0x80:
        return data[pos], pos + 1
    value = shift = 0
    for i in range(pos, min(end, pos + _MAX_VARINT)):
        byte = data[i]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _WORD, i + 1
        shift += 7
    raise MalformedMessage("malformed message: a varint does not end")


def signed(value: int) -> int:
    """A varint's value read as int64."""
    return value - (1 << 64) if value >> 63 else value


def fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in ``data[start:end]``, in order.

    Raises:
        MalformedMessage: truncated, or a wire type that protobuf 3 does not use.
    """
    pos = start
    while pos < end:
        key, pos = read_varint(data, pos, end)
        number, wire_type = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise MalformedMessage(f"malformed message: field number {number}")
        value, first = 0, pos
        if wire_type == VARINT:
            value, pos = read_varint(data, pos, end)
        elif wire_type == LENGTH:
            size, first = read_varint(data, pos, end)
            pos = first + size
        elif wire_type in (FIXED32, FIXED64):
            pos += 4 if wire_type == FIXED32 else 8
        else:
            raise MalformedMessage(f"malformed message: wire type {wire_type}")
        if pos > end:
            raise MalformedMessage(
                f"malformed message: field {number} ends {pos - end} bytes after it"
            )
        yield number, wire_type, first, pos, value


def text(data: Buffer, start: int, end: int) -> str:
    """A ``string`` field's value."""
    try:
        return str(data[start:end], "utf-8")
    except UnicodeDecodeError:
        raise MalformedMessage("malformed message: a string is not UTF-8") from None


def decode_varints(raw: np.ndarray) -> np.ndarray:
    """All varints in a uint8 array, as uint64.

    Raises:
        MalformedMessage: the last one does not end, or one has more than ten bytes.
    """
    if not raw.size:
        return np.empty(0, np.uint64)
    if raw[-1] > 0x7F:
        raise MalformedMessage("malformed message: a packed list ends inside a varint")
    last = raw < 0x80
    count = int(np.count_nonzero(last))
    if count == raw.size:
        return raw.astype(np.uint64)
    out = np.empty(count, np.uint64)
    done = pos = 0
    while pos < raw.size:
        stop = min(pos + _CHUNK, raw.size)
        ends = np.flatnonzero(last[pos:stop])
        if not ends.size:
            raise MalformedMessage("malformed message: a varint does not end")
        used = int(ends[-1]) + 1
        out[done : done + ends.size] = _chunk_of_varints(raw[pos : pos + used], ends)
        done += ends.size
        pos += used
    return out


def _chunk_of_varints(raw: np.ndarray, ends: np.ndarray) -> np.ndarray:
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    longest = int((ends - starts).max()) + 1
    if longest > _MAX_VARINT:
        raise MalformedMessage("malformed message: a varint has over ten bytes")
    values = (raw[starts] & 0x7F).astype(np.uint64)
    for i in range(1, longest):
        at = starts + i
        reaches = at <= ends
        part = raw[np.minimum(at, ends)].astype(np.uint64) & np.uint64(0x7F)
        values |= np.where(reaches, part, np.uint64(0)) << np.uint64(7 * i)
    return values


def encode_varints(values: np.ndarray) -> np.ndarray:
    """A flat array of integers as packed varints (uint8); negatives as int64."""
    chunks = [values[i : i + _CHUNK] for i in range(0, values.size, _CHUNK)]
    return np.concatenate([np.empty(0, np.uint8), *map(_encode_chunk, chunks)])


def _encode_chunk(values: np.ndarray) -> np.ndarray:
    if values.dtype != np.uint64:
        values = values.astype(np.int64).view(np.uint64)
    if int(values.max()) < 0x80:
        return values.astype(np.uint8)
    sizes = np.ones(values.size, np.int64)
    for i in range(1, _MAX_VARINT):
        longer = values >= np.uint64(1 << 7 * i)
        if not longer.any():
            break
        sizes += longer
    starts = np.cumsum(sizes) - sizes
    out = np.empty(int(sizes.sum()), np.uint8)
    for i in range(int(sizes.max())):
        here = sizes > i
        part = (values[here] >> np.uint64(7 * i)).astype(np.uint8) & 0x7F
        out[starts[here] + i] = part | ((sizes[here] > i + 1) << 7).astype(np.uint8)
    return out

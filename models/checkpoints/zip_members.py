"""Where the members of an uncompressed zip archive lie in the file.

PyTorch stores tensors uncompressed so that they can be mapped. Anything compressed is
refused, so that nothing can unpack to more than the file is. The records are those of
PKWARE's APPNOTE.TXT, sections 4.3.7 to 4.3.16.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import CorruptFile, UnsafeFile, quoted
from .mapped import MappedFile

MAX_DIRECTORY = 4 << 20
"""Bytes of the list of members; the largest OPT's has 0.2 million."""

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Member:
    """One stored member: its name, and where its bytes are in the file."""

    name: str
    offset: int
    size: int


def read_members(file: MappedFile) -> dict[str, Member]:
    """The members by name; nothing is ever written to a path of theirs.

    Raises :class:`UnsafeFile` for compressed or encrypted members and for members that
    share bytes, :class:`CorruptFile` for a list that is broken or names one twice.
    """
    members: dict[str, Member] = {}
    for member in _central_directory(file):
        if member.name in members:
            raise CorruptFile(f"{file.path} holds {quoted(member.name)} twice")
        members[member.name] = member
    end = 0
    for member in sorted(members.values(), key=lambda m: (m.offset, m.size)):
        if member.offset < end:
            raise UnsafeFile(f"{file.path}: {quoted(member.name)} overlaps another")
        end = member.offset + member.size
    return members


def _central_directory(file: MappedFile) -> Iterator[Member]:
    offset, size = _locate(file)
    if size > MAX_DIRECTORY:
        raise CorruptFile(f"{file.path} lists members in {size} bytes, too many")
    data = file.read(offset, size)
    at = 0
    while at < len(data):
        if data[at : at + 4] != b"PK\x01\x02" or at + _CENTRAL.size > len(data):
            raise CorruptFile(f"{file.path} has a broken list of members")
        record = _CENTRAL.unpack_from(data, at)
        flags, method, packed, unpacked = record[3], record[4], record[8], record[9]
        lengths, local = record[10:13], record[16]
        at += _CENTRAL.size
        name = data[at : at + lengths[0]].decode("utf-8", "replace")
        extra = data[at + lengths[0] : at + lengths[0] + lengths[1]]
        at += sum(lengths)
        if method != 0 or flags & 1:
            raise UnsafeFile(
                f"{file.path}: {quoted(name)} is compressed or encrypted; PyTorch "
                "stores weights as they are, save the file again with torch.save"
            )
        sizes = _zip64(extra, [unpacked, packed, local])
        if sizes[0] != sizes[1]:
            raise CorruptFile(f"{file.path}: {quoted(name)} has two sizes")
        yield Member(name, _data_offset(file, sizes[2], name), sizes[0])


def _locate(file: MappedFile) -> tuple[int, int]:
    """Offset and size of the list of members, from the record at the file's end."""
    tail = min(file.size, _END.size + 65535)
    data = file.read(file.size - tail, tail)
    at = data.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(data):
        raise CorruptFile(f"{file.path} is truncated: its list of members is missing")
    *_, size, offset, _ = _END.unpack_from(data, at)
    if offset == 0xFFFFFFFF or size == 0xFFFFFFFF:
        position = file.size - tail + at - _LOCATOR64.size
        magic, _, record, _ = _LOCATOR64.unpack(file.read(position, _LOCATOR64.size))
        if magic != b"PK\x06\x07":
            raise CorruptFile(f"{file.path} has a broken end record")
        magic, *_, size, offset = _END64.unpack(file.read(record, _END64.size))
        if magic != b"PK\x06\x06":
            raise CorruptFile(f"{file.path} has a broken end record")
    return offset, size


def _zip64(extra: bytes, values: list[int]) -> list[int]:
    """Sizes and offset, those that did not fit 32 bits from the extra field."""
    large = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            large = extra[4 : 4 + length]
        extra = extra[4 + length :]
    for i, value in enumerate(values):
        if value == 0xFFFFFFFF and len(large) >= 8:
            values[i] = int.from_bytes(large[:8], "little")
            large = large[8:]
    return values


def _data_offset(file: MappedFile, local: int, name: str) -> int:
    """Where a member's bytes begin: after its local header, whose name must agree."""
    record = _LOCAL.unpack(file.read(local, _LOCAL.size))
    start = local + _LOCAL.size
    stored = file.read(start, record[9]).decode("utf-8", "replace")
    if record[0] != b"PK\x03\x04" or stored != name:
        raise CorruptFile(f"{file.path}: {quoted(name)} is not where the list says")
    return start + record[9] + record[10]

"""Flax's msgpack files: nested maps whose leaves are arrays.

An array is an extension of type 1 around ``[shape, dtype name, bytes]``; one of more
than 2**30 bytes is a map of flat chunks (``flax/serialization.py``). The reader walks
the structure only; the numbers are mapped from where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from .errors import CorruptFile, UnsupportedFile, quoted
from .mapped import DTYPES, MappedFile, Tensor, as_bytes, check_shape

MAX_DEPTH = 32
MAX_NODES = 100_000
MAX_NAME = 1024
_ARRAY = 1  # flax's extension type
_CHUNK = 2**30
_CHUNKED = "__msgpack_chunked_array__"

# First byte -> (kind, bytes of its length). Fixed-size numbers: (kind, their bytes).
_HEADS: dict[int, tuple[str, int]] = {
    **{0xC4 + i: ("bin", 1 << i) for i in range(3)},
    **{0xC7 + i: ("ext", 1 << i) for i in range(3)},
    **{0xD9 + i: ("str", 1 << i) for i in range(3)},
    **{0xDC + i: ("array", 2 << i) for i in range(2)},
    **{0xDE + i: ("map", 2 << i) for i in range(2)},
    **{0xCC + i: ("uint", 1 << i) for i in range(4)},
    **{0xD0 + i: ("int", 1 << i) for i in range(4)},
    **{0xCA + i: ("skip", 4 << i) for i in range(2)},  # floating point numbers
    **{0xD4 + i: ("fixext", 1 << i) for i in range(5)},
    **dict.fromkeys((192, 194, 195), ("skip", 0)),  # nil, false, true
}


def read_msgpack(path: Path) -> list[Tensor]:
    """The arrays of one file, named by their path: ``model/decoder/…/kernel``."""
    file = MappedFile(path)
    reader = _Reader(file)
    tree = reader.value(0)
    if not isinstance(tree, dict) or reader.at != file.size:
        raise CorruptFile(f"{path} should hold one msgpack map and nothing else")
    return list(_flatten(file, tree, ""))


def _flatten(file: MappedFile, tree: dict[str, Any], prefix: str) -> Iterator[Tensor]:
    for key, value in tree.items():
        name = f"{prefix}/{key}" if prefix else key
        if isinstance(value, dict) and _CHUNKED in value:
            yield _joined(file, name, value)
        elif isinstance(value, dict):
            yield from _flatten(file, value, name)
        elif isinstance(value, _Array):
            yield file.tensor(name, value.offset, value.shape, value.dtype)


class _Array:
    """An array that was met: where, and what of."""

    def __init__(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.offset, self.shape, self.dtype = offset, shape, dtype


class _Reader:
    """A position in a msgpack file that moves on with everything read."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.at = 0
        self.nodes = 0

    def corrupt(self, fault: str) -> CorruptFile:
        return CorruptFile(f"{self.file.path} at byte {self.at}: {fault}")

    def take(self, count: int) -> bytes:
        data = self.file.read(self.at, count)
        self.at += count
        return data

    def head(self) -> tuple[str, int]:
        """Kind and length of the next item, or kind and value of a whole number."""
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return "uint", first if first < 0x80 else first - 256
        for start, stop, kind in (
            (0x80, 0x90, "map"),
            (0x90, 0xA0, "array"),
            (0xA0, 0xC0, "str"),
        ):
            if start <= first < stop:
                return kind, first - start
        if first not in _HEADS:
            raise self.corrupt("this is not msgpack")
        kind, size = _HEADS[first]
        if kind in ("skip", "fixext"):
            return ("ext" if kind == "fixext" else kind), size
        number = int.from_bytes(self.take(size), "big", signed=kind == "int")
        return ("uint" if kind == "int" else kind), number

    def value(self, depth: int) -> Any:
        """The next item: dict, :class:`_Array`, int; None if it can't be a weight."""
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise self.corrupt("too many or too deeply nested items")
        kind, number = self.head()
        if kind == "uint":
            return number
        if kind == "map":
            return self.map(number, depth)
        if kind == "array":
            for _ in range(number):
                self.value(depth + 1)
            return None
        if kind == "ext":
            code, end = self.take(1)[0], self.at + number
            array = self.array(end) if code == _ARRAY else None
            if array is None:
                self.skip(number)
            elif self.at != end:
                raise self.corrupt("an array is not as long as announced")
            return array
        self.skip(number)
        return None

    def skip(self, count: int) -> None:
        self.file.read(self.at + count, 0)
        self.at += count

    def map(self, count: int, depth: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for _ in range(count):
            key = self.text()
            if key in entries:
                raise self.corrupt(f"the key {quoted(key)} comes twice")
            entries[key] = self.value(depth + 1)
        return entries

    def text(self) -> str:
        kind, length = self.head()
        if kind not in ("str", "bin") or length > MAX_NAME:
            raise self.corrupt("a name was expected")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.corrupt("a name is not UTF-8") from None

    def array(self, end: int) -> _Array:
        if self.head() != ("array", 3):
            raise self.corrupt("an array's description was expected")
        kind, rank = self.head()
        if kind != "array" or rank > 8:
            raise self.corrupt("a shape was expected")
        sizes = [self.head() for _ in range(rank)]
        if any(kind != "uint" for kind, _ in sizes):
            raise self.corrupt("a shape was expected")
        shape = tuple(size for _, size in sizes)
        check_shape(self.file.path, "an array", shape, self.file.size)
        dtype = DTYPES.get(name := self.text())
        if dtype is None:
            raise UnsupportedFile(
                f"{self.file.path} holds an array of unknown dtype {quoted(name)}"
            )
        kind, length = self.head()
        fits = length == math.prod(shape) * dtype.itemsize and self.at + length <= end
        if kind != "bin" or not fits:
            raise self.corrupt("an array's bytes do not fit its shape")
        offset = self.at
        self.skip(length)
        return _Array(offset, shape, dtype)


def _joined(file: MappedFile, name: str, parts: dict[str, Any]) -> Tensor:
    """One tensor of a chunked array; reading it allocates the whole."""
    fault = CorruptFile(
        f"{file.path}: the chunks of {quoted(name)} do not fit together"
    )
    sizes, chunks = parts.get("shape"), parts.get("chunks")
    if not isinstance(sizes, dict) or not isinstance(chunks, dict) or not chunks:
        raise fault
    shape: tuple[Any, ...] = tuple(sizes.get(str(i)) for i in range(len(sizes)))
    arrays = [
        a for i in range(len(chunks)) if isinstance(a := chunks.get(str(i)), _Array)
    ]
    check_shape(file.path, name, shape, file.size)
    if len(arrays) != len(chunks) or len({a.dtype for a in arrays}) != 1:
        raise fault
    if sum(math.prod(a.shape) for a in arrays) != math.prod(shape):
        raise fault
    tensors = [file.tensor(name, a.offset, a.shape, a.dtype) for a in arrays]
    dtype = tensors[0].dtype

    def read() -> np.ndarray:
        whole, start = np.empty(math.prod(shape), dtype), 0
        for tensor in tensors:
            part = tensor.read().reshape(-1)
            whole[start : start + part.size] = part
            start += part.size
        whole.flags.writeable = False
        return whole.reshape(shape)

    return Tensor(name, shape, dtype, read)


def write_msgpack(path: Path, tensors: list[Tensor]) -> None:
    """Write one file, a tensor in memory at a time."""
    tree: dict[str, Any] = {}
    for tensor in tensors:
        *groups, leaf = tensor.name.split("/")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = tensor
    with open(path, "wb") as file:
        _write_map(file, tree)


def _write_map(file: BinaryIO, tree: dict[str, Any]) -> None:
    file.write(_map_header(len(tree)))
    for key, value in tree.items():
        file.write(_pack(key))
        if isinstance(value, dict):
            _write_map(file, value)
        elif value.nbytes > _CHUNK:
            _write_chunked(file, value)
        else:
            _write_array(file, value.read())


def _write_chunked(file: BinaryIO, tensor: Tensor) -> None:
    flat = np.ascontiguousarray(tensor.read()).reshape(-1)
    step = _CHUNK // flat.itemsize
    parts = [flat[i : i + step] for i in range(0, flat.size, step)]
    shape = {str(i): size for i, size in enumerate(tensor.shape)}
    file.write(_map_header(3) + _pack(_CHUNKED) + _pack(True))
    file.write(_pack("shape") + _pack(shape))
    file.write(_pack("chunks") + _map_header(len(parts)))
    for i, part in enumerate(parts):
        file.write(_pack(str(i)))
        _write_array(file, part)


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    head = b"\x93" + _pack(array.shape) + _pack(array.dtype.name)
    head += b"\xc6" + array.nbytes.to_bytes(4, "big")  # bin 32
    size = len(head) + array.nbytes
    file.write(b"\xc9" + size.to_bytes(4, "big") + bytes([_ARRAY]) + head)  # ext 32
    file.write(as_bytes(array))


def _map_header(count: int) -> bytes:
    return b"\xdf" + count.to_bytes(4, "big")  # map 32


def _pack(value: Any) -> bytes:
    import msgpack

    return cast(bytes, msgpack.packb(value))

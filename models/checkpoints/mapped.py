"""Tensors of a file as arrays over memory maps, one map for each array.

A map lives as long as the array made from it. So a loop that copies tensor after tensor
holds one tensor's pages at a time, not the whole file's.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..regular_files import open_regular_file
from .errors import CheckpointNotFound, CorruptFile, quoted

MAX_RANK = 8
"""More dimensions than any weight has; numpy's own limit is far above it."""

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(name)
    for name in (
        *("float64", "float32", "float16", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
"""The dtypes that a checkpoint may hold, by name."""


@dataclass(frozen=True)
class Tensor:
    """One tensor as its file holds it; ``read()`` gives a read-only array."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class MappedFile:
    """An open file whose parts are mapped on demand. ``size`` is in bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = open_regular_file(path)
        except OSError as error:
            raise CheckpointNotFound(
                f"{path} cannot be opened: {error.strerror or error}"
            ) from None
        weakref.finalize(self, os.close, self._fd)
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; :class:`CorruptFile` when the file ends before."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CorruptFile(
                f"{self.path} is truncated: bytes {offset} to {offset + length} were "
                f"expected, it has {self.size}"
            )
        return os.pread(self._fd, length, offset)

    def view(self, offset: int, length: int) -> memoryview:
        """A read-only map of a part of the file."""
        if offset < 0 or length < 0 or offset + length > self.size:
            self.read(offset, length)
        if not length:
            return memoryview(b"")
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        try:
            pages = mmap.mmap(
                self._fd,
                length + offset - start,
                access=mmap.ACCESS_READ,
                offset=start,
            )
        except ValueError:  # shortened since it was opened
            raise CorruptFile(f"{self.path} became shorter while being read") from None
        return memoryview(pages)[offset - start :]

    def tensor(
        self, name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype
    ) -> Tensor:
        """A tensor stored in C order at ``offset``; checked against the file's size."""
        check_shape(self.path, name, shape, self.size)
        length = math.prod(shape) * dtype.itemsize
        if offset < 0 or offset + length > self.size:
            raise CorruptFile(
                f"{self.path} is truncated: {quoted(name)} needs bytes {offset} to "
                f"{offset + length}, the file has {self.size}"
            )

        def read() -> np.ndarray:
            return np.frombuffer(self.view(offset, length), dtype).reshape(shape)

        return Tensor(name, shape, dtype, read)


def chunks(
    array: np.ndarray, size: int = 16 << 20
) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Parts of about ``size`` bytes: where they are in ``array``, and what is there.

    Each part's pages are given back after its turn, if ``array`` is over a map of a
    file: copying part by part keeps no more than one of them in memory.
    """
    if not array.ndim or not array.size:
        yield (), array
        return
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    pages = base.obj if isinstance(base, memoryview) else None
    axis = int(np.argmax(np.abs(array.strides)))  # the file's first one
    step = max(1, size * array.shape[axis] // array.nbytes)
    for start in range(0, array.shape[axis], step):
        part = (slice(None),) * axis + (slice(start, start + step),)
        yield part, array[part]
        if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory that TensorFlow and JAX take over without a copy, which they
    do from 64-byte boundaries only."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def as_bytes(array: np.ndarray) -> memoryview:
    """An array's bytes in C order, copied only if they are not so already."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def check_shape(path: Path, name: str, shape: object, limit: int) -> None:
    """Refuse a shape that is not a few sizes between 0 and ``limit``.

    So sizes and products of sizes can be shown and computed with from here on.
    """
    if (
        not isinstance(shape, tuple)
        or len(shape) > MAX_RANK
        or not all(type(size) is int and 0 <= size <= max(limit, 1) for size in shape)
    ):
        raise CorruptFile(f"{path}: {quoted(name)} has no possible shape")

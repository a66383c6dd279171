"""PyTorch's ``.bin`` files, read without PyTorch.

Since version 1.6 such a file is a zip archive: ``*/data.pkl`` describes the tensors,
``*/data/<key>`` are the storages. Before, it was a row of pickles, and then the
storages (``torch/serialization.py``, ``_legacy_save``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CorruptFile, UnsupportedFile, quoted
from .mapped import MappedFile, Tensor, check_shape
from .torch_pickle import MAX_PICKLE, Storage, Strided, load
from .zip_members import read_members

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

Locate = Callable[[Storage], int]
"""Where a storage's bytes begin in the file; raises if they are not all there."""


def read_torch(path: Path) -> list[Tensor]:
    """The tensors of one file; those of ``model`` when it is metaseq's."""
    file = MappedFile(path)
    zipped = file.size >= 4 and file.read(0, 4) == b"PK\x03\x04"
    state, locate = _open_zip(file) if zipped else _open_legacy(file)
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict):
        raise CorruptFile(f"{path} should hold a dictionary of weights")
    return list(_tensors(file, state, locate))


def _tensors(file: MappedFile, state: dict, locate: Locate) -> Iterator[Tensor]:
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, Strided):
            yield _tensor(file, name, value, locate)


def _tensor(file: MappedFile, name: str, view: Strided, locate: Locate) -> Tensor:
    storage, shape = view.storage, view.shape
    check_shape(file.path, name, shape, file.size)
    count = math.prod(shape)
    last = sum((n - 1) * s for n, s in zip(shape, view.strides, strict=True))
    inside = view.offset >= 0 and all(0 <= s <= storage.size for s in view.strides)
    # A view of more numbers than its storage repeats some: no weight does.
    if count and not (inside and max(view.offset + last + 1, count) <= storage.size):
        raise CorruptFile(f"{file.path}: {quoted(name)} reaches outside its storage")
    if not count:
        return Tensor(
            name, shape, storage.dtype, lambda: np.empty(shape, storage.dtype)
        )
    start = locate(storage) + view.offset * storage.dtype.itemsize
    if view.strides == _contiguous(shape):
        return file.tensor(name, start, shape, storage.dtype)
    flat = file.tensor(name, start, (last + 1,), storage.dtype)
    steps = [stride * storage.dtype.itemsize for stride in view.strides]

    def read() -> np.ndarray:
        return np.lib.stride_tricks.as_strided(
            flat.read(), shape, steps, writeable=False
        )

    return replace(flat, shape=shape, read=read)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _open_zip(file: MappedFile) -> tuple[Any, Locate]:
    members = read_members(file)
    pickles = [name for name in members if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise CorruptFile(f"{file.path} is a zip archive without PyTorch's data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    order = members.get(f"{root}byteorder")
    if order and file.read(order.offset, min(order.size, 16)) != b"little":
        raise UnsupportedFile(f"{file.path} has big-endian numbers; save it again")
    member = members[pickles[0]]
    if member.size > MAX_PICKLE:
        raise CorruptFile(f"{file.path} has a pickle of {member.size} bytes, too many")
    state, _ = load(file.path, BytesIO(file.read(member.offset, member.size)))

    def locate(storage: Storage) -> int:
        member = members.get(f"{root}data/{storage.key}")
        if member is None or member.size < storage.size * storage.dtype.itemsize:
            raise CorruptFile(
                f"{file.path}: the storage {quoted(storage.key)} is missing or short"
            )
        return member.offset

    return state, locate


def _open_legacy(file: MappedFile) -> tuple[Any, Locate]:
    stream = BytesIO(file.read(0, min(file.size, MAX_PICKLE)))
    try:
        magic, protocol = load(file.path, stream)[0], load(file.path, stream)[0]
    except CorruptFile:
        magic = protocol = None
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise CorruptFile(f"{file.path} is not a file of PyTorch's")
    load(file.path, stream)  # the writer's word sizes; its byte order is checked below
    state, storages = load(file.path, stream)
    keys, _ = load(file.path, stream)
    offsets: dict[str, int] = {}
    position = stream.tell()
    for key in keys if isinstance(keys, list) else []:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or key in offsets:
            raise CorruptFile(f"{file.path} lists a storage that no tensor uses")
        count = int.from_bytes(file.read(position, 8), "little")
        if count != storage.size:
            raise CorruptFile(
                f"{file.path}: the storage {quoted(key)} has not the size it should "
                "have; the file is broken or big-endian"
            )
        offsets[key] = position + 8
        position += 8 + count * storage.dtype.itemsize
    file.read(position, 0)  # the last storage may be cut off

    def locate(storage: Storage) -> int:
        if storage.key not in offsets:
            raise CorruptFile(
                f"{file.path}: the storage {quoted(storage.key)} is missing"
            )
        return offsets[storage.key]

    return state, locate

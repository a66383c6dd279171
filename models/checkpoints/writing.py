"""Writing a checkpoint: one file or shards, tensor by tensor, each file atomically."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UnsupportedFile
from .h5_format import write_h5, write_h5_shard
from .mapped import DTYPES, Tensor
from .msgpack_format import write_msgpack
from .names import FILE_NAMES, stored_name
from .safetensors_format import write_safetensors

Writer = Callable[[Path, list[Tensor]], None]
WRITERS: dict[str, tuple[Writer, Writer]] = {
    "safetensors": (write_safetensors, write_safetensors),
    "h5": (write_h5, write_h5_shard),
    "msgpack": (write_msgpack, write_msgpack),
}
"""For each format what writes a whole checkpoint, and what writes a part of one."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_UNITS |= {"KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True)
class LazyArray:
    """An array to be made when its turn to be written comes.

    ``read`` returns it; ``shape`` and ``dtype`` must be known before.
    """

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], Any]


def save_weights(
    directory: str | os.PathLike[str],
    items: Iterable[tuple[str, Any]],
    *,
    format: str = "safetensors",
    max_shard_size: int | str = "5GB",
    base_model: bool = False,
) -> list[Path]:
    """Write (canonical name, array) pairs; the paths written, an index last.

    Arrays are anything with ``shape`` and ``dtype`` that numpy can convert (numpy,
    JAX, TensorFlow variables) or a :class:`LazyArray`: each is converted when its turn
    comes, so the peak is one tensor's copy. ``format`` is ``"safetensors"``, ``"h5"``
    or ``"msgpack"``. Beyond ``max_shard_size`` (bytes, or like ``"5GB"``,
    ``"500MiB"``) the checkpoint is split. ``base_model`` names weights as the classes
    without a head do. Weight files of the same format that were there before are
    replaced. HDF5 has no bfloat16, so such weights go in as float32.
    """
    if format not in WRITERS:
        raise ValueError(
            f"format should be one of {', '.join(WRITERS)}, got {format!r}"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors: list[Tensor] = []
    for name, array in items:
        tensors.append(_as_stored(_as_tensor(name, array), format, base_model))
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError("the weights to save have a name twice")
    single = FILE_NAMES[format]
    shards = _plan(tensors, parse_size(max_shard_size))
    write = WRITERS[format][len(shards) > 1]
    names = [single] if len(shards) == 1 else _shard_names(single, len(shards))
    index = directory / f"{single}.index.json"
    written = []
    for name, shard in zip(names, shards, strict=True):
        with replacing(directory / name) as temporary:
            write(temporary, shard)
        written.append(directory / name)
    if len(shards) > 1:
        with replacing(index) as temporary:
            temporary.write_text(_index(names, shards), encoding="utf-8")
        written.append(index)
    _remove_stale(directory, single, {path.name for path in written})
    return written


def parse_size(size: int | str) -> int:
    """Bytes of a size such as ``5_000_000``, ``"5MB"`` or ``"2GiB"``."""
    if isinstance(size, str):
        match = re.fullmatch(r"(\d+) ?([KMG]?I?)B?", size.strip(), re.IGNORECASE)
        if not match or match[2].upper() not in _UNITS:
            raise ValueError(
                f"a size like '5GB' or '200MiB' was expected, got {size!r}"
            )
        size = int(match[1]) * _UNITS[match[2].upper()]
    if size < 1:
        raise ValueError(f"a shard's size should be positive, got {size}")
    return size


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block succeeds."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _as_tensor(name: str, array: Any) -> Tensor:
    dtype = getattr(array.dtype, "as_numpy_dtype", array.dtype)
    dtype = np.dtype(DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype)
    if dtype.name not in DTYPES:
        raise UnsupportedFile(f"{name!r} has the dtype {dtype}, which no format stores")
    dtype, shape = DTYPES[dtype.name], tuple(int(size) for size in array.shape)

    def read() -> np.ndarray:
        value = array.read() if isinstance(array, LazyArray) else array
        value = np.asarray(value).astype(dtype, copy=False)
        if value.shape != shape:
            raise ValueError(f"{name!r} was announced as {shape}, it is {value.shape}")
        return value

    return Tensor(name, shape, dtype, read)


def _as_stored(tensor: Tensor, format: str, base_model: bool) -> Tensor:
    name, transposed = stored_name(tensor.name, format, base_model=base_model)
    tensor = replace(tensor, name=name)
    if transposed:
        tensor = replace(
            tensor, shape=tensor.shape[::-1], read=lambda read=tensor.read: read().T
        )
    if format == "h5" and tensor.dtype == DTYPES["bfloat16"]:
        tensor = replace(
            tensor,
            dtype=DTYPES["float32"],
            read=lambda read=tensor.read: read().astype(np.float32),
        )
    return tensor


def _plan(tensors: list[Tensor], limit: int) -> list[list[Tensor]]:
    """Consecutive tensors together up to ``limit`` bytes; a larger one stands alone."""
    shards: list[list[Tensor]] = [[]]
    room = limit
    for tensor in tensors:
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return shards


def _shard_names(single: str, count: int) -> list[str]:
    stem, _, suffix = single.rpartition(".")
    return [f"{stem}-{i:05d}-of-{count:05d}.{suffix}" for i in range(1, count + 1)]


def _index(names: list[str], shards: list[list[Tensor]]) -> str:
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    places = {
        tensor.name: name
        for name, shard in zip(names, shards, strict=True)
        for tensor in shard
    }
    content = {"metadata": {"total_size": total}, "weight_map": places}
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _remove_stale(directory: Path, single: str, kept: set[str]) -> None:
    """Remove this format's earlier files; they would shadow or outlive the new ones."""
    stem, _, suffix = single.rpartition(".")
    shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+\.{re.escape(suffix)}")
    for path in directory.iterdir():
        ours = path.name in (single, f"{single}.index.json")
        if (ours or shard.fullmatch(path.name)) and path.name not in kept:
            path.unlink()

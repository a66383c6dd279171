"""Finding a checkpoint's weight files and opening them as one mapping."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from .errors import CheckpointNotFound, CorruptFile, quoted
from .h5_format import read_h5
from .mapped import Tensor
from .msgpack_format import read_msgpack
from .names import FILE_NAMES, canonical_name, canonical_tensors
from .safetensors_format import read_safetensors
from .shards import read_index
from .torch_format import read_torch

READERS: dict[str, Callable[[Path], list[Tensor]]] = {
    "safetensors": read_safetensors,
    "bin": read_torch,
    "h5": read_h5,
    "msgpack": read_msgpack,
}
FORMATS = tuple(FILE_NAMES)
"""The formats that can be read, most preferred first."""


class Weights(Mapping[str, np.ndarray]):
    """Weights by canonical name, each read from its file when it is asked for.

    Arrays are read-only and, where the file allows it, memory-mapped; iteration follows
    the files. ``shape`` and ``dtype`` answer without reading.
    """

    def __init__(self, tensors: Iterable[Tensor], source: Path, format: str) -> None:
        self.source = source
        self.format = format
        self._tensors: dict[str, Tensor] = {}
        for stored in tensors:
            for tensor in canonical_tensors(stored):
                if tensor.name in self._tensors:
                    raise CorruptFile(f"{source} holds {quoted(tensor.name)} twice")
                self._tensors[tensor.name] = tensor

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one weight."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> np.dtype:
        """The dtype of one weight, as stored."""
        return self._tensors[name].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, as stored."""
        return sum(tensor.nbytes for tensor in self._tensors.values())


def open_weights(
    directory: str | os.PathLike[str], *, format: str | None = None
) -> Weights:
    """The weights of a checkpoint directory (or of one weight file).

    ``format`` picks one of :data:`FORMATS`; by default the first that is there.
    Raises :class:`CheckpointNotFound` when there is none, and the other errors of
    :mod:`.errors` for files that cannot be trusted.
    """
    path = Path(directory)
    if format is not None and format not in READERS:
        raise ValueError(
            f"format should be one of {', '.join(FORMATS)}, got {format!r}"
        )
    if not path.is_dir():
        return _open_file(path, format)
    for name in [format] if format else FORMATS:
        single, read = FILE_NAMES[name], READERS[name]
        if (path / single).exists():
            return Weights(read(path / single), path / single, name)
        index = path / f"{single}.index.json"
        if index.exists():
            return Weights(_read_shards(index, read), index, name)
    names = [FILE_NAMES[name] for name in ([format] if format else FORMATS)]
    raise CheckpointNotFound(
        f"{path} holds no weights, none of {', '.join(names)}, nor their .index.json"
    )


def _open_file(path: Path, format: str | None) -> Weights:
    if not path.exists():
        raise CheckpointNotFound(f"{path} does not exist")
    for name, single in FILE_NAMES.items():
        if format == name or (not format and path.suffix == Path(single).suffix):
            return Weights(READERS[name](path), path, name)
    raise CheckpointNotFound(
        f"{path} is not a weight file: its name should end like one of "
        + ", ".join(FILE_NAMES.values())
    )


def _read_shards(index: Path, read: Callable[[Path], list[Tensor]]) -> Iterator[Tensor]:
    """The tensors of all shards, each of them in the file that the index names."""
    for shard, names in read_index(index).items():
        # TensorFlow's index has longer names than its shards: compare what they mean.
        expected = {canonical_name(name) for name in names}
        stored = read(index.parent / shard)
        held = [t for t in stored if canonical_name(t.name) in expected]
        if missing := expected - {canonical_name(t.name) for t in held} - {None}:
            raise CorruptFile(
                f"{index} places {quoted(min(map(str, missing)))} in {quoted(shard)}, "
                "which does not hold it"
            )
        yield from held

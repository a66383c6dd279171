"""Keras's HDF5 weight files, as TensorFlow's Hugging Face classes write them.

``/model/tfopt_for_causal_lm/model/decoder/…/kernel:0``: a group for each level, a
dataset for each weight; ``layer_names`` and ``weight_names`` attributes give their
order. Only the structure is read through libhdf5; the numbers are mapped from the file,
which works because such files store them in one uncompressed piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError, CorruptFile, UnsafeFile, UnsupportedFile, quoted
from .mapped import DTYPES, MappedFile, Tensor, as_bytes, check_shape

MAX_OBJECTS = 20_000
MAX_DEPTH = 16
_ATTRIBUTE_LIMIT = 64512
"""Bytes of one attribute; HDF5 keeps them in object headers of at most 64 kB."""


def read_h5(path: Path) -> list[Tensor]:
    """The datasets of one file, links to other places refused."""
    import h5py

    file = MappedFile(path)
    try:
        with h5py.File(path, "r", locking=False) as h5:
            return list(_walk(h5, file))
    except CheckpointError:
        raise
    except Exception as error:  # libhdf5's faults come as a dozen types
        raise CorruptFile(
            f"{path} cannot be read as an HDF5 file: "
            + " ".join(str(error).split())[:150]
        ) from None


def _walk(h5: Any, file: MappedFile) -> Iterator[Tensor]:
    """All datasets under hard links, in the groups' own order."""
    import h5py

    seen = 0
    pending: list[tuple[str, int, Any]] = [("", 0, h5)]
    while pending:
        prefix, depth, node = pending.pop()
        if isinstance(node, h5py.Dataset):
            yield _tensor(file, prefix, node)
            continue
        if not isinstance(node, h5py.Group):
            raise UnsupportedFile(f"{file.path}: {quoted(prefix)} is not a weight")
        below = []
        for name in node:
            seen += 1
            if seen > MAX_OBJECTS or depth > MAX_DEPTH:
                raise CorruptFile(f"{file.path} holds too many or too nested groups")
            if type(node.get(name, getlink=True)) is not h5py.HardLink:
                raise UnsafeFile(
                    f"{file.path}: {quoted(name)} is a link to somewhere else"
                )
            joined = f"{prefix}/{name}" if prefix else name
            below.append((joined, depth + 1, node[name]))
        pending += reversed(below)


def _tensor(file: MappedFile, name: str, dataset: Any) -> Tensor:
    if dataset.external or dataset.is_virtual:
        raise UnsafeFile(f"{file.path}: {quoted(name)} keeps its numbers elsewhere")
    if dataset.chunks is not None:
        raise UnsupportedFile(
            f"{file.path}: {quoted(name)} is chunked or compressed; Keras stores "
            "weights in one piece, save the file again with it"
        )
    dtype = DTYPES.get(dataset.dtype.name)
    if dtype is None or not dataset.dtype.isnative:
        raise UnsupportedFile(f"{file.path}: {quoted(name)} has an unknown dtype")
    shape = tuple(int(size) for size in dataset.shape or ())
    check_shape(file.path, name, shape, file.size)
    if 0 in shape:
        return Tensor(name, shape, dtype, lambda: np.empty(shape, dtype))
    offset = dataset.id.get_offset()
    if offset is None:  # nothing was ever written, or it is in the object's header
        raise UnsupportedFile(f"{file.path}: {quoted(name)} has no numbers of its own")
    return file.tensor(name, offset, shape, dtype)


def write_h5(path: Path, tensors: list[Tensor]) -> None:
    """Write one whole checkpoint as Keras does, a tensor in memory at a time."""
    import h5py

    layers: dict[str, list[Tensor]] = {}
    for tensor in tensors:  # tfopt_for_causal_lm/model/…: the second part is the layer
        layers.setdefault(tensor.name.split("/")[1], []).append(tensor)
    with h5py.File(path, "w") as h5:
        h5.attrs["backend"] = "tensorflow"
        h5.attrs["keras_version"] = "2.15.0"
        _write_names(h5, "layer_names", list(layers))
        for layer, weights in layers.items():
            group = h5.create_group(layer)
            _write_names(group, "weight_names", [tensor.name for tensor in weights])
            for tensor in weights:
                _write_dataset(group, tensor.name, tensor)


def write_h5_shard(path: Path, tensors: list[Tensor]) -> None:
    """Write a part of a checkpoint: datasets at the root, named from the layer on, as
    Transformers does."""
    import h5py

    with h5py.File(path, "w") as h5:
        names = [tensor.name.split("/", 1)[1] for tensor in tensors]
        _write_names(h5, "layer_names", names)
        for tensor in tensors:
            _write_dataset(h5, tensor.name.split("/", 1)[1], tensor)


def _write_dataset(group: Any, name: str, tensor: Tensor) -> None:
    array = np.frombuffer(as_bytes(tensor.read()), tensor.dtype).reshape(tensor.shape)
    group.create_dataset(name, data=array)


def _write_names(group: Any, attribute: str, names: list[str]) -> None:
    """A list of names, in numbered parts where one attribute cannot hold it."""
    data, parts = np.array([name.encode() for name in names]), 1
    while any(part.nbytes > _ATTRIBUTE_LIMIT for part in np.array_split(data, parts)):
        parts += 1
    if parts == 1:
        group.attrs[attribute] = data
        return
    for i, part in enumerate(np.array_split(data, parts)):
        group.attrs[f"{attribute}{i}"] = part

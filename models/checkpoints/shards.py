"""Checkpoints in several files: ``<name>.index.json`` says which weight is where.

{"metadata": {"total_size": 123}, "weight_map": {"decoder.…": "model-00001-of-…"}}
"""

from __future__ import annotations

from pathlib import Path

from .errors import CorruptFile, UnsafeFile, quoted
from .mapped import MappedFile
from .safetensors_format import parse_json

MAX_INDEX = 4 << 20
"""Bytes; the largest OPT's index has 0.2 million."""


def read_index(path: Path) -> dict[str, set[str]]:
    """The names held by each shard, shards in the order of their first mention.

    A shard is a plain file name: anything that could lead out of the index's directory
    is :class:`UnsafeFile`.
    """
    file = MappedFile(path)
    if file.size > MAX_INDEX:
        raise CorruptFile(f"{path} has {file.size} bytes, too many for an index")
    mapping = parse_json(path, file.read(0, file.size)).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CorruptFile(f"{path} has no 'weight_map'")
    shards: dict[str, set[str]] = {}
    for name, shard in mapping.items():
        if not isinstance(shard, str) or not shard:
            raise CorruptFile(f"{path}: the shard of {quoted(name)} is not a file name")
        if shard in (".", "..") or any(c in shard for c in "/\\:\0"):
            raise UnsafeFile(
                f"{path}: the shard {quoted(shard)} is not the name of a file in this "
                "directory"
            )
        shards.setdefault(shard, set()).add(name)
    return shards

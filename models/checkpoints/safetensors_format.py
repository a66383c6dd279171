"""The safetensors format: eight bytes of header length, a JSON header, the tensors.

The rules are those of https://github.com/huggingface/safetensors: offsets count from
the header's end, and the tensors cover the rest of the file without overlap or hole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import CorruptFile, UnsupportedFile, quoted
from .mapped import DTYPES, MappedFile, Tensor, as_bytes, check_shape

MAX_HEADER = 4 << 20
"""Bytes. The largest OPT needs a quarter of a megabyte; parsing costs ~25 times it."""

DTYPE_CODES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors(path: Path) -> list[Tensor]:
    """The tensors of one file, in the order of their bytes."""
    file = MappedFile(path)
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER:
        raise CorruptFile(
            f"{path} declares a header of {length} bytes, more than the {MAX_HEADER} "
            "that are read"
        )
    header = parse_json(path, file.read(8, length))
    header.pop("__metadata__", None)
    tensors = [_tensor(file, 8 + length, *item) for item in header.items()]
    tensors.sort()
    end = 8 + length
    for begin, _, tensor in tensors:
        if begin != end:
            raise CorruptFile(
                f"{path}: {quoted(tensor.name)} overlaps or follows a hole"
            )
        end = begin + tensor.nbytes
    if end != file.size:
        raise CorruptFile(
            f"{path} has {file.size} bytes, its header describes {end} of them"
        )
    return [tensor for _, _, tensor in tensors]


def write_safetensors(path: Path, tensors: list[Tensor]) -> None:
    """Write one file, a tensor in memory at a time.

    The metadata say ``"format": "pt"``: PyTorch's names and layout.
    """
    # Widest dtype first, as the safetensors package does: every tensor is aligned.
    tensors = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name))
    codes = {dtype: code for code, dtype in DTYPE_CODES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": codes[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(as_bytes(tensor.read()))


def _tensor(
    file: MappedFile, start: int, name: str, entry: Any
) -> tuple[int, tuple[int, str], Tensor]:
    """The first byte, a sort key and the tensor of one header entry."""
    fault = f"{file.path}: the header's entry for {quoted(name)} is malformed"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CorruptFile(fault)
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (
        isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    ):
        raise CorruptFile(fault)
    if not isinstance(code, str) or not all(type(offset) is int for offset in offsets):
        raise CorruptFile(fault)
    if code not in DTYPE_CODES:
        raise UnsupportedFile(
            f"{file.path}: {quoted(name)} has the unknown dtype {quoted(code)}"
        )
    check_shape(file.path, name, tuple(shape), file.size)
    begin, end = offsets
    if not 0 <= begin <= end <= file.size:
        raise CorruptFile(f"{file.path}: {quoted(name)} lies outside the file")
    tensor = file.tensor(name, start + begin, tuple(shape), DTYPES[DTYPE_CODES[code]])
    if end - begin != tensor.nbytes:
        raise CorruptFile(
            f"{file.path}: {quoted(name)} of {code} {shape} needs {tensor.nbytes} "
            f"bytes, its offsets span {end - begin}"
        )
    return start + begin, (tensor.nbytes, name), tensor


def parse_json(path: Path, text: bytes) -> dict[str, Any]:
    """A JSON object without repeated keys; :class:`CorruptFile` for anything else."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise CorruptFile(f"{path} names {quoted(twice)} twice")
        return entries

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except CorruptFile:
        raise
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path} holds no valid JSON: {_brief(error)}") from None
    if not isinstance(value, dict):
        raise CorruptFile(f"{path} holds JSON, but not an object")
    return value


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

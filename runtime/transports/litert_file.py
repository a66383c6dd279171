"""What a ``.tflite`` file holds besides its graph, read before the runtime sees it.

The runtime reads past the end of a file that was cut short, so that is noticed here.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from ..contract import SPOKEN_VERSIONS, Manifest
from ..errors import IncompatibleModel, InvalidRequest
from ..model_dir import TFLITE_MANIFEST_KEY, version_folders, version_of

_MANIFEST_KEY = TFLITE_MANIFEST_KEY.encode()
_IDENTIFIER = b"TFL3"
_SMALLEST = 64


def find_file(path: Path) -> tuple[Path, int]:
    """The ``.tflite`` file that ``path`` means, and its version.

    Args:
        path: the file, the folder it is in, or the base folder over that.

    Raises:
        InvalidRequest: there is none, or more than one.
    """
    if path.is_file():
        files = [path]
    else:
        folders = [path, *version_folders(path).values()]
        files = next((f for d in folders if (f := sorted(d.glob("*.tflite")))), [])
    if len(files) != 1:
        raise InvalidRequest(
            f"{path} holds {len(files) or 'no'} .tflite files: expected the one that "
            "`optserve export --target tflite` writes"
        )
    return files[0], version_of(files[0].parent)


def read_manifest(path: Path) -> Manifest:
    """The manifest inside a file, the file's completeness checked.

    Raises:
        IncompatibleModel: no model, cut short, or not of this package.
    """
    with path.open("rb") as file:
        head = file.read(_SMALLEST)
        if len(head) < _SMALLEST or head[4:8] != _IDENTIFIER:
            raise IncompatibleModel(
                f"{path} is not a TFLite model: expected the file that "
                "`optserve export --target tflite` writes"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            text = _metadata(path, data)
    try:
        manifest = Manifest.from_json(text)
    except ValueError as error:
        raise IncompatibleModel(f"{path}: {error}") from None
    if manifest.contract_version not in SPOKEN_VERSIONS:
        raise IncompatibleModel(
            f"{path} speaks contract version {manifest.contract_version}, this client "
            f"versions {' and '.join(map(str, SPOKEN_VERSIONS))}: export it again"
        )
    return manifest


def _metadata(path: Path, data: mmap.mmap) -> bytes:
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.Model.GetRootAs(data, 0)
        end = max(_end(model.Buffers(i)) for i in range(model.BuffersLength()))
        entries = [model.Metadata(i) for i in range(model.MetadataLength())]
        blobs = {
            entry.Name(): model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
            for entry in entries
            if end <= len(data) and entry.Name() == _MANIFEST_KEY
        }
    except Exception:  # whatever an index out of the file leads to
        raise IncompatibleModel(
            f"{path} is damaged or incomplete: copy or export it again"
        ) from None
    if end > len(data):
        raise IncompatibleModel(
            f"{path} is incomplete: it should have {end} bytes at least and has "
            f"{len(data)}; copy or export it again"
        )
    if _MANIFEST_KEY not in blobs:
        raise IncompatibleModel(
            f"{path} is a TFLite model, but not one that `optserve export --target "
            "tflite` wrote: it holds no manifest"
        )
    return blobs[_MANIFEST_KEY]


def _end(buffer: Any) -> int:
    """Where a buffer's bytes end in the file."""
    table = buffer._tab
    inline = table.Offset(4)
    start = table.Vector(inline) if inline else 0
    return max(start + buffer.DataLength(), buffer.Offset() + buffer.Size())

"""How a model's folder looks: the one place that knows names, numbers and digests.

    OUT/                      the base folder, one model
        1/  2/ …              versions, named by whole numbers
            saved_model.pb    a SavedModel …
            model.tflite      … or a TFLite file, its manifest inside
            assets.extra/     the manifest, and the requests that warm a server up

A server that polls OUT looks only at folders whose names are numbers.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .contract import MANIFEST_LIMIT, Manifest
from .contract.manifest import LINK_DIGEST
from .errors import InvalidRequest

SAVED_MODEL_FILE = "saved_model.pb"
TFLITE_FILE = "model.tflite"
TFLITE_MANIFEST_KEY = "optserve_manifest"
"""Name of the metadata entry of a TFLite file that holds its manifest."""
MANIFEST_PATH = "assets.extra/optserve_manifest.json"
WARMUP_PATH = "assets.extra/tf_serving_warmup_requests"
COMPILED_PATH = "assets.extra/xla"
"""What XLA compiled for some processors, a folder for each."""
WARMUP_RECORDS_LIMIT = 1000
"""A server refuses a warm-up file with more records."""
VERSION_LIMIT = 2**63 - 1
"""The largest version number: TensorFlow Serving keeps them as int64."""

_BLOCK = 4 * 1024**2


class ModelDirError(InvalidRequest):
    """A folder that does not look as an export does."""


def version_number(name: str) -> int | None:
    """The version that a folder of this name is, None for any other name.

    As TensorFlow Serving reads it: decimal digits, leading zeros allowed, int64.
    """
    # int() takes other alphabets' digits, and thousands of them.
    if not (name.isascii() and name.isdigit() and len(name) <= 64):
        return None
    number = int(name)
    return number if number <= VERSION_LIMIT else None


def version_folders(
    base: str | os.PathLike[str], *, missing_ok: bool = True
) -> dict[int, Path]:
    """Folders by version number, the newest first.

    Of ``7`` and ``007`` the shorter one is version 7.

    Args:
        base: a model's base folder.
        missing_ok: whether a path that is not a folder has no versions, or is an error.

    Raises:
        OSError: the folder cannot be read.
    """
    base = Path(base)
    if missing_ok and not base.is_dir():
        return {}
    folders: dict[int, Path] = {}
    for folder in sorted(base.iterdir(), key=lambda path: -len(path.name)):
        number = version_number(folder.name)
        if number is not None and folder.is_dir():
            folders[number] = folder
    return dict(sorted(folders.items(), reverse=True))


def is_version_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a version itself, rather than the base folder over some."""
    path = Path(path)
    return (path / SAVED_MODEL_FILE).is_file() or (path / MANIFEST_PATH).is_file()


def version_of(folder: Path) -> int:
    """The version that a folder's name gives; 1 where it is not a number."""
    return version_number(folder.resolve().name) or 1


def newest_version(base: str | os.PathLike[str]) -> int:
    """The highest version in a base folder.

    Raises:
        ModelDirError: there is none.
    """
    for number in version_folders(base):
        return number
    raise ModelDirError(
        f"{base} holds no numbered version: expected a base folder that "
        "`optserve export` wrote"
    )


def version_folder(path: str | os.PathLike[str], version: int | None = None) -> Path:
    """The version that ``path`` means: itself, or the one asked for or newest in it.

    Raises:
        ModelDirError: it is neither a version's folder nor a base folder that has it.
    """
    if version is None and is_version_folder(path):
        return Path(path)
    folders = version_folders(path)
    if version is None:
        return folders[newest_version(path)]
    if version not in folders:
        raise ModelDirError(
            f"{path} has no version {version}: it has "
            f"{', '.join(map(str, folders)) or 'none'}"
        )
    return folders[version]


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a version's folder.

    Raises:
        ModelDirError: it is missing, or not a manifest.
    """
    path = Path(folder) / MANIFEST_PATH
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelDirError(f"{path} is not a regular file: export the model again")
        with path.open("rb") as file:
            data = file.read(MANIFEST_LIMIT + 1)
    except OSError as error:
        raise ModelDirError(
            f"{folder} is not an export of this package: {path.name} cannot be read "
            f"({error.strerror})"
        ) from None
    try:
        return Manifest.from_json(data)
    except ValueError as error:
        raise ModelDirError(f"{path}: {error}") from None


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, read as a stream."""
    digest = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    with Path(path).open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(view[:size])
    return digest.hexdigest()


def folder_digests(folder: str | os.PathLike[str]) -> dict[str, str]:
    """SHA-256 of every file of a version but the manifest, by its path in it.

    A symbolic link, and whatever else is not a regular file, has no bytes of its own:
    its digest is ``"link"``.
    """
    folder = Path(folder)
    names = sorted(n for n in _files(folder) if n != MANIFEST_PATH)

    def digest(name: str) -> str:
        path = folder / name
        regular = stat.S_ISREG(path.lstat().st_mode)
        return file_digest(path) if regular else LINK_DIGEST

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def changed_files(
    folder: str | os.PathLike[str], manifest: Manifest, *, exact: bool = True
) -> list[str]:
    """What differs between a folder's files and its manifest, one sentence each.

    Args:
        folder: a version's.
        manifest: its manifest.
        exact: whether the folder should hold these files alone, and no links. A mount
            may add files and make links, so a server looks only at what is listed.
    """
    if exact and not manifest.files:
        return ["the manifest lists no files, so nothing vouches for them"]
    folder = Path(folder)
    present = folder_digests(folder) if exact else _digests(folder, manifest.files)
    problems = [f"{n} is missing" for n in manifest.files if n not in present]
    problems += [
        f"{n} is not in the manifest" for n in present if n not in manifest.files
    ]
    problems += [
        f"{name} has been changed since the export: SHA-256 {present[name][:12]}…, "
        f"expected {digest[:12]}…"
        for name, digest in manifest.files.items()
        if name in present and present[name] != digest
    ]
    return sorted(problems)


def manifest_digest(manifest: Manifest) -> str:
    """One digest for a whole export: of its manifest, which has all the others."""
    return hashlib.sha256(manifest.to_json().encode()).hexdigest()


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Digests of those of the files that are there, links followed."""
    present = [name for name in names if (folder / name).is_file()]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        digests = pool.map(file_digest, [folder / name for name in present])
        return dict(zip(present, digests, strict=True))


def _files(folder: Path) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in [*names, *links]:
            yield (Path(root) / name).relative_to(folder).as_posix()

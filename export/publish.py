"""The base folder of a model: numbered versions, and how one appears whole.

    OUT/1/  OUT/2/ …          versions, complete and never changed again
    OUT/.staging-XXXXXXXX/    an export at work; servers only look at numbers
    OUT/deploy/               deployment files

A version is written in a staging folder of the same file system and renamed at the
end, so that a server polling OUT sees all of it or nothing. A running export holds a
lock on its staging folder; the kernel drops the lock however the process ends, so
the next export can tell a left-over from a neighbour at work and remove it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.contract import Manifest
from .errors import ExportError

MANIFEST_PATH = "assets.extra/optserve_manifest.json"

_VERSION = re.compile(r"[0-9]{1,18}")
_STAGING = ".staging-"
_MANIFEST_LIMIT = 16 * 1024**2


class LayoutError(ExportError):
    """A base folder that is not what the command needs."""


def versions(out: str | Path) -> list[int]:
    """The versions in a base folder, ascending; none if there is no such folder."""
    out = Path(out)
    if not out.is_dir():
        return []
    # A server reads "007" as 7, but every path here is made of the number.
    return sorted(
        int(entry.name)
        for entry in out.iterdir()
        if _VERSION.fullmatch(entry.name)
        and entry.name == str(int(entry.name))
        and entry.is_dir()
    )


def newest_version(out: str | Path) -> int:
    """The highest version in a base folder.

    Raises:
        LayoutError: there is none.
    """
    found = versions(out)
    if not found:
        raise LayoutError(
            f"{out} holds no numbered version: expected a base folder that "
            "`optserve export` wrote"
        )
    return found[-1]


def version_folder(path: str | Path) -> Path:
    """The version that ``path`` means: itself, or the newest one in it.

    Raises:
        LayoutError: it is neither a version's folder nor a base folder.
    """
    path = Path(path)
    if (path / "saved_model.pb").is_file() or (path / MANIFEST_PATH).is_file():
        return path
    return path / str(newest_version(path))


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a version's folder.

    Raises:
        LayoutError: there is none, or it is not one.
    """
    path = Path(folder) / MANIFEST_PATH
    try:
        with path.open("rb") as file:
            data = file.read(_MANIFEST_LIMIT + 1)
    except OSError as error:
        raise LayoutError(
            f"{folder} is not an export of this package: {path.name} cannot be read "
            f"({error.strerror})"
        ) from None
    if len(data) > _MANIFEST_LIMIT:
        raise LayoutError(f"{path} is larger than any manifest ({_MANIFEST_LIMIT} B)")
    try:
        return Manifest.from_json(data)
    except ValueError as error:
        raise LayoutError(f"{path}: {error}") from None


@contextmanager
def staging(out: str | Path, version: int | None = None) -> Iterator[Path]:
    """A folder to write a version in; it becomes ``OUT/VERSION`` if all goes well.

    Left-overs of exports that were killed are removed first. When the block raises,
    nothing of it remains.

    Args:
        out: the base folder, made if needed.
        version: its number; the next free one if None.

    Raises:
        LayoutError: the version exists.
    """
    out = Path(out)
    refuse_existing(out, version)
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        _remove_leftovers(out)
        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=out))
        lock = _lock(folder)
    try:
        yield folder
        with _locked(out):
            _publish(folder, out, version)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def refuse_existing(out: str | Path, version: int | None) -> None:
    """Raise LayoutError if ``OUT/VERSION`` exists."""
    if version is not None and (Path(out) / str(version)).exists():
        raise LayoutError(
            f"{Path(out) / str(version)} exists, and a version is never overwritten: "
            "choose another with --version, or remove it first"
        )


def folder_of(out: str | Path, inode: int) -> Path:
    """The version that a staging folder of this inode has become."""
    return next(path for path in Path(out).iterdir() if path.stat().st_ino == inode)


def next_version(out: str | Path) -> int:
    """One more than the highest version, 1 in an empty folder."""
    return max(versions(out), default=0) + 1


def _publish(folder: Path, out: Path, version: int | None) -> None:
    number = next_version(out) if version is None else version
    refuse_existing(out, number)
    folder.chmod(0o777 & ~_umask())  # mkdtemp's 0700 would shut the server out
    folder.rename(out / str(number))


def _remove_leftovers(out: Path) -> None:
    for folder in out.glob(f"{_STAGING}*"):
        lock = _lock(folder)
        if lock is None:
            continue  # an export at work
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for, and hold, the lock on a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """Take the lock on a folder at once: the open descriptor, None if it is held."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise
    return descriptor


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""How a version appears whole in a model's base folder, or not at all.

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
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..runtime.contract import Manifest
from ..runtime.model_dir import (
    MANIFEST_PATH,
    VERSION_LIMIT,
    folder_digests,
    version_folders,
)
from .errors import ExportError
from .full_disk import full_disk_explained

_STAGING = ".staging-"

Progress = Callable[[str], None]
"""Called with a short message as the work goes on."""


def silent(message: str) -> None:
    """Progress that is not shown."""


@dataclass
class StagedVersion:
    """A version in the making.

    ``folder`` is where to write until the block of :func:`staging` ends; ``path`` is
    where it was published, known after that.
    """

    folder: Path
    path: Path | None = None

    @property
    def published(self) -> Path:
        """The version's folder in the base folder.

        Raises:
            RuntimeError: it has not been published yet.
        """
        if self.path is None:
            raise RuntimeError(f"{self.folder} has not been published")
        return self.path


@contextmanager
def staging(
    out: str | os.PathLike[str], version: int | None = None
) -> Iterator[StagedVersion]:
    """A folder to write a version in; it becomes ``OUT/VERSION`` if all goes well.

    Left-overs of exports that were killed are removed first. When the block raises,
    nothing of it remains, nor of the base folder if it was new.

    Args:
        out: the base folder, created if needed.
        version: its number; the next free one if None.

    Raises:
        ExportError: the version exists, or is not a number that a server reads, or the
            disk is full.
    """
    out = Path(out)
    check_version(out, version)
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        _remove_leftovers(out)
        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=out))
        lock = _lock(folder)
    staged = StagedVersion(folder)
    try:
        with full_disk_explained(out):
            yield staged
        with _locked(out):
            staged.path = _publish(folder, out, version)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # a neighbour's export is in it
                out.rmdir()
        raise
    finally:
        if lock is not None:
            os.close(lock)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest with the digests of all other files, which must be there."""
    path = folder / MANIFEST_PATH
    path.parent.mkdir(exist_ok=True)
    listed = replace(manifest, files=folder_digests(folder))
    path.write_text(listed.to_json(), encoding="utf-8")


def write_whole(path: Path, text: str) -> None:
    """Write a text file, all of it or nothing; what was there stays until then.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and not path.is_file():  # a terminal, a pipe
        path.write_text(text, encoding="utf-8")
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_version(out: str | os.PathLike[str], version: int | None) -> None:
    """Refuse a version that exists, or that no server could read.

    Raises:
        ExportError: it does, or the base folder is something else.
    """
    if Path(out).exists() and not Path(out).is_dir():
        raise ExportError(f"{out} is not a folder: give the model's base folder")
    if version is None:
        return
    if not 1 <= version <= VERSION_LIMIT:
        raise ExportError(
            f"--version should be from 1 to {VERSION_LIMIT} (an int64, as servers read "
            f"it), got {version}"
        )
    existing = version_folders(out).get(version, Path(out) / str(version))
    if existing.exists() or existing.is_symlink():
        raise ExportError(
            f"{existing} exists, and a version is never overwritten: "
            "choose another with --version, or remove it first"
        )


def next_version(out: str | os.PathLike[str]) -> int:
    """The number that the next version gets.

    Raises:
        ExportError: the highest number is taken.
    """
    newest = max(version_folders(out), default=0)
    if newest == VERSION_LIMIT:
        raise ExportError(
            f"{out} holds version {VERSION_LIMIT}, the highest that servers read: "
            "choose a lower one with --version"
        )
    return newest + 1


def _publish(folder: Path, out: Path, version: int | None) -> Path:
    number = next_version(out) if version is None else version
    check_version(out, number)
    folder.chmod(0o777 & ~_umask())  # mkdtemp's 0700 would shut the server out
    return folder.rename(out / str(number))


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

"""A folder of cache blocks, one file each, shared by processes. Never fails a caller.

A file is ``_MAGIC``, the SHA-256 of its name's key and its rows, and the rows. It is
written under another name and then renamed, so that readers see all of it or nothing;
after a crash the digest tells. What is wrong is removed and counts as not there. All
paths are relative to the folder's descriptor and no link is followed.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from math import prod
from pathlib import Path

import numpy as np

from ..errors import InvalidRequest

_log = logging.getLogger(__name__)

_MAGIC = b"optserve rows 1\n"
_HEADER = len(_MAGIC) + sha256().digest_size
_NAME = re.compile(r"[0-9a-f]{64}\.rows")
_TEMPORARY = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.tmp")
_ABANDONED = 3600.0  # seconds after which a temporary file's writer is gone
_MOST_WAITING = 256 << 20  # bytes of rows that wait to be written; more are not
_PAUSE = 30.0  # seconds without writing after a write has failed
_FILL = 7 / 8  # of the limit that eviction leaves
_SCAN = 1 / 16  # of the limit that is written between two looks at the folder
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class PrefixFiles:
    """Blocks in a folder, read and written by two threads of its own.

    Args:
        folder: created if it isn't there, with its parents.
        limit: most bytes of files, about: several processes notice each other's files
            with a delay.

    Raises:
        InvalidRequest: it can't be created, is a link, or others may read or write it.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        self._folder = _opened(Path(folder))
        self._path = str(folder)
        self._limit = limit
        self._lock = threading.Lock()
        self._scanning = threading.Lock()
        self._waiting = 0  # bytes
        self._used = limit  # bytes in the folder as far as known; looks at first write
        self._since_scan = limit
        self._paused_until = 0.0
        self._closed = False
        self._workers: ThreadPoolExecutor | None = None
        self._pid = 0

    def load(
        self, keys: Sequence[bytes], shape: tuple[int, ...]
    ) -> Future[list[np.ndarray]]:
        """The float32 arrays of the first keys, as far as they are there in a row."""
        if self._closed:
            nothing: Future[list[np.ndarray]] = Future()
            nothing.set_result([])
            return nothing
        return self._pool().submit(self._load, tuple(keys), shape)

    def save(self, key: bytes, rows: np.ndarray) -> None:
        """Write an array soon; it must not change any more."""
        with self._lock:
            full = self._waiting + rows.nbytes > _MOST_WAITING
            if self._closed or full or time.monotonic() < self._paused_until:
                return
            self._waiting += rows.nbytes
        self._pool().submit(self._save, key, rows)

    def close(self) -> None:
        """Write what waits and close the folder."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            if self._workers is not None and self._pid == os.getpid():
                self._workers.shutdown(wait=True)
            os.close(self._folder)

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._workers is None or self._pid != os.getpid():  # threads don't fork
                self._workers = ThreadPoolExecutor(2, "optserve-prefix-files")
                self._pid = os.getpid()
            return self._workers

    def _load(self, keys: Sequence[bytes], shape: tuple[int, ...]) -> list[np.ndarray]:
        known: list[np.ndarray] = []
        for key in keys:
            rows = self._read(key, shape)
            if rows is None:
                break
            known.append(rows)
        for key in reversed(keys[: len(known)]):  # the first is to be found the longest
            with suppress(OSError):
                self._touch(f"{key.hex()}.rows")
        return known

    def _read(self, key: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
        name, size = f"{key.hex()}.rows", _HEADER + 4 * prod(shape)
        try:
            with open(os.open(name, _READ, dir_fd=self._folder), "rb") as file:
                status = os.fstat(file.fileno())
                right = stat.S_ISREG(status.st_mode) and status.st_size == size
                data = file.read(size) if right else b""
                if _is_intact(key, data, size):
                    return np.frombuffer(data, "<f4", offset=_HEADER).reshape(shape)
        except FileNotFoundError:
            return None
        except OSError as error:  # a link (ELOOP), or a disk that fails
            _log.debug("a block of %s can't be read: %s", self._path, error.strerror)
        with suppress(OSError):
            os.unlink(name, dir_fd=self._folder)
        return None

    def _save(self, key: bytes, rows: np.ndarray) -> None:
        try:
            self._write(key, np.ascontiguousarray(rows, "<f4"))
        except OSError as error:
            _log.warning(
                "the prefix cache can't write to %s (%s): no files for %d s",
                self._path,
                error.strerror,
                _PAUSE,
            )
            self._paused_until = time.monotonic() + _PAUSE
        finally:
            with self._lock:
                self._waiting -= rows.nbytes

    def _write(self, key: bytes, rows: np.ndarray) -> None:
        name, size = f"{key.hex()}.rows", _HEADER + rows.nbytes
        if size > self._limit * _FILL or self._touch(name):
            return
        self._make_room(size)
        temporary = f"{key.hex()}.{secrets.token_hex(8)}.tmp"
        try:
            fd = os.open(temporary, _WRITE, 0o600, dir_fd=self._folder)
            with open(fd, "wb", buffering=0) as file:
                payload = rows.data.cast("B")
                for part in (_MAGIC + _digest(key, payload), payload):
                    _write_all(file.fileno(), part)
            folder = self._folder
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._folder)
            raise

    def _touch(self, name: str) -> bool:
        """Make a file young again; whether it is there."""
        with suppress(FileNotFoundError):
            os.utime(name, dir_fd=self._folder, follow_symlinks=False)
            return True
        return False

    def _make_room(self, size: int) -> None:
        """Look at the folder now and then, and remove the oldest where it is full."""
        with self._scanning:
            self._used += size
            self._since_scan += size
            crowded = self._used > self._limit
            if not crowded and self._since_scan <= self._limit * _SCAN:
                return
            files = self._scan()
            total = size + sum(bytes_ for _, bytes_, _ in files)
            most = self._limit * _FILL if total > self._limit else total
            for _, bytes_, name in files:
                if total <= most:
                    break
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._folder)
                total -= bytes_
            self._used, self._since_scan = total, 0

    def _scan(self) -> list[tuple[float, int, str]]:
        """Age, size and name of each block, the oldest first; what crashed is removed.

        Names that aren't ours are somebody else's files.
        """
        files = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if _NAME.fullmatch(entry.name):
                        files.append((status.st_mtime, status.st_size, entry.name))
                    elif _TEMPORARY.fullmatch(entry.name) and (
                        status.st_mtime < time.time() - _ABANDONED
                    ):
                        os.unlink(entry.name, dir_fd=self._folder)
        return sorted(files)


def _opened(path: Path) -> int:
    """A descriptor of the folder."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(path, flags)
    except OSError as error:
        raise InvalidRequest(
            f"the prefix cache can't use {path} ({error.strerror}): give a folder of "
            "your own that is not a link"
        ) from None
    status = os.fstat(folder)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        os.close(folder)
        raise InvalidRequest(
            f"the prefix cache's folder {path} is open to other users, who could read "
            "prompts' caches or plant wrong ones: chmod 700 it, or give another"
        )
    return folder


def _digest(key: bytes, payload: memoryview) -> bytes:
    digest = sha256(key)
    digest.update(payload)
    return digest.digest()


def _is_intact(key: bytes, data: bytes, size: int) -> bool:
    if len(data) != size or not data.startswith(_MAGIC):
        return False
    return data[len(_MAGIC) : _HEADER] == _digest(key, memoryview(data)[_HEADER:])


def _write_all(fd: int, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]

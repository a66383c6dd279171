"""A Unix socket that one server has to itself.

gRPC removes a socket's file before it listens, also another server's. So a server
holds a lock on a file beside the socket from before it loads a model until it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat

from ..errors import OptserveError

_MAX_PATH = 107  # sun_path of Linux, without the final zero


class UnixSocket:
    """The socket at one absolute path, ours between ``claim`` and ``release``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock_path = f"{path}.lock"
        self._lock: int | None = None
        self._bound: tuple[int, int] | None = None

    def claim(self) -> None:
        """Take the path for this server.

        Raises:
            OptserveError: another server has it, or no socket can be there.
        """
        if len(os.fsencode(self.path)) > _MAX_PATH:
            raise OptserveError(
                f"socket path {self.path} is longer than {_MAX_PATH} bytes"
            )
        if not os.path.isdir(os.path.dirname(self.path)):
            raise OptserveError(
                f"no folder for the socket: {os.path.dirname(self.path)}"
            )
        self._check()
        self._take_lock()

    def clear(self) -> None:
        """Remove a socket that a server left behind, just before ours is made.

        Raises:
            OptserveError: somebody listens there after all.
        """
        if self._check():
            os.unlink(self.path)

    def note_bound(self) -> None:
        """Remember which file is ours."""
        entry = os.lstat(self.path)
        self._bound = entry.st_dev, entry.st_ino

    def release(self) -> None:
        """Remove what is ours: the socket's file and the lock's."""
        with contextlib.suppress(OSError):  # gRPC removes the socket too
            entry = os.lstat(self.path)
            if (entry.st_dev, entry.st_ino) == self._bound:
                os.unlink(self.path)
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._lock_path)
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        while True:
            try:
                lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                raise OptserveError(
                    f"cannot write {self._lock_path}: {error.strerror}"
                ) from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise self._taken() from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._lock_path), os.fstat(lock)):
                    self._lock = lock
                    return
            os.close(lock)  # its owner has just removed it: take the next one

    def _check(self) -> bool:
        """Whether a socket that nobody listens at is in the way."""
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return False
        if not stat.S_ISSOCK(mode):
            raise OptserveError(f"{self.path} exists and is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # a server that is stopped doesn't answer
            try:
                probe.connect(self.path)
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:
                    return True  # left over from a process that was killed
                if error.errno == errno.ENOENT:
                    return False  # its server has just ended
                if error.errno == errno.EACCES:
                    raise OptserveError(
                        f"{self.path} is another user's socket: choose another path"
                    ) from None
        raise self._taken()

    def _taken(self) -> OptserveError:
        return OptserveError(
            f"another process listens at {self.path}: stop it, or choose another path"
        )

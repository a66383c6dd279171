"""Reading a small file that may be anything: a pipe, a device, or endless."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

# Without O_NONBLOCK, opening a named pipe would wait for somebody to write to it.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


def open_regular_file(path: str | os.PathLike[str]) -> int:
    """A file descriptor to read from.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, _OPEN_FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
    return descriptor


def read_regular_file(path: str | os.PathLike[str], *, limit: int) -> bytes:
    """The whole content of a file of at most ``limit`` bytes.

    Raises:
        OSError: it cannot be read, is not a regular file, or is larger.
    """
    with os.fdopen(open_regular_file(path), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        name = os.fspath(Path(path))
        raise OSError(errno.EFBIG, f"has more than {limit} bytes", name)
    return data

"""Results as JSON lines: a line is written whole or not at all, and once.

The file that a batch appends to may be anything that a finger slipped to. Before a
byte is written it must be a regular file that no other run holds, that isn't the
input, and that holds lines of this command alone.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import IO, Any

from ..errors import InvalidRequest
from ..printable import json_text

_LONGEST_LINE = 256 << 20
_BEGINNING = b'{"id": '
_ID_CUT_OFF = re.compile(rb'(?:-?\d*|"(?:[^"\\]|\\.)*\\?)')
_ID = re.compile(rb'(?:-?\d+|"(?:[^"\\]|\\.)*")')
_SECOND_FIELDS = (b', "text": ', b', "error": ')
"""How a line of this command begins: ``record`` and ``failure`` order the fields."""


def record(
    identity: str | int, given: dict[str, Any], result: dict[str, Any]
) -> dict[str, Any]:
    """A result's line; of fields with one name the result's counts."""
    first = {"id": identity, "text": result["text"]}
    rest = {k: v for k, v in given.items() if k != "id" and k not in result}
    return first | result | rest


def failure(identity: str | int, given: dict[str, Any], error: str) -> dict[str, Any]:
    """The line of a prompt that failed: no result's field, for it isn't one."""
    rest = {k: v for k, v in given.items() if k not in ("id", "error", *_OF_RESULTS)}
    return {"id": identity, "error": error, **rest}


_OF_RESULTS = ("text", "tokens", "finish_reason")
"""Fields that each result has and no failure."""


def is_failure(line: dict[str, Any]) -> bool:
    """Whether a line reports a failure; a field "error" may be the input's own."""
    return any(name not in line for name in _OF_RESULTS)


class Output:
    """JSON lines to a file (appended) or to standard output.

    Attributes:
        done: ids that had a result when the file was opened.
        written, failed: lines added since, and how many of them are failures.
    """

    def __init__(self, path: str | None, inputs: Iterable[os.stat_result] = ()) -> None:
        """Open the file at ``path``; ``inputs`` say which files are read.

        Raises:
            InvalidRequest: it is the input, another run's, or something else.
            OSError: it can't be opened.
        """
        self._path = path
        new = path is not None and not os.path.exists(path)
        self._remove_if_empty = path if new else None
        self.done: set[str | int] = set()
        self.written = self.failed = 0
        self._file = _opened(path, inputs)
        try:
            if self._file is not None:
                with os.fdopen(os.dup(self._file), "rb") as file:
                    self.done = self._resume(file)
        except BaseException:
            self.close()
            raise

    def write(self, line: dict[str, Any]) -> None:
        """Add one line."""
        if self._file is None:
            sys.stdout.write(json_text(line) + "\n")
            sys.stdout.flush()
        else:
            text = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
            # half a surrogate pair becomes \udc80, which JSON has too
            self._append(self._file, text.encode(errors="backslashreplace"))
        self.written += 1
        self.failed += is_failure(line)

    def close(self) -> None:
        """Close the file; one that was created here and stayed empty is removed."""
        if self._file is not None:
            if self._remove_if_empty and not os.fstat(self._file).st_size:
                with suppress(OSError):
                    os.unlink(self._remove_if_empty)
            os.close(self._file)
            self._file = None

    def _append(self, file: int, line: bytes) -> None:
        try:
            written = os.write(file, line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._path) from None
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)

    def _resume(self, file: IO[bytes]) -> set[str | int]:
        """Ids that have a result; a last line that was cut off is removed."""
        done: set[str | int] = set()
        whole = 0
        while line := file.readline(_LONGEST_LINE):
            if not line.endswith(b"\n"):
                if len(line) == _LONGEST_LINE or not _is_torn(line):
                    raise self._foreign()
                assert self._file is not None
                os.ftruncate(self._file, whole)
                break
            whole += len(line)
            read = _own_line(line)
            if read is None:
                raise self._foreign()
            if not is_failure(read):
                done.add(read["id"])
        return done

    def _foreign(self) -> InvalidRequest:
        return InvalidRequest(
            f"{self._path} holds a line that this command did not write: nothing "
            "was written; give another --output"
        )


def _opened(path: str | None, inputs: Iterable[os.stat_result]) -> int | None:
    """The descriptor to append to, None for standard output."""
    if path is None:
        _refuse_inputs(1, "standard output", inputs)
        return None
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK  # a pipe: don't wait
    file = os.open(path, flags, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise InvalidRequest(
                f"{path} is not a regular file: without --output the lines go to "
                "standard output"
            )
        _refuse_inputs(file, path, inputs)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise InvalidRequest(
            f"another run writes {path}: wait for its end, or give another --output"
        ) from None
    except BaseException:
        os.close(file)
        raise
    return file


def _refuse_inputs(output: int, name: str, inputs: Iterable[os.stat_result]) -> None:
    """By inode, so that links don't hide it; only regular files can be both."""
    try:
        target = os.fstat(output)
    except OSError:
        return  # closed
    if not stat.S_ISREG(target.st_mode):
        return
    for source in inputs:
        if os.path.samestat(source, target):
            raise InvalidRequest(
                f"{name} is the input as well: nothing was written; give another "
                "--output"
            )


def _own_line(line: bytes) -> dict[str, Any] | None:
    """The line as data if this command can have written it."""
    try:
        read = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(read, dict) or isinstance(read.get("id"), bool):
        return None
    if not isinstance(read.get("id"), str | int):
        return None
    if is_failure(read):
        return read if isinstance(read.get("error"), str) else None
    tokens, text = isinstance(read["tokens"], list), isinstance(read["text"], str)
    return read if tokens and text else None


def _is_torn(line: bytes) -> bool:
    """Whether a last line without its end can be the beginning of one of ours."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        pass
    else:
        return _own_line(line) is not None  # but for its line feed it is whole
    if len(line) <= len(_BEGINNING):
        return _BEGINNING.startswith(line)
    if not line.startswith(_BEGINNING):
        return False
    rest = line[len(_BEGINNING) :]
    if _ID_CUT_OFF.fullmatch(rest):
        return True
    identity = _ID.match(rest)
    if identity is None:
        return False
    rest = rest[identity.end() :]
    return any(rest[: len(f)] == f[: len(rest)] for f in _SECOND_FIELDS)

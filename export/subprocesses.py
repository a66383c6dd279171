"""Functions called in processes of their own: what they hold goes when they end."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from resource import RUSAGE_SELF, getrusage
from typing import Any

from .errors import ExportError


class SubprocessFailed(ExportError):
    """The function raised, or its process did not end well; the message says why."""


class Subprocess:
    """A process that waits for one function to call.

    It ends with this process, however this one ends.

    Args:
        prepare: a function at the top of a module of this package, without arguments,
            to call while it waits: imports that take seconds.
        environment: variables on top of this process's.
        quiet: whether to keep what it writes to standard error to itself.
    """

    def __init__(
        self,
        prepare: Callable[[], None] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        quiet: bool = False,
    ) -> None:
        first = [] if prepare is None else [_name(prepare)]
        reading, self._task = os.pipe()  # closed by the kernel, if by nobody else
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *first],
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if quiet else None,
            env={**os.environ, **(environment or {})},
        )
        os.close(reading)

    def __enter__(self) -> Subprocess:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, if it has not ended."""
        os.close(self._task)
        with self._process:  # waits, and closes its pipes
            self._process.kill()

    def call(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """Call a function at the top of a module of this package; once.

        Args:
            function: the function.
            arguments: plain JSON data, by keyword.

        Returns:
            What the function returned, plain JSON data too.

        Raises:
            SubprocessFailed: there is no result.
        """
        task = json.dumps([_name(function), arguments])
        with (
            contextlib.suppress(BrokenPipeError),  # it has died: its words follow
            open(self._task, "w", encoding="utf-8", closefd=False) as pipe,
        ):
            pipe.write(task + "\n")
        reply, errors = self._process.communicate()
        try:
            reply = json.loads(reply)
        except ValueError:
            raise SubprocessFailed(_why(self._process.returncode, errors)) from None
        if "error" in reply:
            raise SubprocessFailed(reply["error"])
        return reply["result"]


def _why(code: int, errors: bytes | None) -> str:
    """In a few words, why a process failed that said nothing about it."""
    if code < 0:
        return (
            f"its process was killed by signal {-code}: out of memory, or a file that "
            "crashes what reads it?"
        )
    lines = (errors or b"").decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its process ended with {code}"


def call_in_subprocess(
    function: Callable[..., Any],
    *,
    environment: Mapping[str, str] | None = None,
    quiet: bool = False,
    **arguments: Any,
) -> Any:
    """Call a function in a process of its own, as :class:`Subprocess` does."""
    with Subprocess(environment=environment, quiet=quiet) as process:
        return process.call(function, **arguments)


def peak_memory() -> int:
    """The most memory that this process has held: bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return getrusage(RUSAGE_SELF).ru_maxrss * unit


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def _function(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _end_with_parent() -> None:
    gone = select.poll()
    gone.register(0, 0)  # for no event but that nobody can write any more
    gone.poll()
    os._exit(1)


def _main(prepare: str | None = None) -> None:
    """Call what is asked for; standard output gets its result and nothing else."""
    from ..runtime.cli import error_sentence

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    reply_to = os.dup(1)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if prepare is not None:
            _function(prepare)()
        gc.freeze()  # nobody looks for garbage in TensorFlow's million objects
        task = sys.stdin.buffer.readline()
        if not task:  # the parent has gone, or needs nothing
            os._exit(1)
        name, arguments = json.loads(task)
        reply = {"result": _function(name)(**arguments)}
    except Exception as error:
        if os.environ.get("OPTSERVE_TRACEBACK"):
            raise
        reply = {"error": error_sentence(error)}
    with os.fdopen(reply_to, "w", encoding="utf-8") as file:
        json.dump(reply, file)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # freeing everything first would take half a second


if __name__ == "__main__":
    _main(*sys.argv[1:])

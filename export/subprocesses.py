"""Functions called in processes of their own: what they hold goes when they end."""

from __future__ import annotations

import importlib
import json
import os
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


def call_in_subprocess(
    function: Callable[..., Any],
    *,
    environment: Mapping[str, str] | None = None,
    quiet: bool = False,
    **arguments: Any,
) -> Any:
    """Call a module's function in a process of its own.

    The process ends with this one, however this one ends.

    Args:
        function: a function at the top of a module of this package.
        environment: variables on top of this process's.
        quiet: whether to keep what it writes to standard error to itself.
        arguments: plain JSON data, by keyword.

    Returns:
        What the function returned, plain JSON data too.

    Raises:
        SubprocessFailed: there is no result.
    """
    name = f"{function.__module__}:{function.__qualname__}"
    command = [sys.executable, "-m", __name__, name, json.dumps(arguments)]
    reading, writing = os.pipe()  # closed by the kernel, if by nobody else
    try:
        ended = subprocess.run(
            command,
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if quiet else None,
            env={**os.environ, **(environment or {})},
        )
    finally:
        os.close(reading)
        os.close(writing)
    try:
        reply = json.loads(ended.stdout)
    except ValueError:
        raise SubprocessFailed(_why(ended)) from None
    if "error" in reply:
        raise SubprocessFailed(reply["error"])
    return reply["result"]


def _why(ended: subprocess.CompletedProcess[bytes]) -> str:
    """In a few words, why a process failed that said nothing about it."""
    if ended.returncode < 0:
        return (
            f"its process was killed by signal {-ended.returncode}: out of memory, or "
            "a file that crashes what reads it?"
        )
    lines = (ended.stderr or b"").decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its process ended with {ended.returncode}"


def peak_memory() -> int:
    """The most memory that this process has held: bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return getrusage(RUSAGE_SELF).ru_maxrss * unit


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _main(name: str, arguments: str) -> None:
    """Call the function; standard output gets what comes of it and nothing else."""
    from ..runtime.cli import error_sentence

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    reply_to = os.dup(1)
    os.dup2(2, 1)
    module, _, function = name.partition(":")
    try:
        call = getattr(importlib.import_module(module), function)
        reply = {"result": call(**json.loads(arguments))}
    except Exception as error:
        if os.environ.get("OPTSERVE_TRACEBACK"):
            raise
        reply = {"error": error_sentence(error)}
    with os.fdopen(reply_to, "w", encoding="utf-8") as file:
        json.dump(reply, file)


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""Commands in processes of their own: what they hold in memory goes when they end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from resource import RUSAGE_SELF, getrusage
from typing import Any


def run_apart(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``optserve ARGUMENTS``, its standard output kept as text.

    The process ends with this one, however this one ends. ``options`` are of
    ``subprocess.run``.
    """
    command = [sys.executable, "-m", "optserve.export.subprocesses", *arguments]
    reading, writing = os.pipe()  # closed by the kernel, if by nobody else
    try:
        return subprocess.run(
            command, stdin=reading, stdout=subprocess.PIPE, text=True, **options
        )
    finally:
        os.close(reading)
        os.close(writing)


def why(ended: subprocess.CompletedProcess[str]) -> str:
    """In a few words, why a process failed that said nothing about it."""
    if ended.returncode < 0:
        return f"killed by signal {-ended.returncode}, out of memory?"
    return f"exit code {ended.returncode}"


def peak_memory() -> int:
    """The most memory that this process has held: bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return getrusage(RUSAGE_SELF).ru_maxrss * unit


def give_back() -> None:
    """Return what has been freed to the system, where the C library keeps it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _main() -> int:
    from ..runtime.cli import main

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return main()


if __name__ == "__main__":
    sys.exit(_main())

"""An engine as processes: started, asked, weighed, ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .figures import ProcessFigure


@dataclass(frozen=True)
class Engine:
    """A row of the tables: how its worker is started, and its server if it has one.

    A server prints one JSON line when ready: its ``target``, which replaces
    ``{target}`` in ``command``, and ``pid`` if another process holds the weights.
    """

    name: str
    command: list[str]
    server: list[str] | None = None
    weight_bytes: int = 0


class EngineError(Exception):
    """An engine ended, with its last words."""


class Worker:
    """A running engine. Raises :class:`EngineError` if it ends."""

    def __init__(self, engine: Engine, log: Path) -> None:
        self._log = log
        self._processes: list[subprocess.Popen[str]] = []
        self.figure = ProcessFigure(engine.name, weight_bytes=engine.weight_bytes)
        try:
            self._start(engine)
        except BaseException:
            self.close()
            raise

    def _start(self, engine: Engine) -> None:
        begin = time.perf_counter()
        command = engine.command
        if engine.server:
            server = self._open(engine.server)
            ready = json.loads(self._line(server))
            self._pid = ready.get("pid", server.pid)
            self._ready(begin)
            command = [part.replace("{target}", ready["target"]) for part in command]
        self._process = self._open(command)
        ready = json.loads(self._line(self._process))
        self.figure.version = ready["version"]
        if not engine.server:
            self._pid = self._process.pid
            self._ready(begin)

    def _open(self, command: list[str]) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        with self._log.open("a") as errors:
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=errors, text=True
            )
        self._processes.append(process)
        return process

    def _ready(self, begin: float) -> None:
        self.figure.ready_seconds = time.perf_counter() - begin
        self.figure.ready_cpu_seconds = cpu_seconds(self._pid)

    def _line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise EngineError(last[0] if last else "ended without a word")
        return line

    def ask(self, **command: Any) -> dict[str, Any]:
        """One measurement, as ``protocol`` describes it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._line(self._process))
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer

    def weigh(self) -> None:
        """Note the memory of the process that holds the weights."""
        memory = resident(self._pid)
        self.figure.peak_bytes = max(self.figure.peak_bytes, memory["VmHWM"])
        self.figure.settled_bytes = memory["VmRSS"]

    def close(self) -> None:
        """End the engine and its server."""
        for process in reversed(self._processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def resident(pid: int) -> dict[str, int]:
    """``VmRSS`` and ``VmHWM``, its peak, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split() for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {name.rstrip(":"): 1024 * int(value) for name, value, *_ in pairs}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process's threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

"""Runs the engines in turn, round by round, and collects paired figures.

Every figure comes from the same two measurements, for every engine alike: the wall time
of generating one token (time to first token), three times in a row, and of generating N
tokens; milliseconds a token are their difference over N − 1 steps.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from . import peers

_FIRSTS = 3  # a round: another engine had its turn just before


@dataclass(frozen=True)
class Case:
    """A prompt length, a batch size and the number of tokens to generate."""

    prompt: int
    batch: int
    tokens: int


@dataclass(frozen=True)
class Engine:
    """A row of the table: its name, the worker's command, and whether it is ours.

    ``server`` is the command of a server that the worker talks to; it prints one JSON
    line with its ``target`` when ready, which replaces ``{target}`` in the command.
    """

    name: str
    command: list[str]
    ours: bool = False
    server: list[str] | None = None
    weight_bytes: int = 0


@dataclass
class Figure:
    """What was measured for one engine and case; times in seconds, one a round."""

    engine: str
    case: Case
    first: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    error: str = ""

    @property
    def ttft_ms(self) -> float:
        """Median time to the first token."""
        return 1e3 * statistics.median(self.first)

    @property
    def step_ms(self) -> float:
        """Median time of a decoding step (one token for every row)."""
        steps = self.case.tokens - 1
        pairs = zip(self.first, self.total, strict=True)
        return 1e3 * statistics.median((t - f) / steps for f, t in pairs)

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second of all rows while decoding."""
        return 1e3 * self.case.batch / self.step_ms

    def to_json(self) -> dict:
        """The figure with its medians, for the report file."""
        data = asdict(self)
        if self.first and not self.error:
            data |= {
                "ttft_ms": self.ttft_ms,
                "step_ms": self.step_ms,
                "tokens_per_second": self.tokens_per_second,
            }
        return data


class Worker:
    """A running engine. Raises ``RuntimeError`` with its last words if it ends."""

    def __init__(self, engine: Engine, log: Path) -> None:
        self.version = ""
        self._log = log
        self._server: subprocess.Popen | None = None
        command = engine.command
        with log.open("w") as errors:
            if engine.server:
                self._server = subprocess.Popen(
                    engine.server, stdout=subprocess.PIPE, stderr=errors, text=True
                )
                target = json.loads(self._line(self._server))["target"]
                command = [part.replace("{target}", target) for part in command]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.version = json.loads(self._line(self._process))["version"]

    def _line(self, process: subprocess.Popen) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(last[0] if last else "ended without a word")
        return line

    def run(self, case: Case, tokens: int) -> dict:
        """One measurement of ``tokens`` tokens."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(case) | {"tokens": tokens}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._line(self._process))
        if self._server:
            answer["peak_bytes"] += _peak_bytes(self._server.pid)
        return answer

    def close(self) -> None:
        """End the engine and its server."""
        for process in (getattr(self, "_process", None), self._server):
            if process is not None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def measure(
    engines: list[Engine],
    cases: list[Case],
    *,
    rounds: int,
    logs: Path,
    keep_alive: bool,
    progress: Callable[[str], None],
) -> Iterator[tuple[Figure, str]]:
    """Measure every engine on every case; yields (figure, engine version).

    In each round the engines take turns, so that a slow minute of the machine touches
    all of them. With ``keep_alive`` their processes live through all rounds (idle while
    others run), else each round starts them anew, which large models need.
    """
    workers: dict[str, Worker] = {}
    figures = {(e.name, c): Figure(e.name, c) for e in engines for c in cases}
    versions: dict[str, str] = {}
    broken: dict[str, str] = {}
    try:
        for round_number in range(rounds):
            for engine in engines:
                if engine.name in broken:
                    continue
                progress(f"round {round_number + 1}/{rounds}: {engine.name}")
                try:
                    worker = workers.get(engine.name)
                    fresh = worker is None
                    if worker is None:
                        worker = Worker(engine, logs / f"{engine.name}.log")
                        workers[engine.name] = worker
                        versions[engine.name] = worker.version
                    for case in cases:
                        _measure_one(worker, figures[engine.name, case], fresh)
                except (RuntimeError, OSError, json.JSONDecodeError) as error:
                    broken[engine.name] = str(error)
                    worker = workers.pop(engine.name, None)
                    if worker:
                        worker.close()
                if not keep_alive and engine.name in workers:
                    workers.pop(engine.name).close()
    finally:
        for worker in workers.values():
            worker.close()
    for (name, _), figure in figures.items():
        figure.error = broken.get(name, "")
        yield figure, versions.get(name, "")


def _measure_one(worker: Worker, figure: Figure, fresh: bool) -> None:
    case = figure.case
    if fresh:  # compilation, page cache, thread pools
        worker.run(case, 1)
        worker.run(case, case.tokens)
    firsts = [worker.run(case, 1)["seconds"] for _ in range(_FIRSTS)]
    total = worker.run(case, case.tokens)
    figure.first.append(statistics.median(firsts))
    figure.total.append(total["seconds"])
    figure.peak_bytes = max(figure.peak_bytes, total["peak_bytes"])
    figure.bytes_sent = total.get("bytes_sent", 0)
    figure.bytes_received = total.get("bytes_received", 0)


def memory_bandwidth(threads: int, seconds: float = 1.0) -> float:
    """Bytes a second that ``threads`` threads read together, measured here and now."""
    arrays = [np.ones(1 << 26, np.float32) for _ in range(threads)]  # 256 MiB each
    done = [0] * threads
    end = time.perf_counter() + seconds

    def read(index: int) -> None:
        while time.perf_counter() < end:
            arrays[index].max()
            done[index] += arrays[index].nbytes

    begin = time.perf_counter()
    pool = [threading.Thread(target=read, args=(i,)) for i in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    return sum(done) / (time.perf_counter() - begin)


def peer_engines(
    names: list[str], python: str, checkpoint: Path, cache: Path, threads: int
) -> list[Engine]:
    """The peers named, run with the interpreter that has them installed."""
    script = str(Path(peers.__file__))
    return [
        Engine(name, [python, script, name, str(checkpoint), str(cache), str(threads)])
        for name in names
    ]


def our_engine(name: str, mode: str, target: str, threads: int) -> Engine:
    """One of our engines on an existing target (address, folder or file)."""
    script = str(Path(__file__).with_name("workers.py"))
    command = [sys.executable, script, mode, target, str(threads)]
    return Engine(name, command, ours=True)

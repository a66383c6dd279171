"""What a run measured, and its way to a JSON file and back."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """A prompt length, a batch size and the number of tokens to generate."""

    prompt: int
    batch: int
    tokens: int


@dataclass
class ProcessFigure:
    """The process that holds the weights: until it was ready, and in all.

    Times in seconds, sizes in bytes of resident memory.
    """

    engine: str
    version: str = ""
    weight_bytes: int = 0
    ready_seconds: float = 0.0
    ready_cpu_seconds: float = 0.0
    peak_bytes: int = 0
    settled_bytes: int = 0
    error: str = ""


@dataclass
class DecodeFigure:
    """One engine and case; wall times in seconds, one a round."""

    engine: str
    case: Case
    first: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    bytes_sent: int = 0
    bytes_received: int = 0

    @property
    def first_ms(self) -> float:
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
        """Of all rows, while decoding."""
        return 1e3 * self.case.batch / self.step_ms


@dataclass
class LoadFigure:
    """One engine with so many callers at once; a number a round.

    Percentiles, in seconds, of the callers' first tokens and of the gaps between their
    tokens as they were handed out: tokens of one call of the server come together.
    """

    engine: str
    callers: int
    tokens: int
    tokens_per_second: list[float] = field(default_factory=list)
    first_p50: list[float] = field(default_factory=list)
    first_p99: list[float] = field(default_factory=list)
    gap_p50: list[float] = field(default_factory=list)
    gap_p99: list[float] = field(default_factory=list)

    def add(self, seconds: float, times: list[list[float]]) -> None:
        """One round: its length, and when each token of each caller came."""
        first = [row[0] for row in times]
        gaps = [b - a for row in times for a, b in pairwise(row)]
        self.tokens_per_second.append(sum(map(len, times)) / seconds)
        self.first_p50.append(percentile(first, 50))
        self.first_p99.append(percentile(first, 99))
        self.gap_p50.append(percentile(gaps, 50))
        self.gap_p99.append(percentile(gaps, 99))

    def median(self, name: str) -> float:
        """Over the rounds."""
        return statistics.median(getattr(self, name))


def percentile(values: list[float], percent: int) -> float:
    """The smallest value that at least ``percent`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]


@dataclass
class Run:
    """All that was measured on one machine with one state of the code."""

    preset: str
    threads: int
    commit: str
    machine: dict[str, Any]
    processes: list[ProcessFigure] = field(default_factory=list)
    decode: list[DecodeFigure] = field(default_factory=list)
    load: list[LoadFigure] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What it was measured with, in one line."""
        machine = self.machine
        return (
            f"OPT-{self.preset} shapes, {self.threads} threads, {machine['cpu']} "
            f"({machine['features']}), {machine['gigabytes_per_second']} GB/s, "
            f"commit {self.commit}"
        )

    def joined(self, other: Run) -> Run:
        """Both runs' figures; raises ``ValueError`` if they cannot be compared."""
        for name in ("preset", "threads", "commit"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                raise ValueError(f"these are two runs: {name} {mine} and {its}")
        if self.machine["cpu"] != other.machine["cpu"]:
            raise ValueError(
                f"these are two machines: {self.machine['cpu']} and "
                f"{other.machine['cpu']}"
            )
        known = {process.engine for process in self.processes}
        more = [process for process in other.processes if process.engine not in known]
        return Run(
            self.preset,
            self.threads,
            self.commit,
            self.machine,
            self.processes + more,
            self.decode + other.decode,
            self.load + other.load,
        )

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        temporary = path.with_name(f".{path.name}.partial")
        temporary.write_text(json.dumps(asdict(self), indent=1))
        os.replace(temporary, path)

    @classmethod
    def read(cls, path: Path) -> Run:
        """A file that ``save`` wrote."""
        data = json.loads(path.read_text())
        decode = [
            DecodeFigure(**{**figure, "case": Case(**figure["case"])})
            for figure in data.pop("decode")
        ]
        processes = [ProcessFigure(**figure) for figure in data.pop("processes")]
        load = [LoadFigure(**figure) for figure in data.pop("load")]
        return cls(**data, processes=processes, decode=decode, load=load)

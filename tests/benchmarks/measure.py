"""Runs the engines in turns, round by round, and collects paired figures.

Every figure comes from the same two measurements, for every engine alike: the wall time
of generating one token (time to first token), three times in a row, and of generating N
tokens; milliseconds per token are their difference over N − 1 steps.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .figures import Case, DecodeFigure, LoadFigure, ProcessFigure
from .process import Engine, EngineError, Worker

_FIRSTS = 3  # a round: another engine had its turn just before


@dataclass(frozen=True)
class Plan:
    """What to measure of each engine: generations, and so many callers at once."""

    cases: list[Case]
    callers: list[int] = field(default_factory=list)
    load_tokens: int = 64
    rounds: int = 5
    restart: bool = False


def caller_prompts(callers: int) -> list[int]:
    """Lengths of prompts, 32 to 256, the same for every engine."""
    rng = random.Random(callers)
    return [rng.randint(32, 256) for _ in range(callers)]


class Measurement:
    """Figures of all engines, filled by ``run``.

    In each round the engines take turns, so that a slow minute of the machine touches
    all of them. Their processes live through all rounds (idle while others run), or
    with ``restart`` are started anew in each, which large models need.
    """

    def __init__(self, engines: list[Engine], plan: Plan, logs: Path) -> None:
        self.engines, self.plan, self.logs = engines, plan, logs
        self.processes = {e.name: ProcessFigure(e.name) for e in engines}
        self.decode = {
            (e.name, case): DecodeFigure(e.name, case)
            for e in engines
            for case in plan.cases
        }
        self.load = {
            (e.name, callers): LoadFigure(e.name, callers, plan.load_tokens)
            for e in engines
            for callers in plan.callers
        }
        self._workers: dict[str, Worker] = {}

    def run(self, progress: Callable[[str], None]) -> None:
        """Measure all; an engine that fails is left out from then on."""
        try:
            for number in range(self.plan.rounds):
                for engine in self.engines:
                    if not self.processes[engine.name].error:
                        progress(
                            f"round {number + 1}/{self.plan.rounds}: {engine.name}"
                        )
                        self._turn(engine)
        finally:
            for worker in self._workers.values():
                worker.weigh()
                worker.close()

    def _turn(self, engine: Engine) -> None:
        try:
            fresh = engine.name not in self._workers
            if fresh:
                worker = Worker(engine, self.logs / f"{engine.name}.log")
                self._workers[engine.name] = worker
                self.processes[engine.name] = worker.figure
            self._measure(engine.name, self._workers[engine.name], fresh)
        except (EngineError, OSError, json.JSONDecodeError) as error:
            self.processes[engine.name].error = str(error)
        ended = self.plan.restart or self.processes[engine.name].error
        if ended and (worker := self._workers.pop(engine.name, None)):
            worker.close()

    def _measure(self, name: str, worker: Worker, fresh: bool) -> None:
        for case in self.plan.cases:
            _decode(worker, self.decode[name, case], fresh)
        for callers in self.plan.callers:
            _load(worker, self.load[name, callers], fresh)
        worker.weigh()


def _decode(worker: Worker, figure: DecodeFigure, fresh: bool) -> None:
    case = figure.case

    def ask(tokens: int) -> dict:
        return worker.ask(prompt=case.prompt, batch=case.batch, tokens=tokens)

    if fresh:  # page cache, thread pools, whatever is made at first use
        ask(1)
        ask(case.tokens)
    firsts = [ask(1)["seconds"] for _ in range(_FIRSTS)]
    total = ask(case.tokens)
    figure.first.append(statistics.median(firsts))
    figure.total.append(total["seconds"])
    figure.bytes_sent = total.get("bytes_sent", 0)
    figure.bytes_received = total.get("bytes_received", 0)


def _load(worker: Worker, figure: LoadFigure, fresh: bool) -> None:
    prompts = caller_prompts(figure.callers)
    if fresh:
        worker.ask(prompts=prompts, tokens=figure.tokens)
    answer = worker.ask(prompts=prompts, tokens=figure.tokens)
    figure.add(answer["seconds"], answer["times"])

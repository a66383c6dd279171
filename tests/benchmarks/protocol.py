"""What the benchmark and an engine's process say to each other, a JSON line each.

Standard library only: interpreters that have a peer but not optserve run this too.

    {"ready": true, "version": …}                          the engine, once loaded
    {"prompt": P, "batch": B, "tokens": N}                 generate exactly N, greedily
    {"seconds": …}                                         its wall time
    {"prompts": [P, …], "tokens": N}                       all callers at once
    {"seconds": …, "times": [[…], …]}                      of each caller's tokens
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Prompts = list[list[int]]


@dataclass(frozen=True)
class Runner:
    """A loaded engine.

    ``generate(prompts, tokens)`` makes exactly ``tokens`` for each prompt and returns
    further fields of the answer. ``load(prompts, tokens)`` serves callers that come at
    once: when each token of each of them was there, on ``time.perf_counter``'s clock.
    """

    version: str
    generate: Callable[[Prompts, int], dict[str, Any] | None]
    load: Callable[[Prompts, int], list[list[float]]] | None = None


def prompt(length: int, row: int) -> list[int]:
    """A prompt without special ids; the engines' speed does not depend on the ids."""
    return [4 + (7 * row + 13 * i) % 50000 for i in range(length)]


def take_over_stdout() -> Any:
    """Standard output for answers alone: what libraries print goes to the errors."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve(runner: Runner, answers: Any) -> None:
    """Answer commands on standard input until it closes."""

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    say({"ready": True, "version": runner.version})
    for line in sys.stdin:
        command = json.loads(line)
        answer = _loaded if "prompts" in command else _timed
        say(answer(runner, command))


def _timed(runner: Runner, command: dict[str, Any]) -> dict[str, Any]:
    prompts = [prompt(command["prompt"], row) for row in range(command["batch"])]
    begin = time.perf_counter()
    more = runner.generate(prompts, command["tokens"])
    return {"seconds": time.perf_counter() - begin, **(more or {})}


def _loaded(runner: Runner, command: dict[str, Any]) -> dict[str, Any]:
    if runner.load is None:
        return {"error": "cannot serve several callers"}
    prompts = [prompt(length, row) for row, length in enumerate(command["prompts"])]
    begin = time.perf_counter()
    times = runner.load(prompts, command["tokens"])
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "times": [[t - begin for t in row] for row in times]}

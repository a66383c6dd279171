"""Engines are asked in turns, weighed, and left out once they fail."""

from __future__ import annotations

import sys
from pathlib import Path

from .figures import Case
from .measure import Measurement, Plan
from .process import Engine

FAKE = """
import sys
sys.path.insert(0, {folder!r})
from protocol import Runner, serve, take_over_stdout
answers = take_over_stdout()
print("a library's chatter")
def generate(prompts, tokens):
    assert [len(p) for p in prompts] == [5, 5] and tokens in (1, 3)
    return {{"bytes_sent": 7}}
def load(prompts, tokens):
    return [[float(i) for i in range(tokens)] for _ in prompts]
serve(Runner("1.2.3", generate, load), answers)
"""


def fake(name: str, code: str = FAKE) -> Engine:
    script = code.format(folder=str(Path(__file__).parent))
    return Engine(name, [sys.executable, "-c", script], weight_bytes=4)


def test_figures_of_every_engine_and_case(tmp_path):
    engines = [fake("one"), fake("two"), fake("broken", "raise SystemExit('oh no')")]
    plan = Plan([Case(5, 2, 3)], callers=[4], load_tokens=6, rounds=2)
    measurement = Measurement(engines, plan, tmp_path)
    said: list[str] = []
    measurement.run(said.append)
    for name in ("one", "two"):
        process = measurement.processes[name]
        assert (process.version, process.error) == ("1.2.3", "")
        assert process.ready_seconds > 0
        assert process.peak_bytes >= process.settled_bytes > 1 << 20
        figure = measurement.decode[name, plan.cases[0]]
        assert len(figure.first) == len(figure.total) == 2
        assert figure.bytes_sent == 7
        assert len(measurement.load[name, 4].tokens_per_second) == 2
        assert measurement.load[name, 4].gap_p99 == [1.0, 1.0]
    assert measurement.processes["broken"].error == "oh no"
    turns = ["one", "two", "broken", "one", "two"]
    assert [line.rpartition(" ")[2] for line in said] == turns

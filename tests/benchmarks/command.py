"""``optserve bench``: prepare what is missing, measure, report; or publish a run."""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from pathlib import Path

from rich.console import Console

from . import report
from .engines import (
    OURS,
    PEERS,
    PreparationError,
    Setup,
    engine,
    make_checkpoint,
    our_worker,
    prepare,
)
from .figures import Case, Run
from .machine import commit, machine
from .measure import Measurement, Plan
from .process import Engine
from .publish import publish


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("--preset", default="125m", help="125m, 350m, 1.3b, …")
    add(
        "--engines",
        default="optserve-int8,optserve-xla-int8",
        help=f"comma-separated, of {', '.join([*OURS, *PEERS])}; or all",
    )
    add("--prompts", default="128", help="prompt lengths, e.g. 128,900; or none")
    add("--batches", default="1", help="rows, e.g. 1,8")
    add("--tokens", type=int, default=65, help="tokens to generate")
    add("--callers", default="none", help="callers at once, e.g. 1,8,32,64")
    add("--load-tokens", type=int, default=64, help="tokens of each caller")
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=2)
    add("--target", help="also measure the server at HOST:PORT")
    add("--work", type=Path, default=Path("bench-work"), help="for files made here")
    add("--peer-python", default=sys.executable, help="has the peers installed")
    add("--litert-python", default=sys.executable, help="has litert-torch installed")
    add("--serving-binary", help="tensorflow_model_server, instead of the embedded one")
    add("--server-flags", default="", help="further flags of the server, in quotes")
    add("--restart", action="store_true", help="new processes in each round")
    add("--json", type=Path, help="the figures' file (WORK/PRESET/figures.json)")
    add(
        "--publish",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="measure nothing; put these figures into the pages",
    )


def run(args: argparse.Namespace) -> int:
    """Measure and report, or publish. Returns 1 if an engine failed, 2 for usage."""
    try:
        if args.publish:
            return _publish(args.publish)
        return _measure(args)
    except (ValueError, PreparationError) as error:
        print(f"optserve: {error}", file=sys.stderr)
        return 2


def _publish(files: list[Path]) -> int:
    whole = functools.reduce(Run.joined, map(Run.read, files))
    for path in publish(whole):
        print(path)
    return 0


def _measure(args: argparse.Namespace) -> int:
    names = [*OURS, *PEERS] if args.engines == "all" else args.engines.split(",")
    for name in names:
        if name not in OURS and name not in PEERS:
            raise ValueError(f"no engine {name!r}; see optserve bench --help")
    setup = _setup(args)
    setup.work.mkdir(parents=True, exist_ok=True)
    with Console(stderr=True).status("preparing") as status:
        checkpoint = make_checkpoint(setup, status.update)
        for name in names:
            prepare(name, setup, checkpoint, status.update)
        engines = [engine(name, setup, checkpoint) for name in names]
        if args.target:
            command = our_worker("grpc", args.target, args.threads)
            engines.append(Engine(f"optserve@{args.target}", command))
        figures = Run(args.preset, args.threads, commit(), machine(args.threads))
        measurement = Measurement(engines, _plan(args), setup.work)
        measurement.run(status.update)
    figures.processes = list(measurement.processes.values())
    figures.decode = [figure for figure in measurement.decode.values() if figure.total]
    figures.load = [f for f in measurement.load.values() if f.tokens_per_second]
    figures.save(args.json or setup.work / "figures.json")
    print(report.details(figures))
    return 1 if any(process.error for process in figures.processes) else 0


def _setup(args: argparse.Namespace) -> Setup:
    return Setup(
        args.work / args.preset,  # what was made of one preset is not another's
        args.preset,
        args.threads,
        args.peer_python,
        args.litert_python,
        args.serving_binary,
        tuple(shlex.split(args.server_flags)),
    )


def _plan(args: argparse.Namespace) -> Plan:
    cases = [
        Case(prompt, batch, args.tokens)
        for prompt in _numbers(args.prompts)
        for batch in _numbers(args.batches)
    ]
    callers = _numbers(args.callers)
    return Plan(cases, callers, args.load_tokens, args.rounds, args.restart)


def _numbers(text: str) -> list[int]:
    """Comma-separated numbers; raises ``ValueError`` that names a wrong one."""
    if text == "none":
        return []
    wrong = [part for part in text.split(",") if not part.isdecimal() or not int(part)]
    if wrong:
        raise ValueError(f"expected numbers with commas between, got {wrong[0]!r}")
    return [int(part) for part in text.split(",")]

"""``optserve doctor``: what this machine lacks for exporting, serving or calling."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from ...models.config import OPTConfig
from ...runtime.printable import sentence
from .. import doctor
from ..doctor import Check

_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "failed": "[red]FAILED[/]"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("checkpoint", nargs="?", type=Path, help="a local checkpoint to look at")
    add(
        "--for",
        dest="needed",
        action="append",
        choices=doctor.EXTRAS,
        default=[],
        help="what must work here; may be given several times",
    )
    add("--out", type=Path, default=Path(), help="where an export would be written")
    add("--port", type=int, help="a port that a server would listen on")
    add("--socket", type=Path, help="a Unix socket that a server would make")
    add("--target", help="a server to ask, HOST:PORT or unix:PATH")
    add("--model", default="opt", help="the model's name there (default %(default)s)")
    add("--no-imports", action="store_true", help="do not try the heavy libraries")
    add("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the checks. Returns 0, or 1 if something failed."""
    checks = []
    for check in _checks(args):
        checks.append(check)
        if not args.json:
            _show(check)
    failed = [check for check in checks if check.state == "failed"]
    if args.json:
        findings = [asdict(check) for check in checks]
        json.dump({"ok": not failed, "checks": findings}, sys.stdout, indent=1)
        print()
    else:
        print(f"{len(failed)} failed" if failed else "nothing is missing")
    return 1 if failed else 0


def _checks(args: argparse.Namespace) -> Iterator[Check]:
    yield from doctor.check_python()
    yield from doctor.check_processor()
    yield from doctor.check_packages(tuple(args.needed))
    if not args.no_imports:
        yield from doctor.check_imports()
    config = None
    if args.checkpoint is not None:
        for check in doctor.check_checkpoint(args.checkpoint):
            yield check
            if check.name == "config.json" and check.state == "ok":
                config = OPTConfig.from_pretrained(args.checkpoint)
    yield from doctor.check_room(args.out, config)
    if args.port is not None:
        yield doctor.check_port(args.port)
    if args.socket is not None:
        yield doctor.check_socket(args.socket)
    if args.target is not None:
        yield from check_server(args.target, args.model)


def check_server(target: str, model: str, seconds: float = 10.0) -> Iterator[Check]:
    """Whether a server answers, has the model, speaks our contract, and computes.

    The last one is tried: a server without XLA loads a compiled model, calls it
    AVAILABLE, and refuses every request.
    """
    # A command may use the client; the library beside it may not.
    from ...runtime import Client, OptserveError
    from ...runtime.transports.grpc_sync import GrpcTransport

    try:
        with GrpcTransport(target, model=model) as transport:
            (status,) = transport.status(timeout=seconds)
    except OptserveError as error:
        yield Check("server", "failed", str(error), "is it HOST:PORT or unix:PATH?")
        return
    versions = ", ".join(f"{v.version} {v.state}" for v in status.versions)
    if not status.available:
        detail = status.error or versions or "no version of the model"
        advice = f"is the server up, and is the model's name there {model!r}?"
        yield Check("server", "failed", detail, advice)
        return
    yield Check("server", "ok", f"{model}: version {versions}")
    try:
        with Client(target, model=model, connect_timeout=seconds) as client:
            manifest = client.describe()
            kind = (
                f"contract {manifest.contract_version}, {manifest.framework}/"
                f"{manifest.compiler}, {manifest.weights_dtype} weights"
            )
            yield Check("served model", "ok", kind)
            client.generate([[manifest.bos_token_id]], max_new_tokens=1)
            yield Check("computing", "ok", "one token generated")
    except OptserveError as error:
        yield Check("computing", "failed", str(error))


def _show(check: Check) -> None:
    from rich.console import Console
    from rich.markup import escape

    name, detail, advice = (
        escape(sentence(text)) for text in (check.name, check.detail, check.advice)
    )
    mark = _MARKS[check.state] + " " * (7 - len(check.state))
    line = f"{mark}{name:32} {detail}" + (f"  [dim]→ {advice}[/]" if advice else "")
    Console(highlight=False, soft_wrap=True).print(line)

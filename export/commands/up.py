"""``optserve up``: from a checkpoint to a page in the browser, in one command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...runtime.commands import gateway
from ...runtime.commands.listening_arguments import add_json_log, add_port
from ...runtime.model_dir import version_folders
from ..errors import ExportError
from ..options import WEIGHTS, ExportOptions
from ..pipeline import PhaseClock, export_checkpoint


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="directory, or hub id")
    add(
        "--out",
        metavar="OUT",
        help="the export's base folder; one that is there is used as it is (default: "
        "CHECKPOINT's name with -optserve, here)",
    )
    add(
        "--weights",
        default="int8",
        choices=WEIGHTS["savedmodel"],
        help="how matrices are stored (default int8)",
    )
    add_port(parser, 8000)
    add("--no-open", action="store_true", help="open no browser")
    add_json_log(parser)


def run(args: argparse.Namespace) -> int:
    """Export if there is no export yet, then run a gateway in front of it.

    Raises:
        ExportError: the checkpoint or the options can't be exported.
    """
    out = Path(args.out or f"{Path(args.checkpoint).name}-optserve")
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is not a folder: give another --out")
    if not (out.is_dir() and version_folders(out)):
        clock = PhaseClock(print_to=sys.stderr)
        options = ExportOptions(weights=args.weights)
        export_checkpoint(args.checkpoint, out, options, clock=clock)
    parser = argparse.ArgumentParser()
    gateway.configure(parser)
    words = ["--model", str(out), "--port", str(args.port)]
    return gateway.run(parser.parse_args(words if args.no_open else [*words, "--open"]))

"""``optserve verify OUT``: files, numbers, and how two exports differ."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from ...models.checkpoints import resolve
from ..errors import ExportError
from ..publish import write_whole
from ..verify.drift import drift, read_baseline
from ..verify.process import (
    compare_in_subprocess,
    measure_text,
    verify_in_subprocess,
)
from ..verify.report import show


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Exit code: 0 verified; 1 not, or it could not be; 2 wrong arguments."
    )
    add = parser.add_argument
    add(
        "export",
        type=Path,
        metavar="OUT",
        help="base folder, one version's folder, or a .tflite file",
    )
    against = parser.add_mutually_exclusive_group()
    against.add_argument(
        "--checkpoint",
        help="directory or hub id that it was exported from: compare the numbers",
    )
    against.add_argument(
        "--against", type=Path, metavar="OTHER", help="another export to compare with"
    )
    add("--revision", help="of a hub checkpoint")
    add(
        "--text",
        type=Path,
        metavar="FILE",
        help="a UTF-8 text of your own: measure its loss, beside that of OTHER, or of "
        "CHECKPOINT where the export has int8 activations, which may raise it by 0.1 "
        "per cent",
    )
    add(
        "--max-length",
        type=int,
        metavar="N",
        help="longest sequence to try (default: the model's positions, fewer for a "
        "model whose cache is large)",
    )
    add(
        "--baseline",
        type=Path,
        metavar="REPORT",
        help="an earlier version's JSON report: fail if this one drifted from it",
    )
    add(
        "--max-drift",
        type=float,
        default=0.05,
        metavar="X",
        help="largest change of a mean log-probability or mean error from the baseline "
        "(default %(default)s)",
    )
    add("--json", action="store_true", help="print the report as JSON")
    add("--report", type=Path, metavar="FILE", help="write the JSON report here")


def run(args: argparse.Namespace) -> int:
    """Verify. Returns 0 if all is well, 1 if not."""
    from rich.console import Console

    if args.max_length is not None and args.max_length < 1:
        raise ExportError(f"--max-length should be 1 or more, got {args.max_length}")
    if not 0 <= args.max_drift < math.inf:
        raise ExportError(f"--max-drift should be 0 or more, got {args.max_drift}")
    baseline = None if args.baseline is None else read_baseline(args.baseline)
    checkpoint = args.checkpoint
    if args.against is not None:
        report = compare_in_subprocess(
            args.export, args.against, max_length=args.max_length
        )
    else:
        if checkpoint is not None:
            checkpoint = resolve(checkpoint, revision=args.revision)
        report = verify_in_subprocess(
            args.export, checkpoint, max_length=args.max_length
        )
    if args.text is not None:
        measure_text(
            report, args.text, args.export, other=args.against, checkpoint=checkpoint
        )
    if baseline is not None:
        report.problems += drift(report, baseline, args.max_drift)
    if args.report is not None:
        write_whole(args.report, report.to_json() + "\n")
    if args.json:
        print(report.to_json())
    else:
        show(report, Console(file=sys.stdout, highlight=False, width=120))
    return 0 if report.ok else 1

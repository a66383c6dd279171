"""``optserve verify OUT``: files, numbers, and how two exports differ."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ...models.checkpoints import resolve
from ..errors import ExportError
from ..subprocesses import peak_memory
from ..verify import Report, compare_exports, verify_export
from ..verify.report import show

_BASELINE_LIMIT = 64 * 1024**2


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

    from ...models.quiet import import_tensorflow

    if args.max_length is not None and args.max_length < 1:
        raise ExportError(f"--max-length is 1 or more, got {args.max_length}")
    baseline = None if args.baseline is None else read_baseline(args.baseline)
    import_tensorflow()
    if args.against is not None:
        report = compare_exports(args.export, args.against, max_length=args.max_length)
    else:
        checkpoint = args.checkpoint
        if checkpoint is not None:
            checkpoint = resolve(checkpoint, revision=args.revision)
        report = verify_export(
            args.export, checkpoint=checkpoint, max_length=args.max_length
        )
    report.memory = peak_memory()
    if baseline is not None:
        report.problems += drift(report, baseline, args.max_drift)
    if args.report is not None:
        args.report.write_text(report.to_json() + "\n", encoding="utf-8")
    if args.json:
        print(report.to_json())
    else:
        show(report, Console(file=sys.stdout, highlight=False, width=120))
    return 0 if report.ok else 1


def read_baseline(path: Path) -> dict:
    """An earlier report.

    Raises:
        ExportError: the file is not one.
    """
    if path.stat().st_size > _BASELINE_LIMIT:
        raise ExportError(f"{path} is too large for a report")
    try:
        found = json.loads(path.read_bytes())
        shaped = isinstance(found["scores"], dict) and isinstance(
            found["outputs"], list
        )
    except (ValueError, KeyError, TypeError):
        shaped = False
    if not shaped:
        raise ExportError(f"{path} is not a report of `optserve verify --json`")
    return found


def drift(report: Report, baseline: dict, allowed: float) -> list[str]:
    """Where a report is further than ``allowed`` from an earlier one.

    Compared are the mean log-probabilities of the same questions, and each output's
    mean error; questions and outputs that only one of them has are passed over.
    """
    found = []
    for label, value in report.scores.items():
        before = baseline["scores"].get(label)
        if isinstance(before, (int, float)) and abs(value - before) > allowed:
            found.append(f"drift: {label} scores {value:.4f}, before {before:.4f}")
    errors = {
        (o.get("signature"), o.get("output"), o.get("source")): o.get("mean_error")
        for o in baseline["outputs"]
        if isinstance(o, dict)
    }
    for output in report.outputs:
        before = errors.get((output.signature, output.output, output.source))
        if isinstance(before, (int, float)) and output.mean_error - before > allowed:
            found.append(
                f"drift: {output.signature} {output.output} has a mean error of "
                f"{output.mean_error:.4f}, before {before:.4f}"
            )
    return found

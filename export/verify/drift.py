"""How far a report is from an earlier one, kept as a baseline."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ...models.regular_files import read_regular_file
from ..errors import ExportError
from .report import Report

_BASELINE_LIMIT = 64 * 1024**2
_OUTPUT_KEYS = ("signature", "output", "source")


def read_baseline(path: Path) -> dict[str, Any]:
    """An earlier report's scores, and mean errors by signature, output and source.

    Raises:
        ExportError: the file is not a report, or a number in it is not finite.
        OSError: it cannot be read.
    """
    data = read_regular_file(path, limit=_BASELINE_LIMIT)
    try:
        report = json.loads(data)
        scores = {str(label): _number(x) for label, x in report["scores"].items()}
        errors = {
            tuple(str(output.get(key, "")) for key in _OUTPUT_KEYS): _number(
                output["mean_error"]
            )
            for output in report["outputs"]
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ExportError(
            f"{path} is not a report of `optserve verify --json`"
        ) from None
    if not all(map(math.isfinite, [*scores.values(), *errors.values()])):
        raise ExportError(f"{path} holds a number that is not finite")
    return {"scores": scores, "errors": errors}


def _number(value: Any) -> float:
    """A report's number; null stands for one that is not finite."""
    return math.nan if value is None else float(value)


def drift(report: Report, baseline: dict[str, Any], allowed: float) -> list[str]:
    """Where a report is further than ``allowed`` from a baseline, a sentence each.

    Compared are the mean log-probabilities of the same test cases, and each output's
    mean error; what only one of them has is passed over.
    """
    problems = []
    for label, value in report.scores.items():
        before = baseline["scores"].get(label)
        if before is not None and not abs(value - before) <= allowed:
            problems.append(f"drift: {label} scores {value:.4f}, before {before:.4f}")
    for output in report.outputs:
        key = (output.signature, output.output, output.source)
        before = baseline["errors"].get(key)
        if before is not None and not output.mean_error - before <= allowed:
            problems.append(
                f"drift: {output.signature} {output.output} has a mean error of "
                f"{output.mean_error:.4f}, before {before:.4f}"
            )
    return problems

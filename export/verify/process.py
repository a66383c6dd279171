"""Verification in a process of its own, as a server would meet the files."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ..errors import ExportError
from ..subprocesses import run_apart, why
from .tolerances import MEAN_SHARE

_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1024**2), "MALLOC_ARENA_MAX": "2"}
"""For glibc: what is freed goes back to the system, not to a heap for each thread."""


def verify_in_fresh_process(
    folder: str | Path, checkpoint: str | Path, *, max_length: int | None = None
) -> dict[str, Any]:
    """Run ``optserve verify`` on a version's folder; its report.

    Nothing that the exporting process holds, right or wrong, can help the files to
    pass.

    Raises:
        ExportError: it is not verified; the message says what is wrong.
    """
    command = ["verify", str(folder), "--checkpoint", str(checkpoint), "--json"]
    if max_length is not None:
        command += ["--max-length", str(max_length)]
    ended = run_apart(
        *command,
        stderr=subprocess.PIPE,
        env={**_ALLOCATOR, **os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    try:
        report = json.loads(ended.stdout)
    except ValueError:
        report = None
    if report is None:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        said = lines and ended.returncode >= 0
        reason = lines[-1] if said else why(ended)
        raise ExportError(f"verifying did not end well, nothing published: {reason}")
    if not report["ok"]:
        raise ExportError(f"not verified, nothing published: {_reasons(report)}")
    return report


def _reasons(report: dict[str, Any]) -> str:
    reasons = [*report["files"], *report["problems"]]
    for output in report["outputs"]:
        if output["tolerance"] is not None and (
            output["max_error"] > output["tolerance"]
            or output["mean_error"] > MEAN_SHARE * output["tolerance"]
        ):
            reasons.append(
                f"{output['signature']} {output['output']} is off by "
                f"{output['max_error']:.2g} (mean {output['mean_error']:.2g}) at "
                f"{output['worst']}, allowed {output['tolerance']:g} "
                f"(mean {MEAN_SHARE * output['tolerance']:g})"
            )
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return "; ".join(reasons[:3]) + more

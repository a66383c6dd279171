"""Verification in a process of its own, as a server would meet the files."""

from __future__ import annotations

import json
import os
from typing import Any

from ..errors import ExportError
from ..subprocesses import SubprocessFailed, call_in_subprocess, peak_memory
from .tolerances import MEAN_SHARE

_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1024**2), "MALLOC_ARENA_MAX": "2"}
"""For glibc: what is freed goes back to the system, not to a heap for each thread."""


def verify_in_fresh_process(
    folder: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    *,
    max_length: int | None = None,
) -> dict[str, Any]:
    """Verify a version's folder against its checkpoint; the report.

    Nothing that the exporting process holds, right or wrong, can help the files to
    pass.

    Raises:
        ExportError: it is not verified; the message says what is wrong.
    """
    allocator = {k: v for k, v in _ALLOCATOR.items() if k not in os.environ}
    try:
        report = call_in_subprocess(
            _verify,
            environment={**allocator, "TF_CPP_MIN_LOG_LEVEL": "3"},
            quiet=True,
            folder=os.fspath(folder),
            checkpoint=os.fspath(checkpoint),
            max_length=max_length,
        )
    except SubprocessFailed as error:
        raise ExportError(
            f"verifying did not end well, nothing published: {error}"
        ) from None
    if not report["ok"]:
        raise ExportError(f"not verified, nothing published: {_reasons(report)}")
    return report


def _verify(folder: str, checkpoint: str, max_length: int | None) -> dict[str, Any]:
    """What runs there."""
    from ...models.quiet import import_tensorflow
    from . import verify_export

    import_tensorflow()
    report = verify_export(folder, checkpoint=checkpoint, max_length=max_length)
    report.memory = peak_memory()
    return json.loads(report.to_json())


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

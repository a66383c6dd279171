"""Verification in a process of its own, as a server would meet the files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ...models.quiet import import_tensorflow
from ..errors import ExportError
from ..subprocesses import SubprocessFailed, call_in_subprocess, peak_memory
from . import compare_exports, verify_export
from .report import Report
from .tolerances import MEAN_SHARE

_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1024**2), "MALLOC_ARENA_MAX": "2"}
"""For glibc: what is freed goes back to the system, not to a heap for each thread."""


def verify_in_subprocess(
    export: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None,
    *,
    max_length: int | None = None,
    quiet: bool = False,
) -> Report:
    """:func:`verify_export` in a process of its own.

    A file that crashes what reads it, or takes all memory, ends that process and not
    this one.

    Raises:
        SubprocessFailed: there is no report; the message says why.
    """
    return _report_of(
        _verify,
        quiet=quiet,
        export=os.fspath(export),
        checkpoint=None if checkpoint is None else os.fspath(checkpoint),
        max_length=max_length,
    )


def compare_in_subprocess(
    export: str | os.PathLike[str],
    other: str | os.PathLike[str],
    *,
    max_length: int | None = None,
) -> Report:
    """:func:`compare_exports` in a process of its own."""
    return _report_of(
        _compare,
        quiet=False,
        export=os.fspath(export),
        other=os.fspath(other),
        max_length=max_length,
    )


def require_verified(
    folder: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    *,
    max_length: int | None = None,
) -> Report:
    """Verify a version that is about to be published.

    Nothing that the exporting process holds, right or wrong, can help the files to
    pass.

    Raises:
        ExportError: it is not verified; the message says what is wrong.
    """
    try:
        report = verify_in_subprocess(
            folder, checkpoint, max_length=max_length, quiet=True
        )
    except SubprocessFailed as error:
        raise ExportError(
            f"verifying did not end well, nothing published: {error}"
        ) from None
    if not report.ok:
        raise ExportError(f"not verified, nothing published: {_reasons(report)}")
    return report


def _report_of(
    function: Callable[..., dict[str, Any]], *, quiet: bool, **arguments: Any
) -> Report:
    environment = {k: v for k, v in _ALLOCATOR.items() if k not in os.environ}
    if quiet:
        environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    data = call_in_subprocess(
        function, environment=environment, quiet=quiet, **arguments
    )
    return Report.from_dict(data)


def _verify(
    export: str, checkpoint: str | None, max_length: int | None
) -> dict[str, Any]:
    """What runs there; TensorFlow comes once the files are what the manifest says."""
    return _finished(
        verify_export(export, checkpoint=checkpoint, max_length=max_length)
    )


def _compare(export: str, other: str, max_length: int | None) -> dict[str, Any]:
    """What runs there."""
    import_tensorflow()
    return _finished(compare_exports(export, other, max_length=max_length))


def _finished(report: Report) -> dict[str, Any]:
    report.memory = peak_memory()
    return asdict(report)


def _reasons(report: Report) -> str:
    reasons = [*report.files, *report.problems]
    reasons += [
        f"{output.signature} {output.output} is off by {output.max_error:.2g} (mean "
        f"{output.mean_error:.2g}) at {output.worst}, allowed {output.tolerance:g} "
        f"(mean {MEAN_SHARE * output.tolerance:g})"
        for output in report.outputs
        if output.tolerance is not None and not output.ok
    ]
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return "; ".join(reasons[:3]) + more

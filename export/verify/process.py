"""Verification in processes of its own, as a server would meet the files."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...models.quiet import import_tensorflow
from ..errors import ExportError
from ..subprocesses import Subprocess, SubprocessFailed, peak_memory
from . import compare_exports, judge, observe
from .observation import Observation
from .report import Report
from .tolerances import MEAN_SHARE

_ALLOCATOR = {"MALLOC_ARENA_MAX": "2"}
"""For glibc: no heap for each thread."""
_FREEING = {**_ALLOCATOR, "MALLOC_MMAP_THRESHOLD_": str(1024**2)}
"""What is freed goes back to the system as well. The source model, which frees and
takes the same sizes for each layer, would wait for cleared pages a third of its time.
"""


class Verifier:
    """Two processes: the first calls the export, then the second asks the source model.

    So one of them at a time has weights in memory. A file that crashes what reads it,
    or takes all memory, ends that process and not this one. Each imports what it needs
    while something else is done before: that is half of a small model's time.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._observer = _process(_prepare_observer, allocator=_FREEING, quiet=quiet)

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self._observer.__exit__(*_)

    def verify(
        self,
        export: str | os.PathLike[str],
        checkpoint: str | os.PathLike[str] | None,
        *,
        max_length: int | None = None,
    ) -> Report:
        """:func:`verify_export` by these processes; once.

        Raises:
            SubprocessFailed: there is no report; the message says why.
        """
        with (
            TemporaryDirectory(prefix="optserve-verify-") as folder,
            _process(_prepare_judge, allocator=_ALLOCATOR, quiet=self._quiet) as judge,
        ):
            asked = {
                "export": os.fspath(export),
                "checkpoint": None if checkpoint is None else os.fspath(checkpoint),
                "max_length": max_length,
                "folder": folder,
            }
            seen = self._observer.call(_observe, **asked)
            report = judge.call(_judge, seen=seen["observation"], **asked)
        result = Report.from_dict(report)
        result.memory = max(result.memory, seen["memory"])
        return result


def verify_in_subprocess(
    export: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None,
    *,
    max_length: int | None = None,
    quiet: bool = False,
) -> Report:
    """:func:`verify_export` in processes of its own, as :class:`Verifier` does it."""
    with Verifier(quiet=quiet) as verifier:
        return verifier.verify(export, checkpoint, max_length=max_length)


def compare_in_subprocess(
    export: str | os.PathLike[str],
    other: str | os.PathLike[str],
    *,
    max_length: int | None = None,
) -> Report:
    """:func:`compare_exports` in a process of its own."""
    with _process(import_tensorflow, allocator=_FREEING, quiet=False) as process:
        report = process.call(
            _compare,
            export=os.fspath(export),
            other=os.fspath(other),
            max_length=max_length,
        )
    return Report.from_dict(report)


def measure_text(
    report: Report,
    text: str | os.PathLike[str],
    export: str | os.PathLike[str],
    *,
    other: str | os.PathLike[str] | None,
    checkpoint: str | os.PathLike[str] | None,
) -> None:
    """Add :func:`.text_loss.text_losses` to a report, from a process of its own.

    Raises:
        SubprocessFailed: the message says why.
    """
    with _process(import_tensorflow, allocator=_FREEING, quiet=False) as process:
        losses, problems = process.call(
            _text_losses,
            text=os.fspath(text),
            export=os.fspath(export),
            other=None if other is None else os.fspath(other),
            checkpoint=None if checkpoint is None else os.fspath(checkpoint),
        )
    report.losses.update(losses)
    report.problems += problems


def require_verified(
    verifier: Verifier,
    folder: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
) -> Report:
    """Verify a version that is about to be published.

    Nothing that the exporting process holds, right or wrong, can help the files to
    pass.

    Raises:
        ExportError: it is not verified; the message says what is wrong.
    """
    try:
        report = verifier.verify(folder, checkpoint)
    except SubprocessFailed as error:
        raise ExportError(
            f"verifying did not end well, nothing published: {error}"
        ) from None
    if not report.ok:
        raise ExportError(f"not verified, nothing published: {_reasons(report)}")
    return report


def _process(
    prepare: Callable[[], None], *, allocator: Mapping[str, str], quiet: bool
) -> Subprocess:
    environment = {k: v for k, v in allocator.items() if k not in os.environ}
    if quiet:
        environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    return Subprocess(prepare, environment=environment, quiet=quiet)


def _prepare_observer() -> None:
    import_tensorflow()
    importlib.import_module("...runtime.server.servable", __package__)


def _prepare_judge() -> None:
    if importlib.util.find_spec("jax") is None:
        import_tensorflow()
    else:
        importlib.import_module("...models.flax.model", __package__)


def _observe(
    export: str, checkpoint: str | None, max_length: int | None, folder: str
) -> dict[str, Any]:
    """What runs in the first process."""
    observation = observe(export, checkpoint, max_length).save(Path(folder))
    return {"observation": observation, "memory": peak_memory()}


def _judge(
    export: str,
    checkpoint: str | None,
    max_length: int | None,
    folder: str,
    seen: dict[str, Any],
) -> dict[str, Any]:
    """What runs in the second."""
    observation = Observation.load(Path(folder), seen)
    return _finished(judge(export, observation, checkpoint, max_length))


def _compare(export: str, other: str, max_length: int | None) -> dict[str, Any]:
    """What runs there."""
    return _finished(compare_exports(export, other, max_length=max_length))


def _text_losses(
    text: str, export: str, other: str | None, checkpoint: str | None
) -> Any:
    """What runs there."""
    from .text_loss import text_losses

    import_tensorflow()
    return text_losses(
        Path(text),
        Path(export),
        other=None if other is None else Path(other),
        checkpoint=None if checkpoint is None else Path(checkpoint),
    )


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

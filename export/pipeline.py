"""Exporting as a build step: write, verify, publish, and say what each part took."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ..models.checkpoints import resolve
from ..runtime.printable import sentence
from .checkpoint import Checkpoint
from .full_disk import check_room, full_disk_explained
from .options import ExportOptions
from .publish import Progress, check_version, staging
from .subprocesses import call_in_subprocess, peak_memory
from .verify.process import Verifier, require_verified
from .verify.report import Report


@dataclass
class PhaseClock:
    """Says what an export is at, and keeps how long each part of it took.

    ``print_to`` is where each message goes as it comes; nowhere if None.
    """

    print_to: TextIO | None = None
    _started: float = field(default_factory=time.monotonic)
    _begun: list[tuple[str, float]] = field(default_factory=list)

    def __call__(self, message: str) -> None:
        self._begun.append((message, self.seconds()))
        if self.print_to is not None:
            line = f"[{self.seconds():6.1f} s] {sentence(message)}"
            print(line, file=self.print_to)

    def seconds(self) -> float:
        """Since the beginning."""
        return round(time.monotonic() - self._started, 3)

    def phases(self) -> list[dict[str, Any]]:
        """Each part and its seconds."""
        ends = [begin for _, begin in self._begun[1:]] + [self.seconds()]
        return [
            {"phase": name, "seconds": round(end - begin, 3)}
            for (name, begin), end in zip(self._begun, ends, strict=True)
        ]


@dataclass(frozen=True)
class _Written:
    phases: list[dict[str, Any]]
    memory: dict[str, int]


@dataclass(frozen=True)
class Exported:
    """A published version, and what making it took.

    ``phases`` have names and seconds, ``memory`` the peak of each process in bytes;
    ``verification`` is the report, None if it was not verified.
    """

    path: Path
    phases: list[dict[str, Any]]
    memory: dict[str, int]
    verification: dict[str, Any] | None


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    version: int | None = None,
    revision: str | None = None,
    verify: bool = True,
    clock: PhaseClock | None = None,
) -> Exported:
    """Publish ``OUT/VERSION``, which appears whole or not at all.

    Args:
        checkpoint: a directory in Hugging Face's layout, or a hub id.
        out: the model's base folder; created if needed.
        options: the choices; the defaults if None.
        version: the folder's number; the next free one if None.
        revision: of a hub checkpoint.
        verify: write and verify, each in a process of its own, so that one of them at a
            time is in memory. Without, write in this process.
        clock: says what the export is at, and how long it took.

    Raises:
        ExportError: options that the model excludes, a version that exists, or numbers
            that are not the checkpoint's; nothing was published.
    """
    options, clock = options or ExportOptions(), clock or PhaseClock()
    if verify and options.target == "tflite":
        from .verify.tflite_runner import require_litert

        require_litert()
    check_version(out, version)
    source = resolve(checkpoint, revision=revision)
    check_room(out, Checkpoint.open(source).config, options)
    with staging(out, version) as staged:
        if verify:
            written, report = _write_and_verify(staged.folder, source, options, clock)
        else:
            write_version(staged.folder, source, options, progress=clock)
            written, report = _Written([], {"export": peak_memory()}), None
    if report is not None:
        report.export = staged.published.name  # it had no number yet
        written.memory["verify"] = report.memory
    return Exported(
        staged.published,
        written.phases + clock.phases(),
        written.memory,
        None if report is None else report.to_dict(),
    )


def write_version(
    folder: Path,
    checkpoint: str | os.PathLike[str],
    options: ExportOptions,
    *,
    progress: Progress,
) -> None:
    """Write a version's files into an empty folder, for either target."""
    from ..models.quiet import import_tensorflow

    import_tensorflow()
    from .savedmodel.exporter import write_savedmodel
    from .tflite.exporter import write_tflite

    write = {"savedmodel": write_savedmodel, "tflite": write_tflite}[options.target]
    write(folder, checkpoint, options, progress=progress)


def _write_and_verify(
    folder: Path, checkpoint: Path, options: ExportOptions, clock: PhaseClock
) -> tuple[_Written, Report]:
    with Verifier(quiet=True) as verifier:
        written = call_in_subprocess(
            _write_in_subprocess,
            folder=str(folder),
            checkpoint=str(checkpoint),
            options=options.to_dict(),
        )
        clock("verifying every signature in processes of its own")
        return _Written(**written), require_verified(verifier, folder, checkpoint)


def _write_in_subprocess(
    folder: str, checkpoint: str, options: dict[str, Any]
) -> dict[str, Any]:
    clock = PhaseClock(print_to=sys.stderr)
    chosen = ExportOptions.from_dict(options)
    with full_disk_explained(folder):
        write_version(Path(folder), checkpoint, chosen, progress=clock)
    return {"phases": clock.phases(), "memory": {"export": peak_memory()}}

"""Is an export what it should be? Its files, and every signature's numbers.

    report = verify_export("OUT/1", checkpoint="models/opt-125m")
    report = compare_exports("OUT-INT8/1", "OUT-FLOAT32/1")

The export is loaded and called as a server would call it; the source model answers the
same questions in float32, in the other framework where it is installed, one layer in
memory at a time. Importing this package brings neither TensorFlow nor JAX.
"""

from __future__ import annotations

import time
from pathlib import Path

from ..digest import check_files, export_digest
from ..errors import ExportError
from ..layout import read_manifest, version_folder
from .plan import make_plan
from .report import Report, measure, tolerance

__all__ = ["Report", "compare_exports", "verify_export"]


def verify_export(
    export: str | Path,
    *,
    checkpoint: str | Path | None = None,
    max_length: int | None = None,
) -> Report:
    """Check a version's files and, given its checkpoint, its numbers.

    Args:
        export: a version's folder, or a base folder (its newest version).
        checkpoint: the local directory that it was exported from.
        max_length: longest sequence tried; the model's positions if None.

    A TFLite export's files are checked alone.

    Raises:
        LayoutError: not an export.
    """
    begin = time.monotonic()
    folder = version_folder(export)
    manifest = read_manifest(folder)
    problems = check_files(folder, manifest)
    report = Report(
        export=folder.name,
        digest=export_digest(manifest),
        made_of=manifest.checkpoint_digest,
        kind=describe_kind(manifest),
        files=problems,
    )
    servable = (folder / "saved_model.pb").is_file()
    if not servable:
        report.notes.append("not a SavedModel: its files were checked, not its numbers")
    if problems or not servable:
        # What is not the export that was written is not worth calling.
        report.seconds = time.monotonic() - begin
        return report
    from .subject import ExportedModel

    plan = make_plan(manifest, max_length=max_length)
    subject = ExportedModel(folder, manifest)
    observed = subject.observe(plan)
    report.problems += subject.problems
    report.seen(plan, observed)
    del subject  # its weights go before the source model comes
    if checkpoint is not None:
        from .reference import SourceModel

        source = SourceModel(checkpoint, other_than=manifest.framework)
        expected = source.answer(plan, observed)
        report.against = f"its checkpoint, float32, {source.framework}"
        allowed = tolerance(manifest.weights_dtype, manifest.cache_dtype)
        report.outputs = measure(plan, observed, expected, allowed)
    report.seconds = time.monotonic() - begin
    return report


def compare_exports(
    export: str | Path, other: str | Path, *, max_length: int | None = None
) -> Report:
    """Call two exports of one model with the same questions and compare the answers.

    Questions fit the first one's buckets. Signatures that one of them lacks are left
    out.

    Raises:
        ExportError: one of them is not a SavedModel of this project.
    """
    from .subject import ExportedModel

    begin = time.monotonic()
    folder, other_folder = version_folder(export), version_folder(other)
    manifest, other_manifest = read_manifest(folder), read_manifest(other_folder)
    plan = make_plan(manifest, other_manifest, max_length=max_length)
    observed, expected = [], []
    problems = []
    for path in (folder, other_folder):
        if not (path / "saved_model.pb").is_file():
            raise ExportError(f"{path} is not a SavedModel: only those are compared")
    for path, its, answers in (
        (folder, manifest, observed),
        (other_folder, other_manifest, expected),
    ):
        subject = ExportedModel(path, its)
        answers += subject.observe(plan)
        problems += subject.problems
        del subject
    report = Report(
        export=folder.name,
        digest=export_digest(manifest),
        made_of=manifest.checkpoint_digest,
        kind=describe_kind(manifest),
        against=f"{other_folder.name}, {describe_kind(other_manifest)}",
        problems=problems,
    )
    if manifest.checkpoint_digest != other_manifest.checkpoint_digest:
        report.notes.append("the two were exported from different checkpoints")
    allowed = tolerance(
        manifest.weights_dtype,
        manifest.cache_dtype,
        other_manifest.weights_dtype,
        other_manifest.cache_dtype,
    )
    report.seen(plan, observed)
    report.outputs = measure(plan, observed, expected, allowed)
    report.seconds = time.monotonic() - begin
    return report


def describe_kind(manifest) -> str:
    """A few words: framework, compiler, weights and cache."""
    return (
        f"{manifest.framework}/{manifest.compiler}, {manifest.weights_dtype} weights, "
        f"{manifest.cache_dtype} cache"
    )

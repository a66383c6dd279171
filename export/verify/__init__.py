"""Is an export what it should be? Its files, and every signature's numbers.

    report = verify_export("OUT/1", checkpoint="models/opt-125m")
    report = compare_exports("OUT-INT8/1", "OUT-FLOAT32/1")

The export is loaded and called as a server (or, for a TFLite file, a device) would call
it. The source model answers the same questions in float32, in the other framework where
it is installed, one layer in memory at a time: with its weights as they are, and
rounded as the export's are, which leaves little room for a mistake whatever the type.
Importing this package brings neither TensorFlow nor JAX.
"""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.contract import Manifest
from ...runtime.model_dir import (
    MANIFEST_PATH,
    TFLITE_FILE,
    changed_files,
    manifest_digest,
    read_manifest,
    version_folder,
)
from ..errors import ExportError
from .plan import Plan, make_plan
from .report import Report, measure
from .tolerances import tolerance

__all__ = ["Report", "compare_exports", "verify_export"]


def verify_export(
    export: str | Path,
    *,
    checkpoint: str | Path | None = None,
    max_length: int | None = None,
) -> Report:
    """Check a version's files and, given its checkpoint, its numbers.

    Args:
        export: a version's folder, a base folder (its newest version), or a
            ``.tflite`` file.
        checkpoint: the local directory that it was exported from.
        max_length: longest sequence tried; if None the model's positions, or as many
            as :data:`~.plan.MOST_CACHE` holds.

    Raises:
        ModelDirError: not an export.
        ExportError: a TFLite file without LiteRT to run it.
    """
    begin = time.monotonic()
    found = _Export.at(export)
    manifest = found.manifest
    report = found.report()
    if found.alone:
        report.notes.append("a file by itself: nothing vouches for its bytes")
    else:
        report.files = changed_files(found.folder, manifest)
    if report.files:
        # What is not the export that was written is not worth calling.
        report.seconds = time.monotonic() - begin
        return report
    plan = found.plan(max_length=max_length)
    report.notes += plan.notes
    subject = found.open()
    source = None
    if checkpoint is not None:
        from .reference import SourceModel

        source = SourceModel(checkpoint, other_than=manifest.framework)
    with ThreadPoolExecutor(1) as aside:  # while graphs are made ready
        wrong = aside.submit(_wrong_weights, found, source)
        observed = subject.observe(plan)
    report.problems += subject.problems + wrong.result()
    report.seen(plan, observed)
    if source is not None:
        subject.close()  # its weights go before the source model's come
        subject = None
        gc.collect()
        report.against = f"its checkpoint, computed in float32 by {source.framework}"
        for dtype in dict.fromkeys(("float32", manifest.weights_dtype)):
            source.rounding = found.rounding(source.config, dtype)
            expected = source.answer(plan, observed)
            allowed = tolerance(manifest, source=dtype, edge=found.file is not None)
            report.outputs += measure(plan, observed, expected, allowed, dtype)
            del expected  # before the next
    report.seconds = time.monotonic() - begin
    return report


def _wrong_weights(found: _Export, source: Any) -> list[str]:
    if source is None or found.file is not None:
        return []
    from .weights import StoredWeights, wrong_weights

    dtype = found.manifest.weights_dtype
    stored = StoredWeights(found.folder)
    return wrong_weights(stored, source.config, source.weights, dtype)


def compare_exports(
    export: str | Path, other: str | Path, *, max_length: int | None = None
) -> Report:
    """Call two exports of one model with the same questions and compare the answers.

    Questions fit the first one's buckets. Signatures that one of them lacks are left
    out.

    Raises:
        ExportError: one of them is a SavedModel and the other a TFLite file.
    """
    begin = time.monotonic()
    pair = [_Export.at(export), _Export.at(other)]
    first, second = pair
    if (first.file is None) != (second.file is None):
        raise ExportError(
            f"{first.folder} and {second.folder} are a SavedModel and a TFLite file: "
            "compare two of a kind, or each with its checkpoint"
        )
    plan = first.plan(second.manifest, max_length=max_length)
    report = first.report()
    report.notes += plan.notes
    report.against = f"{second.folder.name}, {describe_kind(second.manifest)}"
    answers = []
    for found in pair:
        subject = found.open()
        answers.append(subject.observe(plan))
        report.problems += subject.problems
        subject.close()
        del subject
        gc.collect()
    if first.manifest.checkpoint_digest != second.manifest.checkpoint_digest:
        report.notes.append("the two were exported from different checkpoints")
    edge = first.file is not None
    allowed = sum(tolerance(found.manifest, edge=edge) for found in pair)
    report.seen(plan, answers[0])
    report.outputs = measure(plan, answers[0], answers[1], allowed)
    report.seconds = time.monotonic() - begin
    return report


@dataclass(frozen=True)
class _Export:
    """What a path means. ``file`` is a TFLite model's, ``alone`` if nothing else is
    there."""

    folder: Path
    manifest: Manifest
    file: Path | None
    alone: bool = False

    @classmethod
    def at(cls, path: str | Path) -> _Export:
        path = Path(path)
        if path.is_file():
            return cls._of_file(path)
        folder = version_folder(path)
        manifest, file = read_manifest(folder), folder / TFLITE_FILE
        if not file.is_file():
            return cls(folder, manifest, None)
        if not manifest.cache_buckets:
            raise ExportError(f"{folder}: its manifest is not a TFLite export's")
        return cls(folder, manifest, file)

    @classmethod
    def _of_file(cls, path: Path) -> _Export:
        if path.name == TFLITE_FILE and (path.parent / MANIFEST_PATH).is_file():
            return cls.at(path.parent)
        # What a device reads it with.
        from ...runtime.errors import OptserveError
        from ...runtime.transports.litert_file import read_manifest as manifest_inside

        try:
            return cls(path.parent, manifest_inside(path), path, alone=True)
        except OptserveError as error:
            raise ExportError(str(error)) from None

    def plan(self, *others: Manifest, max_length: int | None) -> Plan:
        if self.file is None:
            return make_plan(self.manifest, *others, max_length=max_length)
        from .edge import make_edge_plan

        return make_edge_plan(self.manifest, *others, max_length=max_length)

    def open(self) -> Any:
        """The model, loaded: an ``ExportedModel`` or an ``EdgeModel``."""
        if self.file is not None:
            from .edge import EdgeModel

            return EdgeModel(self.file, self.manifest)
        from .subject import ExportedModel

        return ExportedModel(self.folder, self.manifest)

    def rounding(self, config: Any, dtype: str) -> Any:
        from .rounding import savedmodel_rounding, tflite_rounding

        if self.file is None:
            return savedmodel_rounding(config, dtype)
        return tflite_rounding(dtype)

    def report(self) -> Report:
        return Report(
            export=self.folder.name,
            digest=manifest_digest(self.manifest),
            made_of=self.manifest.checkpoint_digest,
            kind=describe_kind(self.manifest),
        )


def describe_kind(manifest: Manifest) -> str:
    """A few words: framework, compiler, weights and cache."""
    return (
        f"{manifest.framework}/{manifest.compiler}, {manifest.weights_dtype} weights, "
        f"{manifest.cache_dtype} cache"
    )

"""Is an export what it should be? Its files, and every signature's numbers.

    report = verify_export("OUT/1", checkpoint="models/opt-125m")
    report = compare_exports("OUT-INT8/1", "OUT-FLOAT32/1")

The export is loaded and called as a server (or, for a TFLite file, a device) would call
it. The source model answers the same test cases in float32, in the framework that did
not compute them where it is installed, one layer in memory at a time: with its weights
as they are, and rounded as the export's are, which leaves little room for a mistake
whatever the type. Importing this package brings neither TensorFlow nor JAX.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path

from ...models.quiet import import_tensorflow
from ...runtime.model_dir import changed_files
from ..errors import ExportError
from .answers import Answer
from .export_under_test import ExportUnderTest, describe_kind
from .observation import Observation
from .plan import Plan
from .report import Report, measure, merged
from .source_model import SourceModel, judges_of, open_checkpoint
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
    seen = observe(export, checkpoint, max_length)
    return judge(export, seen, checkpoint, max_length)


def observe(
    export: str | Path, checkpoint: str | Path | None, max_length: int | None
) -> Observation:
    """Whether the export's weights are the checkpoint's, and what it answers; nothing
    if its files were changed since the export.

    Raises:
        ModelDirError: not an export.
        ExportError: a TFLite file without LiteRT to run it.
    """
    begin = time.monotonic()
    under_test = ExportUnderTest.at(export)
    seen = Observation()
    if not under_test.alone:
        seen.files = changed_files(under_test.folder, under_test.manifest)
    if not seen.files:  # files that were changed since the export aren't worth calling
        import_tensorflow()
        if checkpoint is not None:
            seen.problems = _wrong_weights(under_test, checkpoint)
        runner = under_test.runner()
        seen.answers = runner.run(under_test.plan(max_length=max_length))
        seen.problems += runner.problems
        runner.close()  # its weights go before the source model's come
        del runner
        gc.collect()
    seen.seconds = time.monotonic() - begin
    return seen


def judge(
    export: str | Path,
    seen: Observation,
    checkpoint: str | Path | None,
    max_length: int | None,
) -> Report:
    """Compare what was observed with the checkpoint's own answers."""
    begin = time.monotonic()
    under_test = ExportUnderTest.at(export)
    manifest = under_test.manifest
    report = under_test.report()
    report.files, report.problems = seen.files, list(seen.problems)
    if under_test.alone:
        report.notes.append("a file by itself: nothing vouches for its bytes")
    if not report.files:
        plan = under_test.plan(max_length=max_length)
        report.notes += plan.notes
        report.seen(plan, seen.answers)
        if checkpoint is not None:
            judges = [judges_of(case, manifest) for case in plan.cases]
            names = dict.fromkeys(name for some in judges for name in some)
            sources = [SourceModel(checkpoint, name) for name in names]
            frameworks = " and ".join(source.framework for source in sources)
            report.against = f"its checkpoint, computed in float32 by {frameworks}"
            for source in sources:
                mine = [
                    answer if source.framework in some else None
                    for answer, some in zip(seen.answers, judges, strict=True)
                ]
                _compare(report, plan, under_test, source, mine)
            report.outputs = merged(report.outputs)
    report.seconds = seen.seconds + time.monotonic() - begin
    return report


def _compare(
    report: Report,
    plan: Plan,
    under_test: ExportUnderTest,
    source: SourceModel,
    observed: list[Answer | None],
) -> None:
    manifest = under_test.manifest
    for dtype in dict.fromkeys(("float32", manifest.weights_dtype)):
        if dtype != "float32":  # rounded as they are stored
            source.weights = under_test.stored_weights(source.config, source.weights)
        source.rounding = under_test.rounding(source.config, dtype)
        expected = source.answer(plan, observed)
        is_file = under_test.file is not None
        allowed = tolerance(manifest, source=dtype, edge=is_file)
        report.outputs += measure(plan, observed, expected, allowed, dtype)
        del expected  # before the next


def _wrong_weights(under_test: ExportUnderTest, checkpoint: str | Path) -> list[str]:
    if under_test.file is not None:
        return []
    from .weights import StoredWeights, wrong_weights

    dtype = under_test.manifest.weights_dtype
    stored = StoredWeights(under_test.folder)
    config, weights = open_checkpoint(checkpoint)
    weights = under_test.stored_weights(config, weights)
    return wrong_weights(stored, config, weights, dtype)


def compare_exports(
    export: str | Path, other: str | Path, *, max_length: int | None = None
) -> Report:
    """Call two exports of one model with the same test cases and compare the answers.

    The test cases fit the first one's buckets. Signatures that one of them lacks are
    left out.

    Raises:
        ModelDirError: one of them is not an export.
        ExportError: one of them is a SavedModel and the other a TFLite file.
    """
    begin = time.monotonic()
    pair = [ExportUnderTest.at(export), ExportUnderTest.at(other)]
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
    for under_test in pair:
        runner = under_test.runner()
        answers.append(runner.run(plan))
        report.problems += runner.problems
        runner.close()
        del runner
        gc.collect()
    if first.manifest.checkpoint_digest != second.manifest.checkpoint_digest:
        report.notes.append("the two were exported from different checkpoints")
    edge = first.file is not None
    allowed = sum(tolerance(under_test.manifest, edge=edge) for under_test in pair)
    report.seen(plan, answers[0])
    report.outputs = measure(plan, answers[0], answers[1], allowed)
    report.seconds = time.monotonic() - begin
    return report

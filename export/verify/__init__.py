"""Is an export what it should be? Its files, and every signature's numbers.

    report = verify_export("OUT/1", checkpoint="models/opt-125m")
    report = compare_exports("OUT-INT8/1", "OUT-FLOAT32/1")

The export is loaded and called as a server (or, for a TFLite file, a device) would call
it. The source model answers the same test cases in float32, in the other framework
where it is installed, one layer in memory at a time: with its weights as they are, and
rounded as the export's are, which leaves little room for a mistake whatever the type.
Importing this package brings neither TensorFlow nor JAX.
"""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...models.quiet import import_tensorflow
from ...runtime.model_dir import changed_files
from ..errors import ExportError
from .export_under_test import ExportUnderTest, describe_kind
from .report import Report, measure
from .source_model import SourceModel
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
    under_test = ExportUnderTest.at(export)
    manifest = under_test.manifest
    report = under_test.report()
    if under_test.alone:
        report.notes.append("a file by itself: nothing vouches for its bytes")
    else:
        report.files = changed_files(under_test.folder, manifest)
    if report.files:
        # Files that were changed since the export are not worth calling.
        report.seconds = time.monotonic() - begin
        return report
    import_tensorflow()
    plan = under_test.plan(max_length=max_length)
    report.notes += plan.notes
    source = None
    if checkpoint is not None:
        source = SourceModel(checkpoint, other_than=manifest.framework)
    runner = under_test.runner()
    with ThreadPoolExecutor(1) as aside:  # while graphs are made ready
        wrong = aside.submit(_wrong_weights, under_test, source)
        observed = runner.run(plan)
    report.problems += runner.problems + wrong.result()
    report.seen(plan, observed)
    runner.close()  # its weights go before the source model's come
    del runner
    gc.collect()
    if source is not None:
        report.against = f"its checkpoint, computed in float32 by {source.framework}"
        for dtype in dict.fromkeys(("float32", manifest.weights_dtype)):
            source.rounding = under_test.rounding(source.config, dtype)
            expected = source.answer(plan, observed)
            is_file = under_test.file is not None
            allowed = tolerance(manifest, source=dtype, edge=is_file)
            report.outputs += measure(plan, observed, expected, allowed, dtype)
            del expected  # before the next
    report.seconds = time.monotonic() - begin
    return report


def _wrong_weights(
    under_test: ExportUnderTest, source: SourceModel | None
) -> list[str]:
    if source is None or under_test.file is not None:
        return []
    from .weights import StoredWeights, wrong_weights

    dtype = under_test.manifest.weights_dtype
    stored = StoredWeights(under_test.folder)
    return wrong_weights(stored, source.config, source.weights, dtype)


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

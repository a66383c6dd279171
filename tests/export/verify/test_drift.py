"""Reports against an earlier one: what drifted, and what cannot be a baseline."""

from __future__ import annotations

import json
import os

import pytest
from optserve.export.errors import ExportError
from optserve.export.verify.drift import drift, read_baseline
from optserve.export.verify.report import Output, Report
from optserve.runtime.cli import main


def report(**more) -> Report:
    return Report(export="1", digest="", made_of="", kind="", **more)


def output(mean_error: float) -> Output:
    return Output(
        signature="decode",
        output="logits",
        cases=1,
        max_error=mean_error,
        mean_error=mean_error,
        tolerance=1.0,
        agreement=None,
        worst="",
    )


@pytest.fixture
def baseline_of(tmp_path):
    def write(report: Report) -> dict:
        path = tmp_path / "baseline.json"
        path.write_text(report.to_json())
        return read_baseline(path)

    return write


def test_a_report_there_and_back():
    whole = report(outputs=[output(0.1)], scores={"a": 1.0}, notes=["x"])
    data = json.loads(whole.to_json())
    assert data.pop("ok") is True and data.pop("greedy_agreement") is None
    assert Report.from_dict(data) == whole


def test_scores_and_errors_that_drift_are_named(baseline_of):
    before = baseline_of(
        report(scores={"a": -2.0, "gone": -1.0}, outputs=[output(0.1)])
    )
    same = report(scores={"a": -2.01, "new": -5.0}, outputs=[output(0.12)])
    assert drift(same, before, 0.05) == []
    (sentence,) = drift(report(scores={"a": -2.2}), before, 0.05)
    assert "-2.2" in sentence and "-2.0" in sentence
    (sentence,) = drift(report(outputs=[output(0.2)]), before, 0.05)
    assert "decode logits" in sentence
    assert len(drift(report(scores={"a": float("nan")}), before, 0.05)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"scores": 1, "outputs": []}',
        '{"scores": {"a": "x"}, "outputs": []}',
        '{"scores": {}, "outputs": [1]}',
        '{"scores": {}, "outputs": [{"mean_error": []}]}',
        "[" * 100_000,
    ],
)
def test_a_baseline_must_be_a_report(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ExportError, match="not a report"):
        read_baseline(path)


def test_a_baseline_that_is_not_finite_would_let_everything_pass(tmp_path):
    path = tmp_path / "baseline.json"
    for wrong in (report(scores={"a": float("nan")}), report(outputs=[output(1e999)])):
        for text in (wrong.to_json(), json.dumps(wrong.to_dict())):
            path.write_text(text)
            with pytest.raises(ExportError, match="not finite"):
                read_baseline(path)


def test_a_pipe_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    arguments = ["verify", str(tmp_path), "--baseline", str(tmp_path / "pipe")]
    assert main(arguments) == 1
    assert "pipe: is not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("allowed", ["nan", "inf", "-1"])
def test_a_drift_that_nothing_exceeds_is_refused(tmp_path, capsys, allowed):
    assert main(["verify", str(tmp_path), "--max-drift", allowed]) == 1
    assert "--max-drift should be 0 or more" in capsys.readouterr().err

"""Figures against numpy, and through a file."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from .figures import LoadFigure, Run, percentile


@pytest.mark.parametrize("percent", [1, 50, 99, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 100, 101])
def test_percentiles_are_numpys(count, percent):
    values = np.random.default_rng(count).random(count)
    theirs = np.percentile(values, percent, method="inverted_cdf")
    assert percentile(values.tolist(), percent) == theirs


def test_a_step_is_what_is_left_without_the_first_token(run):
    figure = run.decode[1]
    assert figure.first_ms == pytest.approx(200)
    assert figure.step_ms == pytest.approx(10)
    assert figure.tokens_per_second == pytest.approx(800)


def test_gaps_are_between_one_callers_tokens():
    figure = LoadFigure("e", 2, 3)
    figure.add(2.0, [[0.5, 0.6, 0.8], [1.0, 1.0, 1.5]])
    assert figure.tokens_per_second == [3.0]
    assert (figure.first_p50, figure.first_p99) == ([0.5], [1.0])
    assert figure.gap_p50 == pytest.approx([0.1])
    assert figure.gap_p99 == pytest.approx([0.5])


def test_a_run_survives_its_file(run, tmp_path):
    run.save(tmp_path / "run.json")
    assert Run.read(tmp_path / "run.json") == run


@pytest.mark.parametrize(
    "change", [{"commit": "other"}, {"preset": "350m"}, {"machine": {"cpu": "B"}}]
)
def test_only_figures_of_one_machine_and_commit_are_joined(run, change):
    with pytest.raises(ValueError, match="these are two"):
        run.joined(dataclasses.replace(run, **change))
    assert len(run.joined(run).processes) == 2

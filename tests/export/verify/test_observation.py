"""Observations go from one process to another unchanged."""

from __future__ import annotations

import json

import numpy as np
from optserve.export.verify.observation import Observation


def test_there_and_back(tmp_path):
    rows = [
        {"logits": np.float32([[1.5, -2]]), "tokens": np.int32([3])},
        {"logits": np.zeros((0, 2), np.float32), "tokens": np.int32([])},
    ]
    seen = Observation([], ["decode: wrong"], [rows, None, [{}], []], 2.5)
    data = json.loads(json.dumps(seen.save(tmp_path)))
    got = Observation.load(tmp_path, data)
    assert (got.files, got.problems, got.seconds) == ([], ["decode: wrong"], 2.5)
    assert got.answers[1:] == [None, [{}], []]
    answer = got.answers[0]
    assert answer is not None
    for expected, actual in zip(rows, answer, strict=True):
        assert expected.keys() == actual.keys()
        for name, value in expected.items():
            assert actual[name].dtype == value.dtype
            np.testing.assert_array_equal(actual[name], value)


def test_changed_files_have_no_answers(tmp_path):
    seen = Observation(["saved_model.pb has been changed"])
    assert Observation.load(tmp_path, seen.save(tmp_path)) == seen

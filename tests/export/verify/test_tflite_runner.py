"""`optserve verify` on TFLite exports: right ones pass, wrong ones don't."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from optserve.export.errors import ExportError
from optserve.export.options import ExportOptions
from optserve.export.tflite import weights as tflite_weights
from optserve.export.verify import compare_exports, tflite_runner, verify_export
from optserve.runtime.cli import main
from optserve.runtime.model_dir import read_manifest

from tests.export.exports import converting_once, export_to, exported_for_edge

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "pre_ln"
SIZES = {"prompt_buckets": [16], "cache_size": 24}


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    return {
        weights: exported_for_edge("pre_ln", weights=weights)
        for weights in ("float32", "float16", "int8", "int4")
    }


@pytest.mark.parametrize("weights", ["float32", "float16", "int8", "int4"])
def test_a_right_file_passes(folders, weights):
    report = verify_export(folders[weights], checkpoint=GOLDEN)
    assert report.ok, (report.files, report.problems, report.outputs)
    judged = {(o.signature, o.output, o.source) for o in report.outputs}
    for source in {"float32", weights}:
        for name in ("decode", "prefill_16"):
            assert {(name, o, source) for o in ("logits", "new_cache")} <= judged
    assert min(o.cases for o in report.outputs) >= 3


def test_a_cache_is_tried_empty_and_full(folders):
    plan = tflite_runner.make_tflite_plan(
        read_manifest(folders["float32"]), max_length=None
    )
    asked = {(c.signature, r.past, r.new) for c in plan.cases for r in c.rows}
    assert {("decode", 0, 1), ("decode", 24, 1)} <= asked
    assert {("prefill_16", 0, 1), ("prefill_16", 0, 7), ("prefill_16", 0, 16)} <= asked
    assert ("prefill_16", 22, 3) in asked


@pytest.mark.usefixtures("in_this_process")
def test_a_file_by_itself(folders, tmp_path, capsys):
    path = shutil.copy(folders["int8"] / "model.tflite", tmp_path / "model.tflite")
    assert main(["verify", str(path), "--checkpoint", str(GOLDEN)]) == 0
    assert "nothing vouches for its bytes" in capsys.readouterr().out
    (tmp_path / "model.tflite").write_bytes(b"no model")
    assert main(["verify", str(path)]) == 1
    assert "is not a TFLite model" in capsys.readouterr().err


def test_a_changed_file_is_caught(folders, tmp_path):
    folder = shutil.copytree(folders["float32"], tmp_path / "1")
    data = bytearray((folder / "model.tflite").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.tflite").write_bytes(data)
    (problem,) = verify_export(folder, checkpoint=GOLDEN).files
    assert problem.startswith("model.tflite has been changed")


@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
def test_a_wrong_matrix_is_caught(tmp_path, monkeypatch, weights):
    """All numbers of one matrix 20 % too large, the file's digests right."""
    right = tflite_weights.constants

    def changed(config, stored, dtype):
        weights = {name: np.array(stored[name]) for name in stored}
        weights["decoder.layers.1.fc2.weight"] *= np.float32(1.2)
        return right(config, weights, dtype)

    monkeypatch.setattr(tflite_weights, "constants", changed)
    folder = export_to(
        tmp_path, GOLDEN, ExportOptions(target="tflite", weights=weights, **SIZES)
    )
    report = verify_export(folder, checkpoint=GOLDEN)
    assert not report.files and not report.problems
    assert not report.ok


def test_two_files_compare_and_two_kinds_do_not(folders, tmp_path):
    report = compare_exports(folders["int8"], folders["float32"])
    assert report.ok and report.agreement is not None
    savedmodel = tmp_path / "1"
    shutil.copytree(folders["float32"], savedmodel)
    (savedmodel / "model.tflite").rename(savedmodel / "saved_model.pb")
    with pytest.raises(ExportError, match="two of a kind"):
        compare_exports(folders["float32"], savedmodel)


@pytest.mark.usefixtures("in_this_process")
def test_the_command_verifies_before_it_publishes(tmp_path, capsys):
    asked = ["export", str(GOLDEN), str(tmp_path / "out"), "--target", "tflite"]
    asked += ["--weights", "int8", "--cache-size", "24", "--prompt-buckets", "16"]
    assert main([*asked, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    with converting_once():
        assert main([*asked, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["verification"]["ok"] and printed["verification"]["outputs"]
    assert planned["path"] == printed["path"]
    graphs = 120_000  # what is not weights
    assert planned["artefact"] < printed["bytes"] < planned["artefact"] + graphs
    assert set(planned["signatures"]) == {"decode", "prefill_16"}


def test_without_litert_nothing_is_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert.interpreter", None)
    out = tmp_path / "out"
    assert main(["export", str(GOLDEN), str(out), "--target", "tflite"]) == 1
    assert "optserve[edge]" in capsys.readouterr().err
    assert not out.exists()

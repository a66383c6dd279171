"""`optserve verify` on real exports: right ones pass, wrong ones don't."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from optserve.export.errors import ExportError
from optserve.export.options import ExportOptions
from optserve.export.smoothing import Smoothing
from optserve.export.verify import compare_exports, observe, verify_export
from optserve.export.verify.export_under_test import ExportUnderTest
from optserve.export.verify.report import show
from optserve.export.verify.weights import StoredWeights
from optserve.export.weights import packed_weights
from optserve.models.checkpoints import open_weights, save_weights
from optserve.models.config import OPTConfig
from optserve.models.examples.random_checkpoint import write_random_checkpoint
from optserve.models.flax import model as flax_model
from optserve.runtime.cli import main
from optserve.runtime.model_dir import MANIFEST_PATH, folder_digests, read_manifest
from rich.console import Console

from tests.export.exports import export_only, export_to

CONFIG = OPTConfig(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    ffn_dim=64,
    num_attention_heads=2,
    max_position_embeddings=40,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), CONFIG)


@pytest.fixture(scope="module")
def export(checkpoint, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    return export_to(out, checkpoint, ExportOptions(generate=[2]))


@pytest.fixture(scope="module")
def int8(checkpoint, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("int8")
    options = ExportOptions(weights="int8", cache="int8", generate=[])
    return export_to(out, checkpoint, options)


@pytest.fixture(scope="module")
def bfloat16(checkpoint, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bfloat16")
    return export_to(out, checkpoint, ExportOptions(weights="bfloat16", generate=[]))


def test_a_right_export_passes(export, checkpoint):
    report = verify_export(export.parent, checkpoint=checkpoint)
    assert report.ok, (report.files, report.problems)
    judged = {o.signature for o in report.outputs}
    expected = {"serving_default", "prefill", "decode", "generate_2", "score", "embed"}
    assert judged == expected
    assert report.greedy
    assert max(o.max_error for o in report.outputs) < 1e-4
    assert report.agreement == 1.0
    assert report.scores


def test_a_compiled_loop_is_not_judged_by_the_code_that_it_is_made_of(
    checkpoint, tmp_path, monkeypatch
):
    """It is JAX's in an export of TensorFlow, too; and so a mistake there is seen."""
    right = flax_model.activation
    monkeypatch.setattr(flax_model, "activation", lambda *x: 1.2 * right(*x))
    options = ExportOptions(compiler="xla", batch_sizes=[2], generate=[2])
    folder = export_only(tmp_path, checkpoint, options, ("prefill", "generate_2"))
    report = verify_export(folder, checkpoint=checkpoint, max_length=4)
    wrong = {output.signature for output in report.outputs if not output.ok}
    assert "generate_2" in wrong
    assert report.against.endswith("by jax and tf")


@pytest.mark.parametrize(
    ("dtype", "folder"),
    [("float32", "export"), ("bfloat16", "bfloat16"), ("int8", "int8")],
)
def test_stored_weights_are_read_from_the_files(dtype, folder, checkpoint, request):
    stored = StoredWeights(request.getfixturevalue(folder))
    expected = dict(packed_weights(CONFIG, open_weights(checkpoint), dtype))
    assert stored.keys() == expected.keys()
    for name, array in expected.items():
        assert stored[name].dtype == array.dtype
        np.testing.assert_array_equal(stored[name], array)


def test_one_changed_weight_is_seen(export, checkpoint, tmp_path):
    weights = {name: np.array(w) for name, w in open_weights(checkpoint).items()}
    weights["decoder.layers.1.self_attn.v_proj.bias"][3] += 0.05
    CONFIG.save_pretrained(tmp_path)
    save_weights(tmp_path, weights.items())
    report = verify_export(export, checkpoint=tmp_path, max_length=6)
    assert not report.ok
    wrong = {o.signature for o in report.outputs if not o.ok}
    assert {"prefill", "decode", "serving_default"} <= wrong


def test_int4_weights_with_sessions(checkpoint, tmp_path):
    options = ExportOptions(
        framework="jax",
        weights="int4",
        sessions=2,
        batch_sizes=[2],
        prompt_buckets=[8],
        generate=[2],
    )
    folder = export_to(tmp_path, checkpoint, options)
    report = verify_export(folder, checkpoint=checkpoint, max_length=12)
    assert report.ok
    stored = StoredWeights(folder)
    assert stored["decoder.layers.fc2.weight"].shape == (2, 1, 32, 8)
    assert stored["decoder.embed_tokens.weight"].dtype == np.int8


def test_int8_activations_with_moved_scales(checkpoint, tmp_path, monkeypatch):
    options = ExportOptions(weights="int8", activations="int8", generate=[2])
    folder = export_to(tmp_path, checkpoint, options)
    manifest = read_manifest(folder)
    assert manifest.activations["dtype"] == "int8"
    scales = Smoothing.load(folder, CONFIG)
    assert scales.exponents.any()
    report = verify_export(folder, checkpoint=checkpoint, max_length=8)
    assert report.ok, (report.problems, report.outputs)
    # Now the weights are others than those that the file tells of; the graph is what
    # it was, and needs no call.
    Smoothing(scales.exponents + np.int8(1)).save(folder)
    files = folder_digests(folder)
    (folder / MANIFEST_PATH).write_text(replace(manifest, files=files).to_json())
    nothing = SimpleNamespace(run=lambda plan: [], problems=[], close=lambda: None)
    monkeypatch.setattr(ExportUnderTest, "runner", lambda export: nothing)
    seen = observe(folder, checkpoint, max_length=1)
    assert not seen.files
    assert "fc2.weight is not the checkpoint's" in " ".join(seen.problems)


def test_two_exports_compare(export, int8, capsys):
    report = compare_exports(int8, export.parent, max_length=8)
    show(report, Console(width=120))
    table = capsys.readouterr().out
    for text in ("int8 weights", "largest error", "greedy agreement", "verified"):
        assert text in table
    assert report.ok
    assert report.agreement is not None and report.agreement > 0.8
    assert 1e-5 < max(o.max_error for o in report.outputs) < 0.2


@pytest.mark.usefixtures("in_this_process")
def test_tampering_is_caught(export, tmp_path, capsys):
    folder = shutil.copytree(export, tmp_path / "1")
    (data,) = folder.glob("variables/variables.data-*")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert main(["verify", str(folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert report["files"][0].startswith("variables/variables.data-")


def test_a_manifest_that_is_not_the_graphs_is_caught(bfloat16, tmp_path):
    folder = shutil.copytree(bfloat16, tmp_path / "1")
    path = folder / "assets.extra" / "optserve_manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "eos_token_id": 5}))
    report = verify_export(folder, max_length=1)
    assert not report.ok
    assert any("eos_token_id" in problem for problem in report.problems)


@pytest.mark.usefixtures("in_this_process")
def test_reports_and_baselines(bfloat16, tmp_path, capsys):
    path = tmp_path / "report.json"
    command = ["verify", str(bfloat16), "--max-length", "4"]
    assert main([*command, "--report", str(path)]) == 0
    before = json.loads(path.read_text())
    assert before["ok"] and before["scores"]
    label = next(iter(before["scores"]))
    before["scores"][label] += 1
    path.write_text(json.dumps(before))
    assert main([*command, "--baseline", str(path)]) == 1
    assert "drift" in capsys.readouterr().out


def test_a_manifest_of_another_kind_is_refused(export, tmp_path):
    folder = shutil.copytree(export, tmp_path / "1")
    (folder / "model.tflite").write_bytes(b"TFL3")
    manifest = replace(read_manifest(export), files=folder_digests(folder))
    (folder / MANIFEST_PATH).write_text(manifest.to_json())
    with pytest.raises(ExportError, match="not a TFLite export's"):
        verify_export(folder)


@pytest.mark.usefixtures("in_this_process")
def test_what_is_no_export_is_explained(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 1
    assert "no numbered version" in capsys.readouterr().err
    assert main(["verify", str(tmp_path), "--max-length", "0"]) == 1
    assert main(["verify", str(tmp_path), "--baseline", str(tmp_path / "no")]) == 1

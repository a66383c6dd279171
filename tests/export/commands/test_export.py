"""`optserve export` as a build tool: verified, atomic, deployable, planned ahead."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from optserve.export import pipeline
from optserve.export.commands import export as command
from optserve.export.errors import ExportError
from optserve.export.estimate import estimate_savedmodel, read_config
from optserve.export.options import ExportOptions
from optserve.export.pipeline import export_checkpoint
from optserve.export.verify import process
from optserve.export.verify.process import Verifier, require_verified
from optserve.models.config import OPTConfig
from optserve.models.examples.random_checkpoint import write_random_checkpoint
from optserve.runtime.cli import main
from optserve.runtime.model_dir import read_manifest

from tests.export.exports import only_signatures

CONFIG = OPTConfig(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    ffn_dim=64,
    num_attention_heads=2,
    max_position_embeddings=16,
)
COMPILED = ["--framework", "jax", "--portable"]  # programs for all
COMPILED += ["--prompt-buckets", "8", "--batch-sizes", "2"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), CONFIG)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("base") / "out"


@pytest.fixture(scope="module", autouse=True)
def report(checkpoint, out) -> dict[str, Any]:
    """Of the command, which writes the first version.

    ``make test`` leaves out most of XLA's optimisations, its processes do not.
    """
    arguments = ["export", str(checkpoint), str(out), "--generate", "2", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        with contextlib.redirect_stdout(io.StringIO()) as told:
            assert main([*arguments, *COMPILED]) == 0
    return json.loads(told.getvalue())


def test_a_version_is_verified_and_deployable(out):
    assert sorted(os.listdir(out)) == ["1", "deploy"]
    assert "versions: 1" in (out / "deploy" / "models.config").read_text()
    assert "--enable_batching=true" in (out / "deploy" / "kubernetes.yaml").read_text()


def test_a_compiled_export_passes_as_servers_compile_it(report):
    seen = report["verification"]
    assert seen["ok"], (seen["files"], seen["problems"])
    assert len({output["signature"] for output in seen["outputs"]}) == 6


def test_a_second_version_moves_no_label(out, checkpoint, capsys):
    before = (out / "deploy" / "models.config").read_text()
    arguments = ["export", str(checkpoint), str(out), "--no-verify", "--json"]
    other = ["--weights", "float16", "--generate", "2"]
    with only_signatures(("decode",)):
        assert main([*arguments, "--version", "5", *other]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["path"] == str(out / "5")
    assert (out / "5" / "saved_model.pb").is_file()
    assert report["verification"] is None and report["deployment"] == []
    assert report["checkpoint_digest"] == read_manifest(out / "5").checkpoint_digest
    assert sum(p["seconds"] for p in report["phases"]) < report["seconds"] + 0.1
    assert "writing the SavedModel" in [p["phase"] for p in report["phases"]]
    assert report["memory"]["export"] > 100e6  # TensorFlow alone is more
    assert "optserve deploy" in printed.err
    assert (out / "deploy" / "models.config").read_text() == before
    assert main([*arguments, "--version", "5"]) == 1
    assert "never overwritten" in capsys.readouterr().err
    with pytest.raises(ExportError, match="never overwritten"):
        export_checkpoint(checkpoint, out, version=5)


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path, capsys):
    assert main(["export", str(tmp_path / "missing"), str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("in_this_process")
def test_what_is_not_verified_is_not_published(
    checkpoint, out, tmp_path, capsys, monkeypatch
):
    def write(folder, source, options, *, progress):
        progress("copying a version")
        shutil.copytree(out / "1", folder, dirs_exist_ok=True)

    def refuse(verifier, folder, source):
        assert read_manifest(folder).files
        raise ExportError("not verified, nothing published: decode is off")

    monkeypatch.setattr(pipeline, "write_version", write)
    monkeypatch.setattr(pipeline, "require_verified", refuse)
    arguments = ["export", str(checkpoint), str(tmp_path / "out"), "--generate", "1"]
    assert main(arguments) == 1
    assert "decode is off" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def verified(folder, source):
    with Verifier(quiet=True) as verifier:
        return require_verified(verifier, folder, source)


@pytest.mark.usefixtures("in_this_process")
def test_another_checkpoint_is_told(out, tmp_path):
    other = write_random_checkpoint(tmp_path, CONFIG, seed=1)
    with pytest.raises(ExportError, match=r"not verified.*not the checkpoint's"):
        verified(out / "1", other)


def test_a_process_that_cannot_verify_is_told(checkpoint, tmp_path, monkeypatch):
    for prepare in ("_prepare_observer", "_prepare_judge"):  # imports for seconds
        monkeypatch.setattr(process, prepare, gc.collect)
    with pytest.raises(ExportError, match="did not end well"):
        verified(tmp_path / "none", checkpoint)


def test_a_polite_end_cleans_up():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, command._cleaning_up():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_dry_run_of_a_checkpoint(out, checkpoint, capsys):
    before = sorted(os.listdir(out))
    assert main(["export", str(checkpoint), str(out), "--dry-run", "--json"]) == 0
    actual = json.loads(capsys.readouterr().out)
    assert sorted(os.listdir(out)) == before
    weights = sum(f.stat().st_size for f in (out / "1" / "variables").iterdir())
    assert actual["artefact"] <= weights <= actual["artefact"] + 10_000
    assert "cache float32[B,C,2,2,2,16]" in actual["signatures"]["decode"]["inputs"]
    asked = ["export", str(checkpoint), str(out), "--dry-run", "--version", "1"]
    assert main(asked) == 1


def test_dry_run_of_a_published_size(tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["export", "facebook/opt-66b", str(folder), "--dry-run"]) == 0
    assert "65,7" in capsys.readouterr().out  # billions of parameters
    assert not folder.exists()
    assert main(["export", "opt-5b", str(folder), "--dry-run"]) == 1
    assert "125m" in capsys.readouterr().err


def test_estimates_follow_the_options():
    config = read_config("66b")
    float32 = estimate_savedmodel(config, ExportOptions())
    int8 = estimate_savedmodel(config, ExportOptions(weights="int8", cache="int8"))
    assert 3.9 < float32.artefact / int8.artefact < 4.0
    assert int8.cache_row < float32.cache_row / 3
    assert float32.artefact < float32.export_memory < 1.4 * float32.artefact
    compiled = estimate_savedmodel(config, ExportOptions(compiler="xla"))
    assert compiled.verify_memory > float32.verify_memory
    # A full sequence's cache is more than one message may carry.
    assert float32.message_tokens < 2048 < 4 * int8.message_tokens
    assert float32.full_cache == 2048 * float32.cache_row


def test_a_refusal_is_one_sentence(checkpoint: Path, tmp_path: Path, capfd) -> None:
    out = tmp_path / "out"
    assert main(["export", str(checkpoint), str(out), "--generate", "8,1"]) == 1
    said = [line for line in capfd.readouterr().err.splitlines() if "optserve:" in line]
    assert len(said) == 1 and "ascending" in said[0]
    assert not list(out.glob("*"))

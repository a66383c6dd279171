"""The fine-tuning example: lower loss, and the same curve in both frameworks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from optserve.models.config import OPTConfig
from optserve.models.examples import finetune
from optserve.models.tokenizer import Tokenizer

from ..kinds import small_config, write_checkpoint


def test_both_frameworks_learn_the_same(tmp_path):
    config = small_config(init_std=0.1, num_hidden_layers=1)
    checkpoint = write_checkpoint(tmp_path / "in", config)
    ids = np.tile(np.arange(3, 20), 60).astype(np.int32)  # easily learned
    plan = finetune.Plan(steps=12, batch=4, length=16, learning_rate=1e-2)
    curves = {}
    for name, tune in finetune.TUNE.items():
        _, (before, after), losses = tune(checkpoint, ids, plan.held_out(ids), plan)
        assert after < before - 1
        curves[name] = [before, *losses, after]
    np.testing.assert_allclose(curves["tf"], curves["jax"], rtol=1e-2)


def test_the_shipped_checkpoint_learns_another_kind_of_text():
    """Its held-out loss falls from step to step alike, dropout's noise aside."""
    root = Path(__file__).parents[3]
    checkpoint = root / "models" / "tiny_shakespeare"
    tokenizer = Tokenizer.from_directory(checkpoint)
    text = (root / "LICENSE").read_text(encoding="utf-8")
    ids = np.asarray(tokenizer.encode(text), np.int32)
    border = len(ids) * 9 // 10
    plan = finetune.Plan(steps=16, batch=4, length=64, learning_rate=1e-3)
    test = plan.held_out(ids[border:])
    curves = {}
    for name, tune in finetune.TUNE.items():
        _, (before, after), losses = tune(checkpoint, ids[:border], test, plan)
        assert after < 0.9 * before
        assert np.mean(losses[-4:]) < np.mean(losses[:4])
        curves[name] = [before, *losses, after]
    tf, jax = curves.values()
    assert tf[0] == pytest.approx(jax[0], rel=1e-5)
    np.testing.assert_allclose(tf, jax, rtol=0.06)
    print(curves)


@pytest.mark.parametrize("framework", finetune.TUNE)
def test_command(tmp_path, data_dir, framework, monkeypatch, capsys):
    source = tmp_path / "in"
    config = small_config(vocab_size=50265, hidden_size=12, num_hidden_layers=1)
    write_checkpoint(source, config)
    for name in ("vocab.json", "merges.txt"):
        data = (data_dir / "opt-tokenizer" / name).read_bytes()
        (source / name).write_bytes(data)
    text = tmp_path / "text.txt"
    corpus = (data_dir / "tinyshakespeare.txt").read_text()
    text.write_text(corpus[:2000])
    out = tmp_path / "out"
    options = f"--framework {framework} --steps 2 --batch 2 --length 16".split()
    monkeypatch.setattr(
        sys, "argv", ["finetune", *map(str, (source, text, out)), *options]
    )
    assert finetune.main() == 0
    assert json.loads(capsys.readouterr().out)["before"] > 0
    assert OPTConfig.from_pretrained(out).vocab_size == 50265
    assert (out / "merges.txt").exists() and (out / "model.safetensors").exists()

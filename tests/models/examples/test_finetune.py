"""The fine-tuning example: lower loss, and the same curve in both frameworks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from optserve.models.config import OPTConfig
from optserve.models.examples import finetune

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


def test_the_command_teaches_the_shipped_checkpoint_another_kind_of_text(
    tmp_path, monkeypatch, capsys
):
    """Its held-out loss falls from step to step alike, dropout's noise aside."""
    root = Path(__file__).parents[3]
    checkpoint = root / "models" / "tiny_shakespeare"
    plan = {"steps": 16, "batch": 4, "length": 64, "learning-rate": 1e-3}
    options = [word for key, value in plan.items() for word in (f"--{key}", str(value))]
    curves = {}
    for name, tune in list(finetune.TUNE.items()):

        def recorded(*given, name=name, tune=tune):
            model, (before, after), losses = tune(*given)
            curves[name] = [before, *losses, after]
            return model, (before, after), losses

        monkeypatch.setitem(finetune.TUNE, name, recorded)
        out = tmp_path / name
        files = map(str, (checkpoint, root / "LICENSE", out))
        words = ["finetune", *files, "--framework", name, *options]
        monkeypatch.setattr(sys, "argv", words)
        assert finetune.main() == 0
        before, *losses, after = curves[name]
        told = json.loads(capsys.readouterr().out)
        right = {"before": before, "after": after, "last_step": losses[-1]}
        assert told == pytest.approx(right, abs=1e-4)
        assert after < 0.9 * before
        assert np.mean(losses[-4:]) < np.mean(losses[:4])
        assert OPTConfig.from_pretrained(out) == OPTConfig.from_pretrained(checkpoint)
        assert (out / "merges.txt").exists() and (out / "model.safetensors").exists()
    tf, jax = curves.values()
    assert tf[0] == pytest.approx(jax[0], rel=1e-5)
    np.testing.assert_allclose(tf, jax, rtol=0.06)

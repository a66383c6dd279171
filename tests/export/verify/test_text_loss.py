"""`optserve verify --text`: what an export loses on a text of one's own."""

from __future__ import annotations

import json

import numpy as np
import pytest
from optserve.export.errors import ExportError
from optserve.export.options import ExportOptions
from optserve.export.verify import text_loss
from optserve.export.verify.text_loss import text_losses
from optserve.models.checkpoints import open_weights
from optserve.models.config import OPTConfig
from optserve.models.tf import model as opt
from optserve.models.tokenizer import Tokenizer
from optserve.models.weights import params_from_weights
from optserve.runtime.cli import main

from tests.export.exports import TINY, export_only, exported

TEXT = "My lord, I hardly yet have learned to insinuate, flatter, bow. " * 24


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    options = ExportOptions(weights="int8", activations="int8", generate=())
    called = ("tokenizer", "describe", "prefill", "decode", "score")
    return export_only(tmp_path_factory.mktemp("out"), TINY, options, called)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def test_the_loss_is_the_models_own(int8, text):
    losses, problems = text_losses(text, int8, other=None, checkpoint=TINY)
    config, weights = OPTConfig.from_pretrained(TINY), open_weights(TINY)
    ids = np.array(Tokenizer.from_directory(TINY).encode(TEXT), np.int32)
    ids = ids[: len(ids) // 128 * 128].reshape(-1, 128)
    params = params_from_weights(config, {name: weights[name] for name in weights})
    logits = opt.lm_logits(
        config, params, opt.base_model(config, params, ids).last_hidden_state
    )
    right = float(np.mean(opt.token_losses(logits, ids)[0]))
    assert not problems
    assert losses.keys() == {"export", "checkpoint, int16 activations"}
    for loss in losses.values():
        assert loss == pytest.approx(right, rel=2e-3)


def test_a_loss_that_rose_is_a_problem(int8, text, monkeypatch):
    monkeypatch.setattr(text_loss, "MOST_RAISED", -0.5)
    _, (problem,) = text_losses(text, int8, other=None, checkpoint=TINY)
    assert "export with --activations int16" in problem


@pytest.mark.usefixtures("in_this_process")
def test_the_command_compares_two_exports(int8, text, tmp_path, capsys):
    file = tmp_path / "report.json"
    arguments = ["--against", str(int8), "--text", str(text), "--max-length", "4"]
    assert main(["verify", str(int8), *arguments, "--report", str(file)]) == 0
    losses = json.loads(file.read_text())["losses"]
    assert losses["export"] == losses["other"]
    assert "nats per token of the text: other" in capsys.readouterr().out


def test_what_cannot_be_measured(int8, tmp_path):
    none, empty = tmp_path / "none", tmp_path / "empty"
    empty.touch()
    for text, export, said in (
        (none, int8, r"cannot read the text .*No such file"),
        (empty, int8, "holds no text to predict"),
        (empty, exported("pre_ln"), "has no tokenizer to read"),
    ):
        with pytest.raises(ExportError, match=said):
            text_losses(text, export, other=None, checkpoint=None)

"""What int8 activations cost is measured before they are chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from optserve.export.checkpoint import Checkpoint
from optserve.export.errors import ExportError
from optserve.export.options import ExportOptions
from optserve.export.savedmodel import calibration
from optserve.export.savedmodel.calibration import (
    MOST_RAISED,
    calibrate,
    choose_activations,
    mean_loss,
)
from optserve.export.smoothing import SmoothedWeights

from tests.export.exports import GOLDEN, TINY, expected

INT8 = ExportOptions(weights="int8")


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return Checkpoint.open(TINY)


def test_the_loss_is_that_of_transformers_logits():
    """But for the rounding of the weights, which moves a random model a little."""
    source = Checkpoint.open(GOLDEN / "pre_ln")
    right = expected("pre_ln")
    logits = right["logits"][:, :-1].astype(np.float64)
    ids = right["input_ids"].astype(np.int32)
    chosen = np.take_along_axis(logits, ids[:, 1:, None].astype(np.int64), -1)[..., 0]
    loss = np.mean(np.log(np.exp(logits).sum(-1)) - chosen)
    for dtype in ("int16", "int8", "uint7"):
        actual = mean_loss(source.config, source.weights, ids, dtype)
        assert actual == pytest.approx(loss, rel=0.02)


def test_int8_is_chosen_for_the_shipped_checkpoint(tiny):
    chosen = choose_activations(tiny, INT8)
    assert chosen.dtype == "int8" and chosen.losses is not None
    for dtype in ("int8", "uint7"):
        raised = chosen.losses[dtype] / chosen.losses["int16"] - 1
        assert raised <= MOST_RAISED
    assert chosen.losses["int16"] < 6  # it reads: a uniform guess costs 6.9


def test_not_where_it_costs_more(tiny, monkeypatch):
    monkeypatch.setattr(calibration, "MOST_RAISED", -1.0)
    chosen = choose_activations(tiny, INT8)
    assert chosen.dtype == "int16" and chosen.smoothing is None
    assert set(chosen.losses or ()) == {"int8", "int16", "uint7"}


@pytest.mark.parametrize("costly", ["int8", "uint7"])
def test_not_where_either_kind_of_processor_pays(costly, tiny, monkeypatch):
    def loss(config, weights, ids, dtype):
        return 4.1 if dtype == costly else 4.0

    monkeypatch.setattr(calibration, "mean_loss", loss)
    assert choose_activations(tiny, INT8).dtype == "int16"


def test_without_a_tokenizer_nothing_is_measured():
    source = Checkpoint.open(GOLDEN / "pre_ln")
    assert choose_activations(source, INT8).to_dict() == {
        "dtype": "int16",
        "losses": {},
    }
    asked = ExportOptions(weights="int8", activations="int8")
    assert choose_activations(source, asked).dtype == "int8"


def test_moved_scales_save_a_model_with_outliers(tiny):
    """One channel of each norm a thousand times as large, its columns as small."""
    weights = {name: np.array(tiny.weights[name]) for name in tiny.weights}
    matrices = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "fc1.weight")
    for name in weights:
        if "layers" in name and "layer_norm" in name:
            weights[name][7] *= 1000
        elif name.endswith(matrices):
            weights[name][:, 7] /= 1000
    ids = calibration._windows(tiny, None)
    assert ids is not None
    config, ids = tiny.config, ids[:6]
    right = mean_loss(config, tiny.weights, ids[1::2], "int16")
    outliers = mean_loss(config, weights, ids[1::2], "int8")
    moved = SmoothedWeights(weights, config, calibrate(config, weights, ids[::2]))
    tamed = mean_loss(config, moved, ids[1::2], "int8")
    assert outliers / right - 1 > 0.02
    assert abs(tamed / right - 1) < 0.002


def test_a_text_of_ones_own(tiny, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("Speak, speak. " * 200)
    options = ExportOptions(weights="int8", activations="int8", calibrate=str(file))
    own, default = choose_activations(tiny, options), choose_activations(tiny, INT8)
    assert own.losses != default.losses


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"Too short.", "tokens: a text to calibrate with has 254 or more"),
        (b"\xff\xfe" * 500, "cannot read the text .*utf-8"),
        (None, "cannot read the text .*No such file"),
    ],
)
def test_a_text_that_is_none(tiny, tmp_path: Path, data, said):
    file = tmp_path / "text.txt"
    if data is not None:
        file.write_bytes(data)
    options = ExportOptions(weights="int8", calibrate=str(file))
    with pytest.raises(ExportError, match=said):
        choose_activations(tiny, options)

"""Scales moved between activations and weights: the model stays the same."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from optserve.export.smoothing import (
    SMOOTHING_PATH,
    SmoothedWeights,
    Smoothing,
    smoothing,
)
from optserve.models.checkpoints import open_weights
from optserve.models.config import OPTConfig
from optserve.models.tf import model as opt
from optserve.models.weights import params_from_weights

from tests.export.exports import GOLDEN, expected

PRE_LN = OPTConfig.from_pretrained(GOLDEN / "pre_ln")


def any_smoothing(config: OPTConfig) -> Smoothing:
    none = Smoothing.none(config).exponents
    drawn = np.random.default_rng(3).integers(-6, 7, none.shape)
    return Smoothing(drawn.astype(np.int8))


def test_a_model_with_moved_scales_computes_what_transformers_does():
    weights = SmoothedWeights(
        open_weights(GOLDEN / "pre_ln"), PRE_LN, any_smoothing(PRE_LN)
    )
    params = params_from_weights(PRE_LN, {name: weights[name] for name in weights})
    right = expected("pre_ln")
    ids = tf.constant(right["input_ids"], tf.int32)
    decoded = opt.base_model(PRE_LN, params, ids)
    logits = opt.lm_logits(PRE_LN, params, decoded.last_hidden_state)
    np.testing.assert_allclose(logits, right["logits"], rtol=1e-4, atol=1e-4)
    for i, (keys, values) in enumerate(decoded.cache):  # nothing moves into these
        np.testing.assert_allclose(keys, right[f"key_{i}"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(values, right[f"value_{i}"], rtol=1e-4, atol=1e-4)


def test_scales_really_move():
    plain = open_weights(GOLDEN / "pre_ln")
    moved = SmoothedWeights(plain, PRE_LN, any_smoothing(PRE_LN))
    changed = {name for name in plain if not np.array_equal(plain[name], moved[name])}
    parts = ("self_attn_layer_norm", "final_layer_norm", "q_proj.weight")
    parts += ("k_proj.weight", "v_proj.weight", "fc1", "fc2.weight")
    assert changed == {
        name for name in plain if "layers" in name and any(p in name for p in parts)
    }


def test_an_outlier_is_shared_between_activation_and_weights():
    weights = {name: np.ones_like(x) for name, x in opened(PRE_LN).items()}
    E, F = PRE_LN.hidden_size, PRE_LN.ffn_dim
    largest = np.ones((PRE_LN.num_hidden_layers, 2 * E + F), np.float32)
    largest[1, [3, E + 5, 2 * E + 7]] = 64, 256, 0
    exponents = smoothing(PRE_LN, weights, largest).exponents
    right = np.zeros_like(exponents)
    right[1, [3, E + 5]] = 3, 4
    np.testing.assert_array_equal(exponents, right)


def opened(config: OPTConfig) -> dict[str, np.ndarray]:
    weights = open_weights(GOLDEN / "pre_ln")
    return {name: weights[name] for name in weights}


@pytest.mark.parametrize("case", ["post_ln_proj", "bias_free_gelu"])
def test_scales_stay_where_moving_them_would_change_the_model(case):
    config = OPTConfig.from_pretrained(GOLDEN / case)
    E = config.hidden_size
    weights = open_weights(GOLDEN / case)
    shape = config.num_hidden_layers, 2 * E + config.ffn_dim
    largest = np.random.default_rng(0).uniform(0.1, 100, shape).astype(np.float32)
    exponents = smoothing(config, weights, largest).exponents
    if not config.do_layer_norm_before:  # a norm's output goes on by itself, too
        assert not exponents[:, : 2 * E].any()
    if config.activation_function != "relu":
        assert not exponents[:, 2 * E :].any()


def test_saved_and_loaded(tmp_path):
    saved = any_smoothing(PRE_LN)
    assert not Smoothing.load(tmp_path, PRE_LN).exponents.any()
    saved.save(tmp_path)
    loaded = Smoothing.load(tmp_path, PRE_LN)
    np.testing.assert_array_equal(loaded.exponents, saved.exponents)
    np.save(tmp_path / SMOOTHING_PATH, np.zeros((2, 2), np.int8))
    with pytest.raises(ValueError, match="does not hold this model's exponents"):
        Smoothing.load(tmp_path, PRE_LN)

"""Both frameworks against what Transformers wrote (tests/data/golden)."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from optserve.models.checkpoints import open_weights
from optserve.models.config import OPTConfig
from optserve.models.flax import model as flax_opt
from optserve.models.tf import model as tf_opt
from optserve.models.weights import (
    check_weights,
    params_from_weights,
    weight_shapes,
)

VARIANTS = ("pre_ln", "post_ln_proj", "no_final_ln", "bias_free_gelu", "untied_head")
MATH = {"tf": tf_opt, "jax": flax_opt}


class Case:
    """One golden checkpoint with its expected values."""

    def __init__(self, directory, variant, framework):
        self.directory = directory / "golden" / variant
        self.config = OPTConfig.from_pretrained(self.directory)
        self.weights = open_weights(self.directory)
        self.params = params_from_weights(self.config, self.weights)
        self.expected = np.load(self.directory / "expected.npz")
        self.math = MATH[framework]
        self._run = self._as_it_is
        if framework == "jax":  # whose operations would be compiled one by one
            flags = ("output_hidden_states", "output_attentions")
            self._run = jax.jit(self._as_it_is, static_argnames=flags)

    def run(self, ids=None, mask=None, **options):
        logits, decoded = self._run(self.params, ids, mask, **options)
        return np.asarray(logits), decoded

    def _as_it_is(self, params, ids, mask, **options):
        decoded = self.math.base_model(self.config, params, ids, mask, **options)
        last = decoded.last_hidden_state
        return self.math.lm_logits(self.config, params, last), decoded


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(scope="module", params=MATH)
def case(request, variant, data_dir):
    return Case(data_dir, variant, request.param)


def close(actual, expected, keep=slice(None)):
    """Within 2e-5 of the expected values' scale."""
    actual, expected = np.asarray(actual)[keep], expected[keep]
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 2e-5 * np.abs(expected).max()


def test_weights_fit(case):
    actual = {name: case.weights.shape(name) for name in case.weights}
    check_weights(weight_shapes(case.config), actual, source=case.directory)


def test_outputs(case):
    e = case.expected
    logits, decoded = case.run(
        e["input_ids"], output_hidden_states=True, output_attentions=True
    )
    close(logits, e["logits"])
    close(decoded.last_hidden_state, e["last_hidden_state"])
    for i, states in enumerate(decoded.hidden_states):
        close(states, e[f"hidden_{i}"])
    for i, (probs, (k, v)) in enumerate(
        zip(decoded.attentions, decoded.cache, strict=True)
    ):
        close(probs, e[f"attention_{i}"])
        close(k, e[f"key_{i}"])
        close(v, e[f"value_{i}"])


def test_loss(case):
    e = case.expected
    options = {"output_hidden_states": True, "output_attentions": True}
    logits, _ = case.run(e["input_ids"], **options)  # the program of `test_outputs`
    losses, counts = case.math.token_losses(logits, e["labels"])
    losses, counts = np.asarray(losses), np.asarray(counts)
    assert np.mean(losses[counts]) == pytest.approx(float(e["loss"]), rel=2e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded(case, side):
    e = case.expected
    mask = e[f"{side}_mask"]
    logits, _ = case.run(e[f"ids_{side}"], mask)
    close(logits, e[f"logits_{side}"], mask.astype(bool))


def test_cached(case):
    e = case.expected
    ids, mask = e["ids_left"], e["left_mask"]
    _, first = case.run(ids[:, :7], mask[:, :7])
    logits, _ = case.run(ids[:, 7:], mask, past=first.cache)
    close(logits, e["logits_cached_left_tail4"], mask[:, 7:].astype(bool))


def test_inputs_embeds(case):
    e = case.expected
    logits, _ = case.run(inputs_embeds=e["inputs_embeds"])
    close(logits, e["logits_inputs_embeds"])


def test_head_mask(case):
    e = case.expected
    if "logits_head_mask" not in e:
        pytest.skip("Transformers gave none for this checkpoint")
    logits, _ = case.run(e["input_ids"], head_mask=e["head_mask"])
    close(logits, e["logits_head_mask"])


def test_greedy(case):
    """From the left-padded prompts, through the cache, one token at a time.

    Each length is a program more for JAX, so it takes two steps, one of each kind; the
    tests of the exports take all.
    """
    e = case.expected
    fed, mask, past, generated = e["ids_left"], e["left_mask"], None, []
    steps = e["greedy"].shape[1] if case.math is tf_opt else 2
    for _ in range(steps):
        logits, decoded = case.run(fed, mask, past=past)
        past = decoded.cache
        fed = logits[:, -1].argmax(-1)[:, None]
        generated.append(fed)
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
    np.testing.assert_array_equal(np.concatenate(generated, 1), e["greedy"][:, :steps])

"""TensorFlow's own way of drawing: noise for as few tokens as can win."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from optserve.models.tf import sampling
from optserve.runtime.sampling import Sampling
from optserve.runtime.sampling import draw as draw_reference

V, POSITION = 4000, 5
RNG = np.random.default_rng(3)
PEAKED = RNG.normal(0, 8, (64, V)).astype(np.float32)
FLAT = PEAKED / 200
SAMPLINGS = [
    Sampling(temperature=0.7 + 0.3 * (i % 3), top_p=1 - 0.1 * (i % 2), seed=i)
    for i in range(64)
]


def tensors():
    rows = [one.params() for one in SAMPLINGS]
    params = type(rows[0])(
        *(tf.constant(np.concatenate(leaf)) for leaf in zip(*rows, strict=True))
    )
    return params, tf.fill([len(rows)], POSITION)


@pytest.mark.parametrize(("logits", "few"), [(PEAKED, True), (FLAT, False)])
def test_tokens_of_few_and_of_all(logits, few):
    params, position = tensors()
    x, kept = sampling.warp(tf.constant(logits), params)
    likely = sampling.likely_to_win(x, kept, params.seed, position)
    assert (np.count_nonzero(likely) < likely.shape.num_elements() // 4) == few
    expected = [
        draw_reference(row, one, POSITION)
        for row, one in zip(logits, SAMPLINGS, strict=True)
    ]
    assert (
        sampling.draw(tf.constant(logits), params, position).numpy().tolist()
        == expected
    )
    tokens = sampling.draw_from(likely, x, params.seed, position)
    assert tokens.numpy().tolist() == expected


def test_no_noise_is_larger_than_what_rules_tokens_out():
    words = tf.constant([2**32 - 1, 0], tf.uint32)
    assert sampling.noise_from(words).numpy()[0] <= sampling.LARGEST_NOISE

"""Each rule, over the arrays of all three kinds, against loops over one row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from optserve.models.flax.arrays import ARRAYS as JAX
from optserve.models.generation import logits_processors as rules
from optserve.models.generation.arrays import NUMPY
from optserve.models.generation.logits_processors import History
from optserve.models.tf.arrays import ARRAYS as TENSORFLOW

V = 7
WORDS = [[3], [5, 5], [2, 0, 1], [6, 4]]
PROMPT = 4


def forbidding(ids: Callable[[list[int], int], set[int]]):
    """A rule on one row: −inf at what ``ids(tokens, new)`` names."""

    def one_row(tokens, new, logits):
        out = logits.copy()
        out[list(ids(tokens, new))] = -np.inf
        return out

    return one_row


def ends_of_words(tokens, new):
    return {w[-1] for w in WORDS if tokens[len(tokens) - len(w) + 1 :] == w[:-1]}


def ends_of_pairs(tokens, new):
    pairs = pairwise(tokens)
    return {second for first, second in pairs if first == tokens[-1]}


def only(token):
    return set(range(V)) - {token}


def penalized(tokens, new, logits):
    out = logits.copy()
    for token in set(tokens):
        out[token] = out[token] / 1.5 if out[token] > 0 else out[token] * 1.5
    return out


def forced(tokens, new, logits):
    if len(tokens) != 6:
        return logits
    out = np.full_like(logits, -np.inf)
    out[5] = 0
    return out


def counted(tokens, new, logits):
    """OpenAI's definition, of new tokens."""
    out = logits.copy()
    for token in set(tokens[len(tokens) - new :]):
        out[token] -= 0.5 * tokens[len(tokens) - new :].count(token) + 0.25
    return out


BIASES = {(3,): 1.5, (1, 3): 2.0, (2, 0, 5): -4.0, (0,): -0.5}


def biased(tokens, new, logits):
    out = logits.copy()
    for words, bias in BIASES.items():
        before = list(words[:-1])
        if not before or tokens[-len(before) :] == before:
            out[words[-1]] += bias
    return out


CASES = {
    "bad words": (rules.bad_words(WORDS), forbidding(ends_of_words)),
    "n-grams": (rules.no_repeat_ngram(2), forbidding(ends_of_pairs)),
    "suppressed": (rules.suppressed([1, 6]), forbidding(lambda *_: {1, 6})),
    "suppressed first": (
        rules.suppressed([1, 6], PROMPT),
        forbidding(lambda tokens, new: {1, 6} if new == 0 else set()),
    ),
    "minimum of new tokens": (
        rules.min_new_tokens(3, [2]),
        forbidding(lambda tokens, new: {2} if new < 3 else set()),
    ),
    "minimum length": (
        rules.min_length(6, [2]),
        forbidding(lambda tokens, new: {2} if len(tokens) < 6 else set()),
    ),
    "forced": (rules.forced_tokens({6: 5}), forced),
    "penalty": (rules.repetition_penalty(1.5), penalized),
    "counts": (rules.count_penalties(0.5, 0.25), counted),
    "biases": (rules.sequence_bias(tuple(BIASES.items())), biased),
}


@pytest.mark.parametrize("arrays", [NUMPY, TENSORFLOW, JAX], ids=["numpy", "tf", "jax"])
@pytest.mark.parametrize("name", CASES)
def test_a_rule(name, arrays):
    rule, one_row = CASES[name]
    rng = np.random.default_rng(3)
    for used in range(PROMPT, 10):
        tokens = rng.integers(0, V, [40, 10]).astype(np.int32)
        logits = rng.normal(size=[40, V]).astype(np.float32)
        given = (arrays.array(tokens), arrays.array(logits, "float32"))
        actual = rule(arrays, History(given[0], used, used - PROMPT), given[1])
        for row, before, after in zip(tokens, logits, np.asarray(actual), strict=True):
            expected = one_row(row[:used].tolist(), used - PROMPT, before)
            np.testing.assert_allclose(after, expected, rtol=1e-6)


def test_a_rule_for_the_client():
    """One row in numpy, whose prompt is not counted as new."""
    process = rules.for_one_row(rules.bad_words(WORDS), PROMPT)
    rng = np.random.default_rng(5)
    for _ in range(200):
        tokens = rng.integers(0, V, 9).astype(np.int32)
        logits = rng.normal(size=V).astype(np.float32)
        expected = CASES["bad words"][1](tokens.tolist(), 5, logits)
        np.testing.assert_array_equal(process(tokens, logits), expected)

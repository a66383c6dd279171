"""The sampling reference against published vectors and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optserve.models.generation.sampling import (
    gumbel,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    threefry2x32,
)
from optserve.runtime.errors import InvalidRequest
from optserve.runtime.sampling import Sampling, choose, draw, likeliest, modify

# Random123's kat_vectors, "threefry2x32 20": counter, key, result.
VECTORS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_threefry_published_vectors(counter, key, expected):
    words = threefry2x32(
        np.array(key, np.uint32), np.uint32(counter[0]), np.uint32(counter[1])
    )
    assert tuple(int(w[0]) for w in words) == expected


def test_threefry_takes_a_signed_key_with_the_same_bits():
    key = np.array([0xFFFFFFFF, 0x80000001], np.uint32)
    ids = np.arange(5, dtype=np.uint32)
    unsigned = threefry2x32(key, ids, ids)
    signed = threefry2x32(key.view(np.int32), ids, ids)
    np.testing.assert_array_equal(unsigned, signed)


def test_gumbel_is_finite_and_has_the_right_mean_and_spread():
    noise = gumbel(Sampling(seed=3).key(), 17, 200_000)
    assert noise.dtype == np.float32 and np.isfinite(noise).all()
    assert abs(noise.mean() - 0.5772) < 0.01  # Euler–Mascheroni
    assert abs(noise.std() - math.pi / math.sqrt(6)) < 0.01


def test_draws_follow_the_softmax():
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    sampling = Sampling(seed=11)
    tokens = [draw(logits, sampling, position) for position in range(4000)]
    shares = np.bincount(tokens, minlength=4) / len(tokens)
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.3, 0.4], atol=0.03)


def test_seed_words_are_low_then_high():
    key = Sampling(seed=(7 << 32) | 0xFFFFFFFE).key()
    np.testing.assert_array_equal(key, np.array([-2, 7], np.int32))
    np.testing.assert_array_equal(Sampling(seed=-1).key(), [-1, -1])


def test_offsets_wrap_and_a_missing_seed_is_drawn():
    assert Sampling(seed=2**64 - 1).seeded(1).seed == 0
    assert Sampling().seeded().seed is not None


def brute_top_p(x: np.ndarray, p: float) -> set[int]:
    e = np.exp((x - x.max()).astype(np.float64))
    q = e / e.sum()
    return {i for i in range(len(x)) if q[x > x[i]].sum() < p}


@given(
    values=st.lists(st.integers(-6, 6), min_size=1, max_size=12),
    p=st.floats(0.01, 0.99),
    k=st.integers(0, 14),
)
def test_filters_against_brute_force(values, p, k):
    x = np.array(values, np.float32)
    kept = set(np.flatnonzero(np.isfinite(keep_top_k(x, k))))
    ranked = sorted(values, reverse=True)
    limit = ranked[k - 1] if 0 < k <= len(values) else -math.inf
    assert kept == {i for i, v in enumerate(values) if v >= limit}
    e = np.exp(x.astype(np.float64) - x.max())
    edges = [(e[x > v].sum() / e.sum()) for v in values]
    if all(abs(edge - p) > 1e-5 for edge in edges):
        kept = set(np.flatnonzero(np.isfinite(keep_top_p(x, p))))
        assert kept == brute_top_p(x, p)
        assert int(np.argmax(x)) in kept


@given(
    values=st.lists(st.integers(-6, 6), min_size=1, max_size=12),
    p=st.floats(0.01, 1.0),
)
def test_min_p_against_brute_force(values, p):
    x = np.array(values, np.float32)
    q = np.exp(x.astype(np.float64))
    edges = q / q.max()
    if all(abs(edge - p) > 1e-5 for edge in edges):
        kept = np.isfinite(keep_min_p(x, p))
        assert kept.tolist() == (edges >= p).tolist()
    assert np.isfinite(keep_min_p(x, 0.0)).all()


def test_penalty_counts_an_id_once_and_moves_it_down():
    x = np.array([2.0, -2.0, 1.0], np.float32)
    penalty = Sampling(repetition_penalty=2.0)
    for history in ([0, 1, 0], [-2, -3, 0], [-2, -3, -1]):
        actual = modify(x, penalty, history=history)
        np.testing.assert_allclose(actual, [1.0, -4.0, 1.0])
    np.testing.assert_array_equal(x, np.array([2.0, -2.0, 1.0], np.float32))


@given(
    prompt=st.lists(st.integers(0, 7), max_size=6),
    new=st.lists(st.integers(0, 7), max_size=9),
    frequency=st.floats(-2, 2, width=32),
    presence=st.floats(-2, 2, width=32),
    bias=st.dictionaries(st.integers(0, 7), st.floats(-9, 9, width=32), max_size=3),
    forbidden=st.lists(st.integers(0, 7), max_size=2),
)
def test_modifiers_against_openais_definition(
    prompt, new, frequency, presence, bias, forbidden
):
    """ "mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence", c
    the count of earlier tokens of the answer; with a bias "added to the logits"."""
    x = np.linspace(-3, 3, 8, dtype=np.float32)
    expected = []
    for j in range(8):
        c = new.count(j)
        mu = float(x[j]) + bias.get(j, 0.0)
        mu -= c * frequency + float(c > 0) * presence
        expected.append(-math.inf if j in forbidden else mu)
    sampling = Sampling(frequency_penalty=frequency, presence_penalty=presence)
    history = [-2 - i for i in prompt] + new
    actual = modify(x, sampling, history=history, bias=bias, forbidden=forbidden)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_repetition_penalty_sees_the_bias_and_counts_do_not_see_the_penalty():
    x = np.array([1.0, 1.0, 0.0], np.float32)
    sampling = Sampling(repetition_penalty=2.0, frequency_penalty=0.5)
    actual = modify(x, sampling, history=[-2, 1, 1], bias={0: -3.0, 1: 3.0})
    np.testing.assert_allclose(actual, [-4.0, 2.0 - 2 * 0.5, 0.0])


@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=9), count=st.integers(0, 9)
)
def test_the_likeliest_come_in_order_and_the_lowest_id_first(values, count):
    ids = likeliest(np.float32(values), count)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert ids.tolist() == expected


def test_greedy_takes_the_lowest_id_among_equals_and_reports_the_raw_logprob():
    x = np.array([1.0, 5.0, 5.0, 0.0], np.float32)
    sampling = Sampling(temperature=0.0, repetition_penalty=10.0)
    token, logprob = choose(x, sampling, position=3, history=[1])
    assert token == 2
    assert logprob == pytest.approx(5 - math.log(np.exp(x).sum()), abs=1e-6)
    assert choose(x, sampling, position=3)[0] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0.0},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"presence_penalty": 2.1},
        {"frequency_penalty": math.nan},
        {"seed": 2**64},
    ],
)
def test_wrong_options_are_refused_with_their_name(wrong):
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        Sampling(**wrong)

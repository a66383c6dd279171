"""Both graphs' choice of tokens against the numpy reference, without any model."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from optserve.models.flax import sampling as sampling_jax
from optserve.models.generation.sampling import SamplingParams
from optserve.models.tf import sampling as sampling_tf
from optserve.runtime.sampling import Sampling, choose

RNG = np.random.default_rng(7)
POSITION = 11
SHARP = Sampling(temperature=0.7, top_k=5, top_p=0.8, seed=1)
ROWS: dict[str, tuple[np.ndarray, Sampling]] = {
    "greedy": (RNG.normal(size=1003), Sampling(temperature=0)),
    "temperature": (RNG.normal(size=1003), Sampling(temperature=0.8, seed=2)),
    "top-k": (RNG.normal(size=1003), Sampling(top_k=50, seed=3)),
    "top-k of one": (RNG.normal(size=1003), Sampling(top_k=1, seed=4)),
    "top-k of all": (RNG.normal(size=1003), Sampling(top_k=1003, seed=5)),
    "top-k beyond all": (RNG.normal(size=1003), Sampling(top_k=5000, seed=6)),
    "top-p": (RNG.normal(size=1003), Sampling(top_p=0.9, seed=7)),
    "top-p of almost all": (RNG.normal(size=1003), Sampling(top_p=0.999, seed=8)),
    "top-p of a few": (4 * RNG.normal(size=1003), Sampling(top_p=0.5, seed=9)),
    "top-p of one": (RNG.normal(size=1003), Sampling(top_p=1e-6, seed=10)),
    "top-p of almost none": (RNG.normal(size=1003), Sampling(top_p=1.2e-38, seed=11)),
    "everything": (
        RNG.normal(size=1003),
        Sampling(temperature=1.3, top_k=40, top_p=0.7, repetition_penalty=1.5, seed=12),
    ),
    "penalty": (RNG.normal(size=1003), Sampling(repetition_penalty=3.0, seed=13)),
    "ties at top-k": (RNG.integers(-3, 3, 1003), Sampling(top_k=7, seed=14)),
    "ties at top-p": (RNG.integers(-3, 3, 1003), Sampling(top_p=0.6, seed=15)),
    "all equal": (np.full(1003, -2.5), SHARP),
    "all but one impossible": (np.where(np.arange(1003) == 500, 0, -np.inf), SHARP),
    "one for certain": (np.where(np.arange(1003) == 500, 90, 0.1), SHARP),
    "tiny numbers": (1e-30 * RNG.normal(size=1003), Sampling(top_k=9, seed=16)),
    "large numbers": (1e30 * RNG.normal(size=1003), Sampling(top_p=0.9, seed=17)),
    "neighbours": (
        np.nextafter(np.float32(1), np.float32(2)) * (np.arange(1003) > 300)
        + 1.0 * (np.arange(1003) <= 300),
        Sampling(top_k=300, top_p=0.7, seed=18),
    ),
}


def parameters(samplings: list[Sampling]) -> dict[str, np.ndarray]:
    return {
        "seed": np.stack([sampling.key() for sampling in samplings]),
        "temperature": np.float32([sampling.temperature for sampling in samplings]),
        "top_k": np.int32([sampling.top_k for sampling in samplings]),
        "top_p": np.float32([sampling.top_p for sampling in samplings]),
        "repetition_penalty": np.float32(
            [sampling.repetition_penalty for sampling in samplings]
        ),
    }


def by_tf(logits, samplings, seen, *, compiled: bool):
    @functools.partial(tf.function, autograph=False, jit_compile=compiled)
    def graph(logits, given, position, seen):
        asked = SamplingParams(**given)
        return sampling_tf.choose(logits, asked, position, seen, compiled=compiled)

    position = tf.fill([len(logits)], POSITION)
    inputs = tf.nest.map_structure(tf.constant, (logits, parameters(samplings)))
    chosen = graph(*inputs, position, tf.constant(seen))
    return [x.numpy() for x in chosen]


def by_jax(logits, samplings, seen):
    position = jnp.full(len(logits), POSITION, jnp.int32)
    asked = SamplingParams(**parameters(samplings))
    chosen = jax.jit(sampling_jax.choose)(logits, asked, position, seen)
    return [np.asarray(x) for x in chosen]


GRAPHS = {
    "tf": functools.partial(by_tf, compiled=False),
    "tf-xla": functools.partial(by_tf, compiled=True),
    "jax": by_jax,
}


def check(graph, logits, samplings) -> None:
    seen = np.random.default_rng(0).random(logits.shape) < 0.3
    tokens, logprobs = graph(logits, samplings, seen)
    for row, sampling in enumerate(samplings):
        with np.errstate(all="ignore"):
            token, logprob = choose(
                logits[row],
                sampling,
                position=POSITION,
                seen=np.flatnonzero(seen[row]),
            )
        assert tokens[row] == token, sampling
        np.testing.assert_allclose(logprobs[row], logprob, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_rows_of_all_kinds_together(graph) -> None:
    logits, samplings = zip(*ROWS.values(), strict=True)
    check(graph, np.stack(logits).astype(np.float32), list(samplings))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_a_row_by_itself(graph, name) -> None:
    logits, sampling = ROWS[name]
    check(graph, logits[None].astype(np.float32), [sampling])


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_many_draws_of_a_real_vocabulary(graph) -> None:
    rng = np.random.default_rng(3)
    spread = rng.choice([0.1, 1, 3, 8], size=(64, 1))
    logits = (spread * rng.normal(size=(64, 50272))).astype(np.float32)
    samplings = [
        Sampling(
            temperature=float(rng.choice([0.5, 1.0, 1.5])),
            top_k=int(rng.choice([0, 1, 10, 200])),
            top_p=float(rng.choice([1.0, 0.95, 0.5, 0.1])),
            repetition_penalty=float(rng.choice([1.0, 1.2])),
            seed=seed,
        )
        for seed in range(64)
    ]
    check(graph, logits, samplings)

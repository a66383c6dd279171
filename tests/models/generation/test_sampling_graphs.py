"""Both graphs' choice of tokens against the numpy reference, without any model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from optserve.models.flax import sampling as sampling_jax
from optserve.models.generation.modifiers import FROM_PROMPT, Marks
from optserve.models.generation.sampling import log_softmax
from optserve.models.generation.sampling_params import SamplingParams
from optserve.models.tf import sampling as sampling_tf
from optserve.runtime.sampling import Sampling, choose, likeliest

RNG = np.random.default_rng(7)
POSITION, NEW = 11, 2
EIGHT = 8  # rows at a time: one program for all tests of several rows
SHARP = Sampling(temperature=0.7, top_k=5, top_p=0.8, seed=1)


@dataclass(frozen=True, eq=False)
class Row:
    """What one row asks for; ``NEW`` tokens were made before."""

    logits: np.ndarray
    sampling: Sampling
    history: Sequence[int] = ()
    bias: dict[int, float] = field(default_factory=dict)
    stops: Sequence[int] = ()
    min_new_tokens: int = 0
    top: int = 0

    def params(self) -> SamplingParams:
        return self.sampling.params(
            min_new_tokens=self.min_new_tokens, top_logprobs=self.top
        )

    def marks(self) -> Marks:
        counts, bias = np.zeros(self.logits.size, np.int32), np.zeros(self.logits.size)
        stops = np.isin(np.arange(self.logits.size), self.stops)
        for i in self.history:
            counts[i if i >= 0 else -2 - i] += 1 if i >= 0 else FROM_PROMPT
        bias[list(self.bias)] = list(self.bias.values())
        usual = Sampling().params()
        modified = bool(self.bias) or any(
            getattr(self.params(), name) != getattr(usual, name)
            for name in (
                "repetition_penalty",
                "presence_penalty",
                "frequency_penalty",
                "min_new_tokens",
            )
        )
        return Marks(counts, stops, bias.astype(np.float32), np.bool_(modified))


def normal(scale: float = 1.0) -> np.ndarray:
    return scale * RNG.normal(size=1003)


SEEN = [*range(-300, -2), *RNG.integers(0, 60, 40).tolist()]
PENALTIES = Sampling(presence_penalty=0.9, frequency_penalty=0.3, seed=21)
STEEP = np.linspace(4, -4, 1003)
ROWS: dict[str, Row] = {
    "greedy": Row(normal(), Sampling(temperature=0)),
    "temperature": Row(normal(), Sampling(temperature=0.8, seed=2)),
    "top-k": Row(normal(), Sampling(top_k=50, seed=3)),
    "top-k of one": Row(normal(), Sampling(top_k=1, seed=4)),
    "top-k of all": Row(normal(), Sampling(top_k=1003, seed=5)),
    "top-k beyond all": Row(normal(), Sampling(top_k=5000, seed=6)),
    "top-p": Row(normal(), Sampling(top_p=0.9, seed=7)),
    "top-p of almost all": Row(normal(), Sampling(top_p=0.999, seed=8)),
    "top-p of a few": Row(normal(4), Sampling(top_p=0.5, seed=9)),
    "top-p of one": Row(normal(), Sampling(top_p=1e-6, seed=10)),
    "top-p of almost none": Row(normal(), Sampling(top_p=1.2e-38, seed=11)),
    "everything": Row(
        normal(),
        Sampling(
            temperature=1.3,
            top_k=40,
            top_p=0.7,
            min_p=0.05,
            repetition_penalty=1.5,
            presence_penalty=0.5,
            frequency_penalty=-0.4,
            seed=12,
        ),
        history=SEEN,
        bias={7: 2.0, 500: -np.inf, 1002: 1.5},
        stops=[2, 3],
        min_new_tokens=9,
        top=5,
    ),
    "repetition": Row(normal(), Sampling(repetition_penalty=3.0, seed=13), SEEN),
    "ties at top-k": Row(RNG.integers(-3, 3, 1003), Sampling(top_k=7, seed=14)),
    "ties at top-p": Row(RNG.integers(-3, 3, 1003), Sampling(top_p=0.6, seed=15)),
    "all equal": Row(np.full(1003, -2.5), SHARP),
    "all but one impossible": Row(
        np.where(np.arange(1003) == 500, 0, -np.inf), SHARP, top=1
    ),
    "one for certain": Row(np.where(np.arange(1003) == 500, 90, 0.1), SHARP, top=3),
    "tiny numbers": Row(normal(1e-30), Sampling(top_k=9, seed=16)),
    "large numbers": Row(normal(1e30), Sampling(top_p=0.9, seed=17)),
    "neighbours": Row(
        np.nextafter(np.float32(1), np.float32(2)) * (np.arange(1003) > 300)
        + 1.0 * (np.arange(1003) <= 300),
        Sampling(top_k=300, top_p=0.7, seed=18),
        top=5,
    ),
    "min-p": Row(normal(3), Sampling(min_p=0.1, seed=19)),
    "min-p of the likeliest": Row(normal(), Sampling(min_p=1.0, seed=20)),
    "min-p before top-p": Row(normal(2), Sampling(min_p=0.02, top_p=0.8, seed=22)),
    "min-p within top-k": Row(normal(2), Sampling(min_p=0.3, top_k=900, seed=23)),
    "counts": Row(STEEP, PENALTIES, SEEN),
    "counts, greedy": Row(
        STEEP,
        Sampling(temperature=0, presence_penalty=0.1, frequency_penalty=0.2),
        [0, 0, 1, -2 - 5],
    ),
    "counts that favour": Row(
        normal(), Sampling(temperature=0, presence_penalty=-2), [7, -2 - 8]
    ),
    "prompt without counts": Row(STEEP, PENALTIES, [-2, -3, -4]),
    "bias": Row(normal(), Sampling(seed=24), bias={900: 7.0, 3: -5.0}),
    "bias, greedy": Row(STEEP, Sampling(temperature=0), bias={0: -np.inf, 1: -9.0}),
    "stops too early": Row(
        STEEP, Sampling(temperature=0), stops=[0, 1, 4], min_new_tokens=NEW + 1
    ),
    "stops just in time": Row(
        STEEP, Sampling(temperature=0), stops=[0, 1, 4], min_new_tokens=NEW
    ),
    "stops, not asked for": Row(STEEP, Sampling(temperature=0), stops=[0]),
    "likeliest five": Row(normal(), Sampling(seed=25), top=5),
    "likeliest of equals": Row(RNG.integers(-3, 3, 1003), SHARP, top=4),
}


def stacked(rows: Sequence[Row]):
    """What the graphs take."""
    params = zip(*(row.params() for row in rows), strict=True)
    marks = zip(*(row.marks() for row in rows), strict=True)
    return (
        np.stack([row.logits for row in rows]).astype(np.float32),
        SamplingParams(*map(np.concatenate, params)),
        Marks(*map(np.stack, marks)),
        np.full(len(rows), POSITION, np.int32),
        np.int32(NEW),
    )


@functools.cache
def graph_tf(compiled: bool):
    """Traced once for each number of rows."""
    return tf.function(sampling_tf.choose, autograph=False, jit_compile=compiled)


GRAPH_JAX = jax.jit(sampling_jax.choose)


def by_tf(rows: Sequence[Row], *, compiled: bool):
    return graph_tf(compiled)(*tf.nest.map_structure(tf.constant, stacked(rows)))


def by_jax(rows: Sequence[Row]):
    return GRAPH_JAX(*jax.tree.map(jnp.asarray, stacked(rows)))


GRAPHS = {
    "tf": functools.partial(by_tf, compiled=False),
    "tf-xla": functools.partial(by_tf, compiled=True),
    "jax": by_jax,
}


@functools.lru_cache(256)
def reference(row: Row):
    """By numpy: token and logprob, the likeliest ids and their logprobs."""
    logits = row.logits.astype(np.float32)
    early = row.min_new_tokens > NEW
    with np.errstate(all="ignore"):
        token, logprob = choose(
            logits,
            row.sampling,
            position=POSITION,
            history=row.history,
            bias=row.bias,
            forbidden=row.stops if early else (),
        )
        ids = likeliest(logits, row.top)
        return token, logprob, ids, log_softmax(logits)[ids]


def check(graph, rows: Sequence[Row]) -> None:
    actual = graph(rows)
    for b, row in enumerate(rows):
        token, logprob, ids, logprobs = reference(row)
        assert actual.token[b] == token, row
        np.testing.assert_allclose(actual.logprob[b], logprob, rtol=1e-5, atol=1e-5)
        rest = 5 - row.top
        assert np.asarray(actual.top_ids)[b].tolist() == [*ids.tolist(), *[-1] * rest]
        expected = [*logprobs, *[0.0] * rest]
        np.testing.assert_allclose(
            actual.top_logprobs[b], expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_rows_of_all_kinds_together(graph) -> None:
    rows = list(ROWS.values())
    for start in range(0, len(rows), EIGHT):
        eight = rows[start : start + EIGHT]
        check(graph, eight + rows[: EIGHT - len(eight)])


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_a_row_by_itself(graph, name) -> None:
    check(graph, [ROWS[name]])


IDS = st.integers(0, 1002)
MIXES = st.builds(
    Row,
    st.builds(
        lambda seed, scale: scale * np.random.default_rng(seed).normal(size=1003),
        st.integers(0, 2**32 - 1),
        st.sampled_from([0.3, 1.0, 4.0]),
    ),
    st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
        top_k=st.sampled_from([0, 1, 40, 2000]),
        top_p=st.sampled_from([1.0, 0.9, 0.2]),
        min_p=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
        presence_penalty=st.sampled_from([0.0, 1.0, -2.0]),
        frequency_penalty=st.sampled_from([0.0, 0.3, -0.5]),
        seed=st.integers(0, 2**64 - 1),
    ),
    history=st.lists(st.one_of(IDS, IDS.map(lambda i: -2 - i)), max_size=40),
    bias=st.dictionaries(IDS, st.sampled_from([-np.inf, -3.0, 4.0]), max_size=4),
    stops=st.lists(IDS, max_size=3),
    min_new_tokens=st.integers(0, 4),
    top=st.integers(0, 5),
)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(MIXES, min_size=EIGHT, max_size=EIGHT))
def test_any_mix(rows) -> None:
    for graph in GRAPHS.values():
        check(graph, rows)


@functools.cache
def real_rows() -> list[Row]:
    """Of the vocabulary of OPT."""
    rng = np.random.default_rng(3)

    def row(seed: int) -> Row:
        V, often = 50272, rng.integers(0, 200, 30).tolist()
        return Row(
            rng.choice([0.1, 1, 3, 8]) * rng.normal(size=V),
            Sampling(
                temperature=float(rng.choice([0.0, 0.5, 1.0, 1.5])),
                top_k=int(rng.choice([0, 1, 10, 200])),
                top_p=float(rng.choice([1.0, 0.95, 0.5, 0.1])),
                min_p=float(rng.choice([0.0, 0.0, 0.01, 0.3])),
                repetition_penalty=float(rng.choice([1.0, 1.2])),
                presence_penalty=float(rng.choice([0.0, 1.5, -0.5])),
                frequency_penalty=float(rng.choice([0.0, 0.7])),
                seed=seed,
            ),
            history=[*often, *(-2 - i for i in rng.integers(0, V, 50).tolist())],
            bias={int(i): 5.0 for i in rng.integers(0, V, rng.choice([0, 3]))},
            stops=rng.integers(0, V, 2).tolist(),
            min_new_tokens=int(rng.choice([0, 20])),
            top=int(rng.choice([0, 0, 1, 5])),
        )

    return [row(seed) for seed in range(64)]


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_many_draws_of_a_real_vocabulary(graph) -> None:
    check(graph, real_rows())

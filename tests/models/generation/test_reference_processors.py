"""Each rule against the transformers package's own processors, in the order that the
graphs have.

Needs torch beside transformers (<5).
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optserve.models.generation import logits_processors as rules
from optserve.models.generation.arrays import NUMPY
from optserve.models.generation.logits_processors import History
from optserve.models.generation.sampling import keep_min_p, keep_top_k, keep_top_p
from optserve.runtime.sampling import Sampling, modify

pytestmark = pytest.mark.reference

V, PROMPT, NEW = 40, 5, 4


@pytest.fixture(scope="module")
def processors():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers.generation.logits_process")


def sequence(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of prompt and continuation, and logits."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, PROMPT + NEW)
    return tokens, (3 * rng.normal(size=V)).astype(np.float32)


def theirs(chain, tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
    import torch

    scores = torch.tensor(logits[None])
    for processor in chain:
        scores = processor(torch.tensor(tokens[None]), scores)
    return scores.numpy()[0]


SEEDS = st.integers(0, 2**32 - 1)
EXAMPLES = settings(max_examples=60, deadline=None)


@EXAMPLES
@given(
    seed=SEEDS,
    bias=st.dictionaries(
        st.integers(0, V - 1), st.floats(-8, 8, width=32), min_size=1, max_size=4
    ),
    penalty=st.sampled_from([1.0, 1.3, 0.7]),
    least=st.integers(1, 8),
)
def test_bias_minimum_and_repetition(processors, seed, bias, penalty, least):
    tokens, logits = sequence(seed)
    stops = [3, 17]
    chain = [
        processors.SequenceBiasLogitsProcessor({(i,): x for i, x in bias.items()}),
        processors.MinNewTokensLengthLogitsProcessor(PROMPT, least, stops),
        processors.RepetitionPenaltyLogitsProcessor(penalty),
    ]
    actual = modify(
        logits,
        Sampling(repetition_penalty=penalty),
        history=[-2 - i for i in tokens[:PROMPT]] + tokens[PROMPT:].tolist(),
        bias=bias,
        forbidden=stops if least > NEW else (),
    )
    np.testing.assert_allclose(actual, theirs(chain, tokens, logits), rtol=1e-5)


@EXAMPLES
@given(
    seed=SEEDS,
    temperature=st.sampled_from([0.6, 1.0, 1.7]),
    min_p=st.sampled_from([0.01, 0.1, 0.5]),
    top_k=st.integers(1, V),
    top_p=st.sampled_from([0.3, 0.8, 0.95]),
)
def test_what_filters_keep(processors, seed, temperature, min_p, top_k, top_p):
    tokens, logits = sequence(seed)
    chain = [
        processors.TemperatureLogitsWarper(temperature),
        processors.MinPLogitsWarper(min_p),
        processors.TopKLogitsWarper(top_k),
        processors.TopPLogitsWarper(top_p),
    ]
    x = keep_top_k(keep_min_p(logits / np.float32(temperature), min_p), top_k)
    kept = np.isfinite(keep_top_p(x, top_p))
    assert kept.tolist() == np.isfinite(theirs(chain, tokens, logits)).tolist()


@EXAMPLES
@given(
    seed=SEEDS,
    words=st.dictionaries(
        st.lists(st.integers(0, V - 1), min_size=1, max_size=3).map(tuple),
        st.floats(-8, 8, width=32),
        min_size=1,
        max_size=4,
    ),
    matching=st.integers(1, 3),
)
def test_biases_of_sequences(processors, seed, words, matching):
    tokens, logits = sequence(seed)
    words = words | {(*tokens[-matching:].tolist(), 7): 2.5}  # one that applies
    chain = [processors.SequenceBiasLogitsProcessor(words)]
    history = History(tokens[None].astype(np.int32), len(tokens), NEW)
    rule = rules.sequence_bias(tuple(words.items()))
    actual = rule(NUMPY, history, logits[None])[0]
    np.testing.assert_allclose(actual, theirs(chain, tokens, logits), rtol=1e-5)

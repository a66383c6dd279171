"""Whole generations against Transformers' own outputs."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from optserve.runtime import Beams, Client, Sampling, unpadded
from optserve.runtime.sampling import modify

from .numpy_model import GOLDEN, NumpyOPT, NumpyTransport

CASES = sorted(p.name for p in GOLDEN.iterdir())


@cache
def expected(case: str):
    return dict(np.load(GOLDEN / case / "expected.npz"))


def prompts(case: str) -> list[list[int]]:
    """Transformers generated from the left-padded batch."""
    return unpadded(expected(case)["ids_left"], expected(case)["left_mask"])


def until_end(tokens: np.ndarray) -> list[int]:
    """The tokens up to the end token (2); padding follows it."""
    ids = tokens.tolist()
    return ids[: ids.index(2) + 1] if 2 in ids else ids


@pytest.mark.parametrize("case", CASES)
def test_the_tests_own_model_matches(case):
    model, reference = NumpyOPT(GOLDEN / case), expected(case)
    layers, heads = (
        model.config["num_hidden_layers"],
        model.config["num_attention_heads"],
    )
    empty = np.zeros((0, layers, 2, heads, 32 // heads), np.float32)
    for ids, logits in zip(reference["input_ids"], reference["logits"], strict=True):
        hidden, _ = model.hidden(ids, empty)
        np.testing.assert_allclose(model.logits(hidden), logits, atol=2e-4)


@pytest.mark.parametrize("generate", [(), (1, 4), (3, 8)])
@pytest.mark.parametrize("case", CASES)
def test_greedy(case, generate):
    reference = expected(case)
    with Client(transport=NumpyTransport(GOLDEN / case, generate=generate)) as client:
        generations = client.generate(prompts(case), max_new_tokens=24)
    for row, tokens in zip(generations, reference["greedy"], strict=True):
        assert row.tokens == until_end(tokens)


def penalize_padding(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Transformers penalizes the padding of a padded prompt as if it were said."""
    penalty = Sampling(repetition_penalty=1.3)
    return logits if 1 in tokens else modify(logits, penalty, history=[1])


@pytest.mark.parametrize("case", CASES)
def test_greedy_with_repetition_penalty(case):
    reference = expected(case)["greedy_repetition_1.3"]
    sampling = Sampling(temperature=0.0, repetition_penalty=1.3)
    with Client(transport=NumpyTransport(GOLDEN / case, generate=(4, 8))) as client:
        whole, *padded = prompts(case)
        (in_graph,) = client.generate([whole], max_new_tokens=24, sampling=sampling)
        generations = client.generate(
            padded, max_new_tokens=24, sampling=sampling, processors=[penalize_padding]
        )
    for row, tokens in zip([in_graph, *generations], reference, strict=True):
        assert row.tokens == until_end(tokens)


@pytest.mark.parametrize("case", CASES)
def test_beam_search(case):
    reference = expected(case)
    beams = Beams(width=4, returned=2, early_stopping=True)
    with Client(transport=NumpyTransport(GOLDEN / case)) as client:
        generations = client.generate(prompts(case), max_new_tokens=10, beams=beams)
    sequences = [s for best in generations for s in (best, *best.alternatives)]
    for s, tokens in zip(sequences, reference["beam4_sequences"], strict=True):
        assert s.tokens == until_end(tokens)
    np.testing.assert_allclose(
        [s.score for s in sequences], reference["beam4_scores"], atol=1e-4
    )

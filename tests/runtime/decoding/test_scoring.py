"""Scores and embeddings: chunks, common prefixes, likeliest tokens, both contracts."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optserve.runtime import AsyncClient, Client, IncompatibleModel, InvalidRequest
from optserve.runtime.decoding.scored_text import shared_prefixes
from optserve.runtime.errors import VersionGone

from tests.runtime.numpy_model import GOLDEN, AsyncNumpy, NumpyOPT, NumpyTransport

MODEL = NumpyOPT(GOLDEN / "pre_ln")
LONG = [[2, *range(4, 4 + n)] for n in (3, 8, 9, 30, 39)]
BUCKETS = {"prompt_buckets": [4, 8], "cache_buckets": [16, 64]}
OPENING = [2, *range(90, 126), 7]
FEW_SHOT = [[*OPENING, 5 + i, 60, 61 + i % 2] for i in range(6)]


def brute_force(tokens) -> np.ndarray:
    """Log-probabilities [T,V] of what follows each token, of the whole text at once."""
    logits = MODEL.logits(
        MODEL.hidden(np.array(tokens), np.zeros((0, 3, 2, 4, 8), np.float32))[0]
    ).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def scored(texts, transport=None, **options):
    transport = transport or NumpyTransport()
    with Client(transport=transport) as client:
        results = client.score(texts, **options)
    return results, [c for c in transport.calls if c.signature != "describe"]


def check(results, texts, top: int) -> None:
    for score, tokens in zip(results, texts, strict=True):
        assert score.tokens == tokens and np.isnan(score.logprobs[0])
        before = brute_force(tokens)[:-1]
        expected = before[np.arange(len(before)), tokens[1:]]
        np.testing.assert_allclose(score.logprobs[1:], expected, atol=1e-5)
        if not top:
            assert not score.top_logprobs and np.isnan(score.greedy_agreement)
            continue
        assert score.top_logprobs[0] == []
        assert score.greedy == (before.argmax(-1) == tokens[1:]).tolist()
        for step, row in zip(score.top_logprobs[1:], before, strict=True):
            ids = np.argsort(-row)[:top]
            assert [i for i, _ in step] == ids.tolist()
            np.testing.assert_allclose([x for _, x in step], row[ids], atol=1e-5)


@pytest.mark.parametrize("top", [0, 1, 5])
@pytest.mark.parametrize(
    "options",
    [{}, BUCKETS, {**BUCKETS, "batch_sizes": [1, 3]}, {"prompt_buckets": [1]}],
)
def test_scores_are_those_of_whole_texts(options, top):
    texts = [*LONG, *FEW_SHOT, [2], LONG[2]]
    results, _ = scored(texts, NumpyTransport(**options), top_logprobs=top)
    check(results, texts, top)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 40), st.lists(st.integers(4, 9), min_size=1, max_size=20)
        ),
        max_size=6,
    )
)
def test_any_mix_of_common_beginnings(parts):
    texts = [OPENING[:shared] + rest for shared, rest in parts]
    results, _ = scored(texts, NumpyTransport(**BUCKETS), top_logprobs=2)
    check(results, texts, 2)


def test_long_texts_go_in_chunks_that_overlap_by_one_token():
    results, calls = scored([LONG[-1]], NumpyTransport(**BUCKETS))
    check(results, [LONG[-1]], 0)
    fed = [int(c.inputs["input_length"][0]) for c in calls]
    cached = [int(c.inputs["cache_length"][0]) for c in calls]
    assert fed == [8, 8, 8, 8, 8, 5] and cached == [0, 7, 14, 21, 28, 35]
    assert [c.outputs for c in calls[:-1]] == [()] * 5
    assert calls[-1].outputs == ("logprobs",)


def test_a_common_beginning_is_computed_once():
    texts = [*FEW_SHOT, [2, 9, 9]]
    results, calls = scored(texts)
    check(results, texts, 0)
    fed = [c.inputs["input_length"].tolist() for c in calls]
    # The text by itself, the opening, and the rests with the last token of it.
    assert fed == [[3], [len(OPENING)], [4] * 6]
    assert calls[2].inputs["cache_length"].tolist() == [len(OPENING) - 1] * 6
    assert calls[1].outputs == () and calls[2].outputs == ("logprobs",)


def test_which_texts_share_a_beginning():
    a, b = list(range(100)), list(range(200, 300))
    assert shared_prefixes([[*a, 1], b, [*a, 2], [*a, 2, 3]]) == [
        (0, [1]),
        (100, [0, 2, 3]),
    ]
    assert shared_prefixes([[*a[:31], 1], [*a[:31], 2]]) == [(0, [0, 1])]
    assert shared_prefixes([a, a]) == [(0, []), (100, [0, 1])]
    # 40 tokens are not worth giving up the 100 that two of them share
    assert shared_prefixes([[*a, 1], [*a, 2], [*a[:40], 500, 1]]) == [
        (0, [2]),
        (100, [0, 1]),
    ]


def test_a_version_that_goes_away_between_chunks():
    transport = NumpyTransport(**BUCKETS)

    def replaced(call):
        if call.signature == "score" and len(transport.calls) == 4:
            transport.versions = {2: transport.model}
        if call.version == 1 and 1 not in transport.versions:
            raise VersionGone("version 1 is gone", "NOT_FOUND")

    transport.before = replaced
    results, calls = scored([LONG[-1], *FEW_SHOT], transport, top_logprobs=3)
    check(results, [LONG[-1], *FEW_SHOT], 3)
    assert {c.version for c in calls if c.inputs["cache_length"].any()} == {1, 2}


def test_long_texts_are_scored_by_few_rows_a_call(monkeypatch):
    limit = "optserve.runtime.decoding.scoring._LOGITS_LIMIT"
    monkeypatch.setattr(limit, 4 * 128 * 50)
    texts = [[2, *range(4 + i, 4 + i + n)] for i, n in enumerate((7,) * 7 + (39,) * 2)]
    results, calls = scored(texts)
    check(results, texts, 0)
    shapes = [c.inputs["input_ids"].shape for c in calls]
    assert shapes == [(6, 8), (1, 8), (1, 40), (1, 40)]


@pytest.mark.parametrize("version", [1, 2])
def test_embeddings_and_their_means(version):
    transport = NumpyTransport(prompt_buckets=[4, 8], contract_version=version)
    with Client(transport=transport) as client:
        states, means = client.embed(LONG), client.embed(LONG, pooled=True)
    for tokens, state, mean in zip(LONG, states, means, strict=True):
        empty = np.zeros((0, 3, 2, 4, 8), np.float32)
        expected = MODEL.hidden(np.array(tokens), empty)[0]
        np.testing.assert_allclose(state, expected, atol=1e-5)
        np.testing.assert_allclose(mean, expected.mean(0), atol=1e-5)
    assert {s for _, s in transport.shapes("input_ids")} == {4, 16, 32, 40}
    assert {c.outputs for c in transport.calls if c.signature == "embed"} == {()}


def test_an_export_of_version_1_scores_whole_texts_and_says_what_it_lacks():
    transport = NumpyTransport(contract_version=1, **BUCKETS)
    texts = [*LONG, *FEW_SHOT]
    results, calls = scored(texts, transport)
    check(results, texts, 0)
    assert not any("cache" in call.inputs for call in calls)
    assert {c.inputs["input_ids"].shape[1] for c in calls} == {4, 16, 32, 40, 48}
    with (
        Client(transport=transport) as client,
        pytest.raises(IncompatibleModel, match="version 1, whose scores have no"),
    ):
        client.score(texts, top_logprobs=1)


@pytest.mark.parametrize("count", [-1, 6, 1.5])
def test_likeliest_tokens_are_five_at_most(count):
    with (
        Client(transport=NumpyTransport()) as client,
        pytest.raises(InvalidRequest, match="top_logprobs must be"),
    ):
        client.score([[2, 5]], top_logprobs=count)


def test_the_async_client_does_the_same():
    async def go():
        async with AsyncClient(transport=AsyncNumpy(**BUCKETS)) as client:
            scores = await asyncio.gather(
                *(client.score([text], top_logprobs=2) for text in LONG)
            )
            return [score for (score,) in scores], await client.embed(LONG, pooled=True)

    scores, means = asyncio.run(go())
    check(scores, LONG, 2)
    with Client(transport=NumpyTransport()) as client:
        for actual, expected in zip(
            means, client.embed(LONG, pooled=True), strict=True
        ):
            np.testing.assert_allclose(actual, expected, atol=1e-5)

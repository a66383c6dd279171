"""The loop's rules: sizes, chunks, ends, constraints, beams."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from optserve.runtime import (
    Beams,
    Client,
    Constraints,
    InvalidRequest,
    Sampling,
)

from tests.runtime.numpy_model import (
    GOLDEN,
    MIXED,
    NumpyOPT,
    NumpyTransport,
    one_by_one,
)
from tests.runtime.small_tokenizer import SMALL_TOKENIZER

WARM = Sampling(temperature=1.2, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=9)


@functools.cache
def alone(sampling: Sampling | None) -> list[list[int]]:
    """What each of the prompts gives by itself."""
    return one_by_one(max_new_tokens=20, sampling=sampling)


@pytest.mark.parametrize("sampling", [None, WARM])
@pytest.mark.parametrize("generate", [(), (1, 3, 8), (16,)])
@pytest.mark.parametrize(
    "buckets",
    [
        {},
        {"prompt_buckets": [4, 8], "cache_buckets": [16, 32, 64]},
        {"prompt_buckets": [6], "cache_buckets": [64], "batch_sizes": [1, 4]},
        {"batch_sizes": [3]},
    ],
)
def test_tokens_depend_on_the_prompt_alone(sampling, generate, buckets):
    transport = NumpyTransport(generate=generate, **buckets)
    with Client(transport=transport) as client:
        generations = client.generate(MIXED, max_new_tokens=20, sampling=sampling)
        streamed = [
            [
                t
                for chunk in client.stream(p, max_new_tokens=20, sampling=sampling)
                for t in chunk.tokens
            ]
            for p in MIXED
        ]
    expected = alone(sampling)
    assert [g.tokens for g in generations] == expected
    assert streamed == expected


def test_long_prompts_go_in_pieces():
    transport = NumpyTransport(prompt_buckets=[4, 8], cache_buckets=[16, 64])
    with Client(transport=transport) as client:
        client.generate([list(range(4, 34))], max_new_tokens=1)
    calls = [c for c in transport.calls if c.signature in ("prefill", "decode")]
    assert [c.signature for c in calls] == ["prefill", "decode", "decode", "decode"]
    assert [int(c.inputs["input_length"][0]) for c in calls] == [8, 8, 8, 6]
    assert {c.outputs for c in calls} == {()}


def test_streams_start_with_few_tokens_a_call_and_go_on_with_more():
    transport = NumpyTransport(generate=(1, 2, 4, 16))
    with Client(transport=transport) as client:
        sizes = [
            len(chunk.tokens)
            for chunk in client.stream([2, 5], max_new_tokens=31, stop_token_ids=[])
        ]
        assert sizes == [1, 4, 16, 10]
        client.generate([[2, 5]], max_new_tokens=31, stop_token_ids=[])
    assert [c.signature for c in transport.calls[-2:]] == ["generate_16"] * 2
    for call in transport.calls:
        if "max_new_tokens" in call.inputs:
            size = int(call.signature.split("_")[1])
            assert size <= 4 * call.inputs["max_new_tokens"][0]


def test_a_row_that_ends_makes_room_for_the_next():
    transport = NumpyTransport()
    with Client(transport=transport, max_rows=2) as client:
        actual = list(
            client.generate_many(([2, 4 + i] for i in range(9)), max_new_tokens=3)
        )
        assert sorted(g.index for g in actual) == list(range(9))
        assert max(shape[0] for shape in transport.shapes("input_ids")) == 2
        one = client.generate([[2, 8]], max_new_tokens=3)[0]
    assert next(g for g in actual if g.index == 4).tokens == one.tokens


# --- ends --------------------------------------------------------------------


def continuation(**options):
    transport = NumpyTransport(tokenizer=SMALL_TOKENIZER, generate=(4, 8))
    with Client(transport=transport) as client:
        options.setdefault("stop_token_ids", [])
        stream = client.stream("to be", max_new_tokens=24, **options)
        return "".join(chunk.text for chunk in stream), stream.generation


def test_stop_strings_end_the_text_before_them_and_never_show():
    whole, unstopped = continuation(sampling=WARM)
    assert len(whole) == 12 and unstopped.finish_reason == "length"
    for begin in range(3, 9):
        stop = whole[begin : begin + 3]
        shown, result = continuation(sampling=WARM, stop=["never this", stop])
        assert shown == result.text == whole[: whole.index(stop)]
        assert (result.finish_reason, result.stopped_by) == ("stop", stop)
        assert result.tokens == unstopped.tokens[: len(result.tokens)]
        assert len(result.logprobs) == len(result.tokens)


def test_the_end_token_and_others_given():
    _, unstopped = continuation()
    token = unstopped.tokens[5]
    _, result = continuation(stop_token_ids=[token])
    assert result.tokens == unstopped.tokens[: unstopped.tokens.index(token) + 1]
    assert (result.finish_reason, result.stopped_by) == ("stop", token)


def test_cancelling_a_stream_ends_it_with_a_last_piece():
    with Client(transport=NumpyTransport()) as client:
        stream = client.stream([2, 5], max_new_tokens=30, stop_token_ids=[])
        next(stream), next(stream)
        stream.cancel()
        (last,) = list(stream)
        assert last.finish_reason == "cancelled" and last.tokens == []
        assert len(stream.generation.tokens) == 2


def test_several_samples_share_the_prompt_and_the_likeliest_comes_first():
    transport = NumpyTransport()
    with Client(transport=transport) as client:
        (best,) = client.generate(
            [MIXED[1]], max_new_tokens=6, sampling=WARM, samples=4
        )
        samples = [best, *best.alternatives]
        again = [
            client.generate(
                [MIXED[1]],
                max_new_tokens=6,
                sampling=Sampling(**{**vars(WARM), "seed": sample.seed}),
            )[0].tokens
            for sample in samples
        ]
    assert [s.tokens for s in samples] == again
    assert len({tuple(s.tokens) for s in samples}) > 1
    scores = [s.score for s in samples]
    assert scores == sorted(scores, reverse=True)
    assert sorted(s.seed for s in samples) == [9, 10, 11, 12]
    assert [c.signature for c in transport.calls].count("prefill") == 1 + 4


def test_logprobs_top_logprobs_echo_and_score_agree():
    model = NumpyOPT(GOLDEN / "pre_ln")
    prompt = MIXED[2]
    with Client(transport=NumpyTransport()) as client:
        (g,) = client.generate(
            [prompt], max_new_tokens=5, sampling=WARM, top_logprobs=3, echo=True
        )
        (score,) = client.score([prompt + g.tokens])
    hidden, _ = model.hidden(
        np.array(prompt + g.tokens), np.zeros((0, 3, 2, 4, 8), np.float32)
    )
    logits = model.logits(hidden).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    whole = prompt + g.tokens
    expected = [logprobs[i - 1, token] for i, token in enumerate(whole)]
    np.testing.assert_allclose(score.logprobs[1:], expected[1:], atol=1e-5)
    np.testing.assert_allclose(g.logprobs, expected[len(prompt) :], atol=1e-5)
    np.testing.assert_allclose(
        g.prompt_logprobs[1:], expected[1 : len(prompt)], atol=1e-5
    )
    assert np.isnan(score.logprobs[0]) and np.isnan(g.prompt_logprobs[0])
    assert score.perplexity == pytest.approx(np.exp(-np.mean(expected[1:])), rel=1e-4)
    for i, step in enumerate(g.top_logprobs):
        row = logprobs[len(prompt) + i - 1]
        assert [token for token, _ in step] == np.argsort(-row)[:3].tolist()


def test_constraints_hold():
    with Client(transport=NumpyTransport(tokenizer=SMALL_TOKENIZER)) as client:

        def run(**rules):
            return client.generate(
                [[2, 5, 6]], max_new_tokens=20, constraints=Constraints(**rules)
            )[0].tokens

        free = run()
        tokens = run(no_repeat_ngram=2)
        pairs = list(zip([2, 5, 6, *tokens], [5, 6, *tokens], strict=False))
        assert len(pairs) == len(set(pairs))
        assert free[1] not in run(bad_words=[[free[1]]])
        word = free[0:2]
        tokens = run(bad_words=[word])
        assert all(tokens[i : i + 2] != word for i in range(len(tokens)))
        assert "a" not in client.tokenizer.decode(run(bad_words=["a"]))
        forced = run(forced={0: 50, 3: 60})
        assert (forced[0], forced[3]) == (50, 60)
        assert run(logit_bias={77: 1e9}) == [77] * 20
        ended = run(logit_bias={2: 1e4}, min_new_tokens=4)
        assert len(ended) == 5 and ended[-1] == 2 and 2 not in ended[:-1]


def test_processors_see_all_tokens_and_are_checked():
    seen = []

    def prefer_next(tokens, logits):
        seen.append(tokens.tolist())
        out = np.full_like(logits, -np.inf)
        out[tokens[-1] + 1] = 0
        return out

    with Client(transport=NumpyTransport(generate=(4,))) as client:
        (g,) = client.generate([[2, 5]], max_new_tokens=3, processors=[prefer_next])
        assert g.tokens == [6, 7, 8] and seen == [[2, 5], [2, 5, 6], [2, 5, 6, 7]]
        with pytest.raises(InvalidRequest, match="shape"):
            client.generate([[2]], max_new_tokens=1, processors=[lambda t, x: x[:3]])
        with pytest.raises(InvalidRequest, match="leave no token"):
            client.generate(
                [[2]], max_new_tokens=1, processors=[lambda t, x: x - np.inf]
            )


def test_beams_of_width_one_are_greedy_and_cost_one_prompt():
    transport = NumpyTransport()
    with Client(transport=transport) as client:
        (greedy,) = client.generate([MIXED[1]], max_new_tokens=8)
        (single,) = client.generate([MIXED[1]], max_new_tokens=8, beams=Beams(width=1))
        assert single.tokens == greedy.tokens
        before = len(transport.calls)
        client.generate([MIXED[1]], max_new_tokens=8, beams=Beams(width=4))
        assert transport.calls[before].inputs["input_ids"].shape[0] == 1
        assert {c.inputs["input_ids"].shape for c in transport.calls[before + 1 :]} <= {
            (n, 1) for n in (1, 2, 3, 4)
        }

"""The loop's rules: sizes, pieces, ends, versions, deadlines."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from optserve.runtime import (
    Beams,
    Cancelled,
    Client,
    Constraints,
    DeadlineExceeded,
    IncompatibleModel,
    InvalidRequest,
    MalformedReply,
    PromptTooLong,
    Sampling,
    ServerError,
    VersionGone,
    unpadded,
)
from optserve.runtime.model import ServedModel
from optserve.runtime.transport import Call, Reply

from .numpy_model import GOLDEN, NumpyOPT, NumpyTransport
from .small_tokenizer import SMALL_TOKENIZER

WARM = Sampling(temperature=1.2, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=9)
MIXED = [[2, *range(4, 4 + n)] for n in (1, 17, 5, 30, 2, 9, 22)]


def one_by_one(**options) -> list[list[int]]:
    """Each prompt alone, step by step, without any bucket."""
    with Client(transport=NumpyTransport(), max_rows=1) as client:
        return [client.generate([p], **options)[0].tokens for p in MIXED]


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
        found = client.generate(MIXED, max_new_tokens=20, sampling=sampling)
        streamed = [
            [
                t
                for piece in client.stream(p, max_new_tokens=20, sampling=sampling)
                for t in piece.tokens
            ]
            for p in MIXED
        ]
    expected = one_by_one(max_new_tokens=20, sampling=sampling)
    assert [g.tokens for g in found] == expected
    assert streamed == expected


def test_long_prompts_go_in_pieces():
    transport = NumpyTransport(prompt_buckets=[4, 8], cache_buckets=[16, 64])
    with Client(transport=transport) as client:
        client.generate([list(range(4, 34))], max_new_tokens=1)
    calls = [c for c in transport.calls if c.signature in ("prefill", "decode")]
    assert [c.signature for c in calls] == ["prefill", "decode", "decode", "decode"]
    assert [int(c.inputs["input_length"][0]) for c in calls] == [8, 8, 8, 6]
    assert [c.outputs for c in calls[:3]] == [("new_cache",)] * 3


def test_streams_start_with_few_tokens_a_call_and_go_on_with_more():
    transport = NumpyTransport(generate=(1, 2, 4, 16))
    with Client(transport=transport) as client:
        sizes = [
            len(piece.tokens)
            for piece in client.stream([2, 5], max_new_tokens=31, stop_token_ids=[])
        ]
        assert sizes[:5] == [1, 2, 4, 4, 16] and sum(sizes) == 31
        client.generate([[2, 5]], max_new_tokens=31, stop_token_ids=[])
    assert [c.signature for c in transport.calls[-2:]] == ["generate_16"] * 2
    for call in transport.calls:
        if "max_new_tokens" in call.inputs:
            size = int(call.signature.split("_")[1])
            assert size <= 4 * call.inputs["max_new_tokens"][0]


def test_a_row_that_ends_makes_room_for_the_next():
    transport = NumpyTransport()
    with Client(transport=transport, max_rows=2) as client:
        found = list(
            client.generate_many(([2, 4 + i] for i in range(9)), max_new_tokens=3)
        )
        assert sorted(g.index for g in found) == list(range(9))
        assert max(shape[0] for shape in transport.shapes("input_ids")) == 2
        one = client.generate([[2, 8]], max_new_tokens=3)[0]
    assert next(g for g in found if g.index == 4).tokens == one.tokens


# --- ends ---------------------------------------------------------------------------


def continuation(**options):
    transport = NumpyTransport(tokenizer=SMALL_TOKENIZER, generate=(4, 8))
    with Client(transport=transport) as client:
        options.setdefault("stop_token_ids", [])
        stream = client.stream("to be", max_new_tokens=24, **options)
        return "".join(piece.text for piece in stream), stream.generation


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
    want = [logprobs[i - 1, token] for i, token in enumerate(whole)]
    np.testing.assert_allclose(score.logprobs[1:], want[1:], atol=1e-5)
    np.testing.assert_allclose(g.logprobs, want[len(prompt) :], atol=1e-5)
    np.testing.assert_allclose(g.prompt_logprobs[1:], want[1 : len(prompt)], atol=1e-5)
    assert np.isnan(score.logprobs[0]) and np.isnan(g.prompt_logprobs[0])
    assert score.perplexity == pytest.approx(np.exp(-np.mean(want[1:])), rel=1e-4)
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


# --- versions, failures, deadlines ----------------------------------------------------


@pytest.mark.parametrize("sampling", [None, WARM])
@pytest.mark.parametrize("generate", [(), (2,)])
def test_a_version_that_goes_away_costs_a_rebuild_and_no_token(sampling, generate):
    transport = NumpyTransport(generate=generate)
    with Client(transport=transport) as client:
        stream = client.stream(MIXED[2], max_new_tokens=12, sampling=sampling)
        pieces = [next(stream), next(stream)]
        transport.versions = {2: transport.model}
        pieces += list(stream)
        result = stream.generation
    assert [t for p in pieces for t in p.tokens] == result.tokens
    assert result.tokens == one_by_one(max_new_tokens=12, sampling=sampling)[2]
    assert (result.model_version, result.rebuilds) == (2, 1)
    assert (pieces[0].model_version, pieces[-1].model_version) == (1, 2)


def test_a_cache_is_never_given_to_another_version():
    transport = NumpyTransport()
    with Client(transport=transport) as client:
        stream = client.stream([2, 5], max_new_tokens=4, stop_token_ids=[])
        next(stream)
        transport.versions[2] = transport.model  # newer, the old one still served
        list(stream)
        assert stream.generation.model_version == 1
        assert {c.version for c in transport.calls if c.signature == "decode"} == {1}
        (fresh,) = client.generate([[2, 5]], max_new_tokens=4)
        assert fresh.model_version == 2 and fresh.rebuilds == 0


def test_beams_survive_a_version_swap():
    beams = Beams(width=3)
    transport = NumpyTransport()

    def swap(call: Call) -> None:
        if len(transport.calls) == 5:
            transport.versions = {2: transport.model}

    with Client(transport=transport) as client:
        (want,) = client.generate([MIXED[2]], max_new_tokens=8, beams=beams)
        transport.calls.clear()
        transport.before = swap
        (found,) = client.generate([MIXED[2]], max_new_tokens=8, beams=beams)
    assert found.tokens == want.tokens and found.rebuilds == 1


def test_a_version_that_keeps_going_away_is_an_error():
    transport = NumpyTransport()

    def gone(call: Call) -> None:
        if call.signature != "describe":
            raise VersionGone("gone again", "NOT_FOUND")

    transport.before = gone
    with Client(transport=transport) as client, pytest.raises(VersionGone):
        client.generate([[2, 5]], max_new_tokens=3)


def test_each_call_gets_what_is_left_of_the_deadline():
    transport = NumpyTransport(before=lambda call: time.sleep(0.01))
    with Client(transport=transport) as client:
        client.generate([[2]], max_new_tokens=3, stop_token_ids=[], timeout=5.0)
        left = transport.timeouts[-3:]
        assert left == sorted(left, reverse=True) and 4.8 < left[-1] < left[0] <= 5.0
        assert left[0] - left[-1] > 0.019
        with pytest.raises(DeadlineExceeded):
            client.generate([[2]], max_new_tokens=60, stop_token_ids=[], timeout=0.1)


def test_failures_and_lies_of_a_server():
    transport = NumpyTransport()
    with Client(transport=transport) as client:

        def answer(**outputs):
            transport.call = lambda call, timeout=None: Reply(outputs, version=1)
            client.generate([[2, 5]], max_new_tokens=2)

        good = np.zeros((1, 8, 3, 2, 4, 8), np.float32)
        logits = np.zeros((1, 128), np.float32)
        for outputs in (
            {},
            {"logits": logits},
            {"logits": logits[:, :5], "new_cache": good},
            {"logits": logits + np.nan, "new_cache": good},
            {"logits": logits, "new_cache": good[:, :1]},
            {"logits": logits, "new_cache": good[..., :5]},
            {"logits": logits, "new_cache": good.astype(np.float64)},
            {"logits": logits[:0], "new_cache": good[:0]},
        ):
            with pytest.raises(MalformedReply):
                answer(**outputs)

    transport = NumpyTransport(generate=(4,))
    with Client(transport=transport) as client:
        good = np.zeros((1, 16, 3, 2, 4, 8), np.float32)
        for tokens, count in (
            [[-1] * 4, 0],
            [[5] * 4, 9],
            [[500] * 4, 2],
            [[-1] * 4, 1],
        ):
            with pytest.raises(MalformedReply):
                answer(
                    tokens=np.array([tokens], np.int32),
                    count=np.array([count], np.int32),
                    logprobs=np.zeros((1, 4), np.float32),
                    new_cache=good,
                )


# --- connecting and refusing ----------------------------------------------------------


def test_models_that_are_not_ours_are_refused_with_the_reason():
    transport = NumpyTransport()
    transport.manifest.signatures.remove("describe")
    with pytest.raises(IncompatibleModel, match="optserve export"):
        Client(transport=transport)
    assert transport.closed
    transport = NumpyTransport(contract_version=7)
    with pytest.raises(IncompatibleModel, match="contract version 7"):
        Client(transport=transport)
    transport = NumpyTransport()
    transport.manifest.signatures.remove("score")
    with (
        Client(transport=transport) as client,
        pytest.raises(IncompatibleModel, match="no `score` signature"),
    ):
        client.score([[2, 5]])
    for outputs in ({}, {"manifest": np.array([b"[]"], object)}):
        transport.call = lambda call, timeout=None, o=outputs: Reply(o)
        with pytest.raises(MalformedReply):
            Client(transport=transport)


def test_a_compiled_model_is_tried_at_connect():
    transport = NumpyTransport()
    transport.manifest = replace(transport.manifest, compiler="xla")

    def switched_off(call: Call) -> None:
        if call.signature != "describe":
            raise IncompatibleModel("start it with --xla_cpu_compilation_enabled=true")

    transport.before = switched_off
    with pytest.raises(IncompatibleModel, match="xla_cpu_compilation_enabled"):
        Client(transport=transport)
    transport.before = None
    with Client(transport=transport) as client:
        assert [c.signature for c in transport.calls[-2:]] == ["describe", "prefill"]
        assert client.describe().compiler == "xla"


def test_readiness_is_waited_for_where_asked():
    transport = NumpyTransport()
    waited = []
    transport.wait_until_ready = waited.append
    Client(transport=transport)
    Client(transport=transport, wait=4.0)
    assert waited == [4.0]


def test_what_was_asked_is_checked_before_anything_is_sent():
    transport = NumpyTransport()
    with Client(transport=transport) as client:
        count = len(transport.calls)
        for prompts, options, sentence in (
            ([[]], {}, "at least one"),
            ([[2, 128]], {}, "0 to 127"),
            ([[-1]], {}, "0 to 127"),
            ([2, 5], {}, "list of prompts"),
            ([[2, "x"]], {}, "token ids"),
            (["text"], {}, "tokenizer"),
            ([[2]], {"stop": ["x"]}, "tokenizer"),
            ([[2]], {"stop_token_ids": [400]}, "stop_token_ids"),
            ([[2]], {"constraints": Constraints(logit_bias={400: 1.0})}, "logit_bias"),
            ([[2]], {"constraints": Constraints(forced={0: -4})}, "forced"),
            ([[2]], {"samples": 2}, "temperature"),
            ([[2]], {"beams": Beams(), "sampling": WARM}, "one of the two"),
            ([[2]], {"timeout": 0}, "timeout"),
        ):
            with pytest.raises(InvalidRequest, match=sentence):
                client.generate(prompts, max_new_tokens=2, **options)
        with pytest.raises(PromptTooLong, match="64 positions"):
            client.generate([[2] * 60], max_new_tokens=5)
        with pytest.raises(PromptTooLong):
            client.score([[2] * 65])
        assert len(transport.calls) == count
        (kept,) = client.generate(
            [[2, *range(4, 64), 5, 5]], max_new_tokens=4, truncate="left"
        )
        assert kept.prompt_tokens == 60
        first = transport.calls[count].inputs["input_ids"][0]
        assert first[:2].tolist() == [2, 7]


def test_calls_whose_messages_would_pass_two_gigabytes_are_not_made():
    config = {"num_hidden_layers": 96, "num_attention_heads": 96, "hidden_size": 12288}
    manifest = replace(NumpyTransport().manifest, config=config, max_positions=2048)
    model = ServedModel(manifest)  # 9.4 MB of cache for each token
    row = 96 * 2 * 12288 * 4
    assert model.largest_piece * row < 2**31 < (model.largest_piece + 1) * row
    assert model.rows_that_fit(8, 64) == 3
    with pytest.raises(InvalidRequest, match="2 GiB"):
        model.rows_that_fit(8, 512)


def test_a_closed_client_refuses():
    client = Client(transport=NumpyTransport())
    client.close()
    client.close()
    with pytest.raises(Cancelled):
        client.generate([[2]], max_new_tokens=1)


def test_other_refusals_reach_the_caller():
    transport = NumpyTransport()

    def refuse(call: Call) -> None:
        raise ServerError("no", "PERMISSION_DENIED")

    with Client(transport=transport) as client:
        transport.before = refuse
        with pytest.raises(ServerError, match="no"):
            client.generate([[2]], max_new_tokens=1)


def test_padded_batches_are_compacted():
    ids = [[1, 1, 5, 6], [7, 8, 1, 1]]
    assert unpadded(ids, [[0, 0, 1, 1], [1, 1, 0, 0]]) == [[5, 6], [7, 8]]
    with pytest.raises(InvalidRequest, match="one shape"):
        unpadded(ids, [[1]])


def test_counters_count():
    transport = NumpyTransport(generate=(4,))
    with Client(transport=transport) as client:
        before = len(transport.calls)
        first, second = client.generate([[2, 5], [2, 6]], max_new_tokens=8)
        calls = transport.calls[before:]
    assert first.counters.calls == len(calls) == 2
    assert 0 < first.counters.first_token_seconds < first.counters.seconds
    assert first.bytes_sent == second.bytes_sent > 0
    assert first.tokens_per_second > 0 and first.bytes_received > 0


def test_one_client_serves_several_threads():
    with Client(transport=NumpyTransport(generate=(2, 4))) as client:

        def work(i: int) -> list[int]:
            options = {"max_new_tokens": 12, "sampling": WARM}
            return client.generate([MIXED[i % len(MIXED)]], **options)[0].tokens

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(work, range(24)))
    expected = one_by_one(max_new_tokens=12, sampling=WARM)
    assert found == [expected[i % len(MIXED)] for i in range(24)]

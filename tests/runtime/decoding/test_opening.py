"""What is checked at connect and before anything is sent; refusals; counters."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from optserve.runtime import (
    AsyncClient,
    Beams,
    Cancelled,
    Client,
    Constraints,
    IncompatibleModel,
    InvalidRequest,
    MalformedReply,
    PromptTooLong,
    Sampling,
    ServerError,
    unpadded,
)
from optserve.runtime.decoding.served_model import ServedModel
from optserve.runtime.transports.base import Call, Reply

from tests.runtime.numpy_model import MIXED, NumpyTransport, one_by_one

WARM = Sampling(temperature=1.2, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=9)


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
        nothing = dict.fromkeys(range(128), -math.inf)
        for prompts, options, sentence in (
            ([[]], {}, "at least one"),
            ([[2, 128]], {}, "0 to 127"),
            ([[-1]], {}, "0 to 127"),
            ([2, 5], {}, "list of prompts"),
            ([[2, "x"]], {}, "token ids"),
            ([[2, 2.5]], {}, "whole numbers"),
            (["text"], {}, "tokenizer"),
            ([[2]], {"stop": ["x"]}, "tokenizer"),
            ([[2]], {"stop_token_ids": [400]}, "stop_token_ids"),
            ([[2]], {"constraints": Constraints(logit_bias={400: 1.0})}, "logit_bias"),
            ([[2]], {"constraints": Constraints(forced={0: -4})}, "forced"),
            ([[2]], {"constraints": Constraints(logit_bias=nothing)}, "every token"),
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
    assert (
        model.largest_prompt_chunk * row
        < 2**31
        < (model.largest_prompt_chunk + 1) * row
    )
    assert model.rows_that_fit(8, 64) == 3
    with pytest.raises(InvalidRequest, match="2 GiB"):
        model.rows_that_fit(8, 512)


@pytest.mark.parametrize("sizes", [{}, {"batch_sizes": [1, 2, 8]}])
def test_calls_stay_within_the_tokens_that_the_export_takes(sizes):
    options = {"max_new_tokens": 6, "stop_token_ids": []}
    transport = NumpyTransport(generate=(2,), max_tokens_per_call=64, **sizes)
    with Client(transport=transport) as client:
        generated = [g.tokens for g in client.generate(MIXED, **options)]
        scores = [s.logprobs[1:] for s in client.score(MIXED)]
        states = client.embed(MIXED)
    assert generated == one_by_one(**options)
    assert max(shape[0] for shape in transport.shapes("input_ids")) > 1
    with Client(transport=NumpyTransport(), max_rows=1) as client:
        for text, score, state in zip(MIXED, scores, states, strict=True):
            assert client.score([text])[0].logprobs[1:] == pytest.approx(score)
            np.testing.assert_allclose(client.embed([text])[0], state, 1e-4, 1e-5)


def test_a_text_beyond_what_the_export_takes_is_refused_before_it_is_sent():
    transport = NumpyTransport(max_tokens_per_call=16)
    with Client(transport=transport) as client:
        for ask in (client.score, client.embed):
            with pytest.raises(InvalidRequest, match="exceeds the 16 that this export"):
                ask([MIXED[3]])
        with pytest.raises(InvalidRequest, match="exceeds the 16 that this export"):
            client.generate([MIXED[3]], max_new_tokens=2)
    assert {c.signature for c in transport.calls} == {"describe"}


@pytest.mark.parametrize(
    "sizes",
    [
        {"batch_sizes": [4096], "prompt_buckets": [2_000_000]},
        {"batch_sizes": [4096], "prompt_buckets": [1, 2_000_000]},
    ],
)
def test_sizes_that_a_server_made_up_take_no_memory(sizes):
    """A manifest is told by a server: what a call is padded to is bounded as well."""
    model = NumpyTransport()
    config = model.manifest.config | {"num_hidden_layers": 1, "hidden_size": 4}
    sizes = sizes | {"max_positions": 2_000_000}
    model.manifest = replace(model.manifest, config=config, **sizes)
    with (
        pytest.raises(IncompatibleModel, match="call has 4096 rows of 2000000"),
        Client(transport=model) as client,
    ):
        client.generate([[2, 5]], max_new_tokens=2)
    assert {call.signature for call in model.calls} == {"describe"}


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


def test_tokens_that_came_in_one_call_tell_no_speed_between_them():
    options = {"max_new_tokens": 8, "stop_token_ids": []}
    with Client(transport=NumpyTransport(generate=(8,))) as client:
        (whole,) = client.generate([[2, 5]], **options)
        assert whole.counters.first_tokens == 8
        assert whole.tokens_per_second == pytest.approx(8 / whole.counters.seconds)
    with Client(transport=NumpyTransport(generate=(2,))) as client:
        (parts,) = client.generate([[2, 5]], **options)
    seconds = parts.counters.seconds - parts.counters.first_token_seconds
    assert parts.counters.first_tokens == 2
    assert parts.tokens_per_second == pytest.approx(6 / seconds)


def test_one_client_serves_several_threads():
    with Client(transport=NumpyTransport(generate=(2, 4))) as client:

        def work(i: int) -> list[int]:
            options = {"max_new_tokens": 12, "sampling": WARM}
            return client.generate([MIXED[i % len(MIXED)]], **options)[0].tokens

        with ThreadPoolExecutor(8) as pool:
            actual = list(pool.map(work, range(24)))
    expected = one_by_one(max_new_tokens=12, sampling=WARM)
    assert actual == [expected[i % len(MIXED)] for i in range(24)]


@pytest.mark.parametrize("name", ["max_active", "in_flight", "max_rows"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_one_are_refused(name, value):
    transport = NumpyTransport()
    with pytest.raises(InvalidRequest, match=f"{name} must be 1 or more, got {value}"):
        if name == "max_rows":
            Client(transport=transport, max_rows=value)
        else:
            AsyncClient(**{name: value})
    assert transport.closed == (name == "max_rows")

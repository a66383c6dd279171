"""The loop when versions go, servers fail or lie, and time runs out."""

from __future__ import annotations

import time

import numpy as np
import pytest
from optserve.runtime import (
    Beams,
    Client,
    DeadlineExceeded,
    IncompatibleModel,
    MalformedReply,
    Sampling,
    VersionGone,
)
from optserve.runtime.transports.base import Call, Reply

from tests.runtime.numpy_model import MIXED, NumpyTransport, one_by_one

WARM = Sampling(temperature=1.2, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=9)


@pytest.mark.parametrize("sampling", [None, WARM])
@pytest.mark.parametrize("generate", [(), (2,)])
def test_a_version_that_goes_away_costs_a_rebuild_and_no_token(sampling, generate):
    transport = NumpyTransport(generate=generate)
    with Client(transport=transport) as client:
        stream = client.stream(MIXED[2], max_new_tokens=12, sampling=sampling)
        chunks = [next(stream), next(stream)]
        transport.versions = {2: transport.model}
        chunks += list(stream)
        result = stream.generation
    assert [t for p in chunks for t in p.tokens] == result.tokens
    assert result.tokens == one_by_one(max_new_tokens=12, sampling=sampling)[2]
    assert (result.model_version, result.rebuilds) == (2, 1)
    assert (chunks[0].model_version, chunks[-1].model_version) == (1, 2)


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


def test_a_newer_version_need_not_have_the_signatures_of_the_older():
    transport = NumpyTransport(generate=(8,))
    with Client(transport=transport) as client:
        (expected,) = client.generate([MIXED[2]], max_new_tokens=9)
        transport.versions[2] = transport.model
        transport.manifest = NumpyTransport(generate=(2,)).manifest
        (generation,) = client.generate([MIXED[2]], max_new_tokens=9)
        assert (generation.tokens, generation.model_version) == (expected.tokens, 2)
        transport.manifest = NumpyTransport().manifest
        with pytest.raises(IncompatibleModel, match="no signature 'generate_2'"):
            client.generate([MIXED[2]], max_new_tokens=9)


def test_beams_survive_a_version_swap():
    beams = Beams(width=3)
    transport = NumpyTransport()

    def swap(call: Call) -> None:
        if len(transport.calls) == 5:
            transport.versions = {2: transport.model}

    with Client(transport=transport) as client:
        (expected,) = client.generate([MIXED[2]], max_new_tokens=8, beams=beams)
        transport.calls.clear()
        transport.before = swap
        (generation,) = client.generate([MIXED[2]], max_new_tokens=8, beams=beams)
    assert generation.tokens == expected.tokens and generation.rebuilds == 1


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

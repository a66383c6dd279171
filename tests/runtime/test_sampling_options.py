"""Options that contract version 2 brought: in the graph, or step by step without it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optserve.runtime import Client, Constraints, InvalidRequest, Sampling
from optserve.runtime.contract import tokens_per_call

from tests.runtime.numpy_model import MIXED, NumpyTransport

CLIENTS = {
    "version 2": NumpyTransport(generate=(2, 8), contract_version=2),
    "version 2, no generate": NumpyTransport(contract_version=2),
    "version 1": NumpyTransport(generate=(2, 8), contract_version=1),
}


def generated(name: str, **options):
    """The results of all prompts, and the names of the calls that gave them."""
    transport = CLIENTS[name]
    transport.calls.clear()
    with Client(transport=transport) as client:
        results = client.generate(MIXED[:4], max_new_tokens=7, **options)
    return results, [c.signature for c in transport.calls if c.signature != "describe"]


def told(results) -> list:
    return [(g.tokens, g.top_logprobs, g.finish_reason) for g in results]


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 20]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 1.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 2**64 - 1),
)
RULES = st.builds(
    Constraints,
    min_new_tokens=st.sampled_from([0, 3, 9]),
    logit_bias=st.dictionaries(
        st.integers(0, 127), st.sampled_from([-math.inf, -2.0, 8.0]), max_size=3
    ),
)


@settings(max_examples=25, deadline=None)
@given(sampling=SAMPLINGS, constraints=RULES, top=st.sampled_from([0, 1, 5]))
def test_the_same_tokens_in_the_graph_and_without_it(sampling, constraints, top):
    options = {"sampling": sampling, "constraints": constraints, "top_logprobs": top}
    options["stop_token_ids"] = [2, 40]
    expected, _ = generated("version 2, no generate", **options)
    for name in ("version 2", "version 1"):
        results, _ = generated(name, **options)
        for one, other in zip(told(results), told(expected), strict=True):
            assert one[0] == other[0] and one[2] == other[2]
            for step, likeliest in zip(one[1], other[1], strict=True):
                assert [i for i, _ in step] == [i for i, _ in likeliest]
                np.testing.assert_allclose(
                    [x for _, x in step], [x for _, x in likeliest], atol=1e-5
                )


NEW = {
    "min_p": {"sampling": Sampling(min_p=0.1, seed=1)},
    "presence": {"sampling": Sampling(presence_penalty=1.0, seed=1)},
    "frequency": {"sampling": Sampling(temperature=0, frequency_penalty=1.0)},
    "min_new_tokens": {"constraints": Constraints(min_new_tokens=3)},
    "logit_bias": {"constraints": Constraints(logit_bias={5: 1.0})},
    "top_logprobs": {"top_logprobs": 5},
}


@pytest.mark.parametrize("name", NEW)
def test_which_calls_an_option_takes(name):
    _, calls = generated("version 2", **NEW[name])
    assert all(tokens_per_call(call) for call in calls)
    _, calls = generated("version 1", **NEW[name])
    assert not any(tokens_per_call(call) for call in calls)


def test_an_export_of_version_1_generates_in_its_graph_as_before():
    warm = Sampling(temperature=1.2, top_p=0.9, repetition_penalty=1.2, seed=9)
    results, calls = generated("version 1", sampling=warm)
    assert all(tokens_per_call(call) for call in calls)
    assert told(results) == told(generated("version 2", sampling=warm)[0])
    transport = CLIENTS["version 1"]
    assert not any("min_p" in call.inputs for call in transport.calls)
    with Client(transport=transport) as client:
        (score,) = client.score([MIXED[1]])
        (states,) = client.embed([MIXED[1]])
    assert len(score.logprobs) == len(states) == len(MIXED[1])


def test_more_than_five_likeliest_are_counted_by_the_client():
    results, calls = generated("version 2", top_logprobs=6)
    assert not any(tokens_per_call(call) for call in calls)
    assert [len(step) for step in results[0].top_logprobs] == [6] * 7


def test_what_each_option_does():
    def tokens(**options):
        return generated("version 2", stop_token_ids=[], **options)[0][1].tokens

    free = tokens()
    assert len(set(free)) < len(free)  # greedy repeats itself, so penalties show
    penalty = Sampling(temperature=0, presence_penalty=2.0, frequency_penalty=2.0)
    assert len(set(tokens(sampling=penalty))) > len(set(free))
    assert tokens(sampling=Sampling(min_p=1.0, seed=3)) == free
    forbidden = Constraints(logit_bias={free[0]: -math.inf})
    assert free[0] not in tokens(constraints=forbidden)
    late = {"stop_token_ids": [free[0]], "constraints": Constraints(min_new_tokens=4)}
    result = generated("version 2", **late)[0][1]
    assert free[0] not in result.tokens[:4]


def test_streams_tell_the_likeliest_with_each_token():
    with Client(transport=CLIENTS["version 2"]) as client:
        stream = client.stream(MIXED[0], max_new_tokens=9, top_logprobs=2)
        for chunk in stream:
            assert len(chunk.top_logprobs) == len(chunk.tokens)
            for token, step in zip(chunk.tokens, chunk.top_logprobs, strict=True):
                assert len(step) == 2 and step[0][0] == token  # greedy
    assert len(stream.generation.top_logprobs) == len(stream.generation.tokens)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"min_p": 1.5}, "min_p must be 0 to 1"),
        ({"presence_penalty": 2.5}, "presence_penalty must be -2 to 2"),
        ({"frequency_penalty": math.nan}, "frequency_penalty must be -2 to 2"),
    ],
)
def test_wrong_values_are_refused_with_their_name(options, sentence):
    with pytest.raises(InvalidRequest, match=sentence):
        Sampling(**options)

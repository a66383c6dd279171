"""Option values at the edge: one clear sentence, and nothing is sent."""

from __future__ import annotations

import math

import numpy as np
import pytest
from optserve.runtime import (
    AsyncClient,
    Beams,
    Client,
    Constraints,
    Ejection,
    InvalidRequest,
    Keepalive,
    Limits,
    Retry,
    Sampling,
)
from optserve.runtime.options import GenerationOptions
from optserve.runtime.transports.connection import Connection

from .numpy_model import NumpyTransport

NAN, INF = math.nan, math.inf


def options(**keywords) -> GenerationOptions:
    return GenerationOptions(**{"max_new_tokens": 4, **keywords})


REFUSED = [
    (
        Sampling,
        {"temperature": (1e-50, 1e-7, 1e39, 1e300, NAN, INF, -1.0, "hot", None)},
    ),
    (Sampling, {"top_k": (99999999999, -1, 2**31, 1.5, NAN, "5", True)}),
    (Sampling, {"top_p": (0, 1e-50, 1e-320, 1.0001, -0.5, NAN, INF, "x")}),
    (Sampling, {"repetition_penalty": (0, 1e-50, 1e300, -1, NAN, INF)}),
    (Sampling, {"seed": (2**64, -(2**63) - 1, 0.5, "7")}),
    (options, {"max_new_tokens": (0, -1, 2**31, 10**30, 2.5, NAN, "9")}),
    (options, {"timeout": (0, -1, 1e300, NAN, INF, "soon")}),
    (options, {"samples": (0, 10**9, 1.5), "top_logprobs": (-1, 2**40, 0.5)}),
    (options, {"stop_token_ids": ([1.5], ["2"], [2**40], [True])}),
    (
        Beams,
        {"width": (0, 10**9, 2.5), "returned": (0, 5), "length_penalty": (NAN, INF)},
    ),
    (Constraints, {"no_repeat_ngram": (-1, 1.5, 2**40), "min_new_tokens": (-1, 2**40)}),
    (
        Constraints,
        {"logit_bias": ({5: NAN}, {5: INF}, {5: 1e300}, {0.5: 1.0}, {5: "x"})},
    ),
    (Constraints, {"forced": ({-1: 5}, {0: 0.5}, {0: 2**40})}),
    (Retry, {"connect": (-1, NAN, INF, 1e300), "recover": (-1, NAN, INF, 1e300)}),
    (Retry, {"first_wait": (NAN, INF), "longest_wait": (NAN, 1e300)}),
    (Retry, {"busy_rounds": (-1, 1.5, NAN)}),
    (Ejection, {"first": (0, NAN, INF), "longest": (0, NAN, 1e300)}),
    (Keepalive, {"interval": (0, NAN, 1e300), "timeout": (0, NAN, 1e300)}),
    (Limits, {"message": (0, 2**31, NAN), "expansion": (0, NAN, 2**70)}),
    (Connection, {"attempt_timeout": (0, -1, NAN, INF, 1e300)}),
    (Client, {"wait": (-1, NAN, INF, 1e300), "connect_timeout": (-1, NAN, 1e300)}),
    (Client, {"max_rows": (0, 1.5, 2**40)}),
    (AsyncClient, {"max_active": (0, 1.5, NAN), "in_flight": (0, NAN, 2**40)}),
    (AsyncClient, {"wait": (-1, NAN, INF, 1e300)}),
]
CASES = [
    pytest.param(kind, name, value, id=f"{kind.__name__}-{name}-{value}")
    for kind, fields in REFUSED
    for name, values in fields.items()
    for value in values
]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_one_clear_sentence(kind, name, value):
    transport = NumpyTransport()
    keywords = {"transport": transport} if kind in (Client, AsyncClient) else {}
    with pytest.raises(InvalidRequest) as caught:
        kind(**keywords, **{name: value})
    text = str(caught.value)
    assert name.replace("_", " ").split()[0] in text.replace("_", " ")
    assert "\n" not in text and ("must be" in text)
    assert not [c for c in transport.calls if c.signature != "describe"]


@pytest.mark.parametrize("method", ["score", "embed"])
@pytest.mark.parametrize("timeout", [0, -1, NAN, INF, 1e300])
def test_time_limits_of_the_other_methods(method, timeout):
    with (
        Client(transport=NumpyTransport()) as client,
        pytest.raises(InvalidRequest, match="timeout must be above 0"),
    ):
        getattr(client, method)([[2, 5]], timeout=timeout)


EXTREMES = [
    {"temperature": 1.1e-6},
    {"temperature": 1e38, "top_k": 2**31 - 1},
    {"top_p": 1.2e-38},
    {"top_p": 1.0, "top_k": 1},
    {"repetition_penalty": 1.1e-6},
    {"repetition_penalty": 1e38},
    {"seed": 2**64 - 1},
    {"seed": -(2**63)},
    {"temperature": np.float32(0.5), "top_k": np.int64(3), "seed": np.uint64(7)},
]


@pytest.mark.parametrize("values", EXTREMES, ids=str)
@pytest.mark.parametrize("generate", [(), (4,)])
def test_the_last_values_allowed_work(values, generate):
    with Client(transport=NumpyTransport(generate=generate)) as client:
        (result,) = client.generate(
            [[2, 5, 9]],
            max_new_tokens=4,
            sampling=Sampling(**{"seed": 1, **values}),
            stop_token_ids=[],
            timeout=1e9,
        )
    assert len(result.tokens) == 4 and np.isfinite(result.logprobs).all()


def test_a_tiny_temperature_takes_the_likeliest_token():
    with Client(transport=NumpyTransport()) as client:
        options = {"max_new_tokens": 8, "stop_token_ids": []}
        (greedy,) = client.generate([[2, 5]], **options)
        (cold,) = client.generate(
            [[2, 5]], sampling=Sampling(temperature=1e-6, seed=3), **options
        )
    assert cold.tokens == greedy.tokens

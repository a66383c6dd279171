"""Completions through the unmodified ``openai`` client equal the plain client's."""

from __future__ import annotations

import asyncio
import json
import math

import openai
import pytest
from optserve.models.generation.sampling import log_softmax
from optserve.runtime import Constraints, Sampling

from tests.runtime.numpy_model import GOLDEN, NumpyOPT


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any") as client:
        yield client


def test_greedy_text_and_usage(client, direct):
    answer = client.completions.create(
        model="opt", prompt="good day", max_tokens=9, temperature=0
    )
    (expected,) = direct.generate(["good day"], max_new_tokens=9)
    (choice,) = answer.choices
    assert choice.text == expected.text
    assert choice.finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == len(expected.tokens)
    assert answer.model == "opt"
    assert answer.object == "text_completion"


@pytest.mark.parametrize(
    ("fields", "sampling", "more"),
    [
        ({"top_p": 0.8}, {"top_p": 0.8}, {}),
        ({"top_k": 5, "temperature": 1.7}, {"top_k": 5, "temperature": 1.7}, {}),
        ({"min_p": 0.3}, {"min_p": 0.3}, {}),
        (
            {"presence_penalty": 1.5, "frequency_penalty": 0.5},
            {"presence_penalty": 1.5, "frequency_penalty": 0.5},
            {},
        ),
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}, {}),
        (
            {"logit_bias": {"40": 30}, "min_tokens": 3},
            {},
            {"constraints": Constraints(logit_bias={40: 30.0}, min_new_tokens=3)},
        ),
        ({"ignore_eos": True}, {}, {"stop_token_ids": []}),
        ({"stop_token_ids": [9, 30]}, {}, {"stop_token_ids": [9, 30, 2]}),
        ({"stop": ["e"]}, {}, {"stop": ["e"]}),
    ],
)
def test_each_field_means_what_the_client_means(client, direct, fields, sampling, more):
    standard = ("top_p", "presence_penalty", "frequency_penalty", "logit_bias", "stop")
    extra = {k: v for k, v in fields.items() if k not in (*standard, "temperature")}
    usual = {k: v for k, v in fields.items() if k not in extra}
    answer = client.completions.create(
        model="opt",
        prompt=[2, 17, 5, 44],
        max_tokens=12,
        seed=11,
        extra_body=extra,
        **usual,
    )
    (expected,) = direct.generate(
        [[2, 17, 5, 44]],
        max_new_tokens=12,
        sampling=Sampling(seed=11, **sampling),
        **more,
    )
    assert answer.choices[0].text == expected.text


def test_prompts_of_all_four_kinds(client, direct):
    kinds = ["ab", ["ab", "cde"], [2, 5, 6], [[2, 5, 6], [2, 9]]]
    lists = [["ab"], ["ab", "cde"], [[2, 5, 6]], [[2, 5, 6], [2, 9]]]
    for prompt, prompts in zip(kinds, lists, strict=True):
        answer = client.completions.create(
            model="opt", prompt=prompt, max_tokens=4, temperature=0
        )
        expected = direct.generate(prompts, max_new_tokens=4)
        assert [c.text for c in answer.choices] == [g.text for g in expected]
        assert [c.index for c in answer.choices] == list(range(len(prompts)))


def test_several_choices_have_seeds_of_their_own(client, direct):
    answer = client.completions.create(
        model="opt", prompt=["ab", "cd"], max_tokens=6, n=3, seed=4
    )
    expected = [
        direct.generate([p], max_new_tokens=6, sampling=Sampling(seed=4 + i))[0].text
        for p in ("ab", "cd")
        for i in range(3)
    ]
    assert [c.text for c in answer.choices] == expected
    assert answer.usage.prompt_tokens == 6  # each prompt once


def test_best_of_gives_the_likeliest(client, direct):
    answer = client.completions.create(
        model="opt", prompt="ab", max_tokens=6, n=2, best_of=5, seed=4
    )
    generated = [
        direct.generate(["ab"], max_new_tokens=6, sampling=Sampling(seed=4 + i))[0]
        for i in range(5)
    ]
    generated.sort(key=lambda g: -sum(g.logprobs) / len(g.logprobs))
    assert [c.text for c in answer.choices] == [g.text for g in generated[:2]]


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_is_the_whole_in_pieces(client, n):
    fields = {"model": "opt", "prompt": "good", "max_tokens": 11, "seed": 5, "n": n}
    whole = client.completions.create(**fields, logprobs=2)
    options = {"include_usage": True}
    events = list(
        client.completions.create(
            **fields, stream=True, logprobs=2, stream_options=options
        )
    )
    *parts, last = events
    assert last.choices == [] and last.usage == whole.usage
    for choice in whole.choices:
        own = [e.choices[0] for e in parts if e.choices[0].index == choice.index]
        assert len(own) > 1
        assert "".join(piece.text for piece in own) == choice.text
        assert own[-1].finish_reason == choice.finish_reason
        assert all(piece.finish_reason is None for piece in own[:-1])
        logprobs = [x for piece in own for x in piece.logprobs.token_logprobs]
        assert logprobs == choice.logprobs.token_logprobs


def test_usage_while_a_stream_runs(client):
    for asked, told in (
        ({"include_usage": True}, [None] * 3),
        ({"continuous_usage_stats": True}, [1, 5, 8]),
        ({}, [None] * 3),
    ):
        events = client.completions.create(
            model="opt",
            prompt=[2, 5, 9],
            max_tokens=8,
            stream=True,
            stream_options=asked,
            extra_body={"ignore_eos": True},
        )
        counts = [
            event.usage and event.usage.completion_tokens
            for event in events
            if event.choices
        ]
        assert counts == told


def test_echo_with_log_probabilities_as_an_evaluation_asks_for_them(client):
    ids = [2, 17, 5, 44, 30]
    answer = client.completions.create(
        model="opt",
        prompt=[ids],
        max_tokens=1,
        logprobs=1,
        echo=True,
        temperature=0,
        seed=1234,
    )
    listed = answer.choices[0].logprobs
    model = NumpyOPT(GOLDEN / "pre_ln")
    cache = model_cache(model)
    distribution = log_softmax(model.logits(model.hidden(ids, cache)[0]))
    assert listed.token_logprobs[0] is None and listed.top_logprobs[0] is None
    assert len(listed.tokens) == len(ids) + 1
    for place, token in enumerate(ids[1:], 1):
        expected = float(distribution[place - 1, token])
        assert listed.token_logprobs[place] == pytest.approx(expected, abs=1e-4)
        best = float(distribution[place - 1].max())
        top = listed.top_logprobs[place]
        assert max(top.values()) == pytest.approx(best, abs=1e-4)
        greedy = expected >= best - 1e-6
        assert (listed.token_logprobs[place] == max(top.values())) == greedy
    assert listed.token_logprobs[-1] == pytest.approx(distribution[-1].max(), abs=1e-4)
    assert listed.text_offset[0] == 0


def model_cache(model):
    """An empty cache of its shape."""
    import numpy as np

    config = model.config
    heads = config["num_attention_heads"]
    size = config["hidden_size"] // heads
    return np.zeros((0, config["num_hidden_layers"], 2, heads, size), np.float32)


def test_echo_alone(http):
    body = {"prompt": [2, 9, 30], "max_tokens": 0, "echo": True, "logprobs": 0}
    (choice,) = http.post("/v1/completions", json=body).json()["choices"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert all(map(math.isfinite, choice["logprobs"]["token_logprobs"][1:]))
    assert choice["finish_reason"] == "length"


def test_truncation(client, direct):
    fields = {"model": "opt", "max_tokens": 4, "temperature": 0}
    ids = [2, *range(5, 45)]
    answer = client.completions.create(
        **fields, prompt=ids, extra_body={"truncate_prompt_tokens": 7}
    )
    (expected,) = direct.generate([ids[-7:]], max_new_tokens=4)
    assert answer.choices[0].text == expected.text
    assert answer.usage.prompt_tokens == 7


def test_token_ids_on_request(http, direct):
    body = {"prompt": "ab", "max_tokens": 5, "temperature": 0, "return_token_ids": True}
    (choice,) = http.post("/v1/completions", json=body).json()["choices"]
    (expected,) = direct.generate(["ab"], max_new_tokens=5)
    assert choice["token_ids"] == expected.tokens
    assert choice["prompt_token_ids"] == direct.encode("ab")


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_tells_the_prompts_ids_once(http, direct, echo):
    body = {"prompt": ["ab", [2, 9]], "max_tokens": 5, "stream": True, "echo": echo}
    answer = http.post("/v1/completions", json=body | {"return_token_ids": True})
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    told: dict[int, list[list[int]]] = {0: [], 1: []}
    for line in lines[:-1]:
        (choice,) = json.loads(line)["choices"]
        if "prompt_token_ids" in choice:
            told[choice["index"]].append(choice["prompt_token_ids"])
    assert told == {0: [direct.encode("ab")], 1: [[2, 9]]}


def test_the_asynchronous_client_and_many_at_once(address, direct):
    async def go():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="x") as client:
            return await asyncio.gather(
                *(
                    client.completions.create(
                        model="opt", prompt=[2, 5 + i], max_tokens=6, seed=i
                    )
                    for i in range(12)
                )
            )

    answers = asyncio.run(go())
    for i, answer in enumerate(answers):
        sampling = Sampling(seed=i)
        (expected,) = direct.generate([[2, 5 + i]], max_new_tokens=6, sampling=sampling)
        assert answer.choices[0].text == expected.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": ["a"] * 3, "n": 128}, "n"),
        ({"prompt": ["a"] * 2049}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 6}, "logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [2, "a"]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 2**64}, "seed"),
        ({"stop": [""]}, None),
        ({"prompt": [2, 99999]}, None),
        ({"prompt": [2] * 500}, None),
    ],
)
def test_what_is_wrong_is_one_sentence(http, body, field):
    answer = http.post("/v1/completions", json={"prompt": "ab", **body})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["message"] and "\n" not in error["message"]
    if field is not None:
        assert error["param"] == field and field in error["message"]


def test_what_is_wrong_in_a_stream_has_its_status(http):
    body = {"prompt": [2] * 500, "stream": True}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_a_stream_ends_with_done(http):
    body = {"prompt": "ab", "stream": True, "max_tokens": 3}
    lines = http.post("/v1/completions", json=body).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(line[6:])["choices"] for line in lines[:-2])

"""Conversations through the ``openai`` client: completions of the template's text."""

from __future__ import annotations

import httpx
import openai
import pytest
from optserve.runtime.gateway import GatewaySettings

from .conftest import running

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TURNS = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi you"}]
PROMPT = "system: be\nuser: hi you\nassistant:"


@pytest.fixture(scope="module")
def client():
    settings = GatewaySettings(chat_template=TEMPLATE)
    with (
        running(settings) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="any") as client,
    ):
        yield client


def test_an_answer_continues_the_templates_text(client, direct):
    answer = client.chat.completions.create(
        model="opt", messages=TURNS, max_completion_tokens=8, temperature=0
    )
    (expected,) = direct.generate([PROMPT], max_new_tokens=8)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.prompt_tokens == expected.prompt_tokens


def test_a_stream_and_its_log_probabilities(client, direct):
    events = list(
        client.chat.completions.create(
            model="opt",
            messages=TURNS,
            max_tokens=8,
            temperature=0,
            stream=True,
            logprobs=True,
            top_logprobs=2,
            stream_options={"include_usage": True},
        )
    )
    (expected,) = direct.generate([PROMPT], max_new_tokens=8)
    first, *parts, last = events
    assert first.choices[0].delta.role == "assistant"
    assert "".join(e.choices[0].delta.content for e in parts) == expected.text
    listed = [x for e in parts for x in e.choices[0].logprobs.content]
    logprobs = [x.logprob for x in listed]
    assert logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    assert all(len(x.top_logprobs) == 2 for x in listed)
    assert last.usage.completion_tokens == len(expected.tokens)


def test_content_in_parts(client, direct):
    parts = [{"type": "text", "text": "hi "}, {"type": "text", "text": "you"}]
    answer = client.chat.completions.create(
        model="opt",
        messages=[TURNS[0], {"role": "user", "content": parts}],
        max_tokens=8,
        temperature=0,
    )
    (expected,) = direct.generate([PROMPT], max_new_tokens=8)
    assert answer.choices[0].message.content == expected.text
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(openai.BadRequestError, match="text only"):
        client.chat.completions.create(
            model="opt", messages=[{"role": "user", "content": image}]
        )


def test_names_reach_the_template(direct):
    template = "{% for m in messages %}{{ m.name or 'nobody' }}: {% endfor %}"
    turns = [{"role": "user", "content": "a", "name": "ann"}, TURNS[1]]
    body = {"messages": turns, "max_tokens": 8, "temperature": 0}
    with running(GatewaySettings(chat_template=template)) as (address, _):
        answer = httpx.post(f"{address}/v1/chat/completions", json=body).json()
    (expected,) = direct.generate(["ann: nobody: "], max_new_tokens=8)
    assert answer["choices"][0]["message"]["content"] == expected.text


def test_alternatives_without_log_probabilities_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="logprobs: true"):
        client.chat.completions.create(model="opt", messages=TURNS, top_logprobs=2)


def test_without_a_template_there_is_no_chat(address):
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="any") as client,
        pytest.raises(openai.BadRequestError, match="--chat-template"),
    ):
        client.chat.completions.create(model="opt", messages=TURNS)


def test_a_template_runs_in_a_sandbox():
    stolen = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with (
        running(GatewaySettings(chat_template=stolen)) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="any") as client,
        pytest.raises(openai.BadRequestError, match="template refuses"),
    ):
        client.chat.completions.create(model="opt", messages=TURNS)

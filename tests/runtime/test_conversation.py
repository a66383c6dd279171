"""Turns feed their new tokens only and give what one long prompt gives."""

from __future__ import annotations

import asyncio
import io
import sys

import pytest
from optserve.runtime import AsyncClient, Client, OptserveError, PromptTooLong, cli

from .numpy_model import AsyncNumpy, NumpyTransport
from .small_tokenizer import SMALL_TOKENIZER


def fed(transport: NumpyTransport) -> int:
    """Number of tokens that all calls have fed so far."""
    return sum(
        int(call.inputs["input_length"].sum())
        for call in transport.calls
        if "input_length" in call.inputs
    )


@pytest.mark.parametrize("generate", [(), (2, 4)])
def test_turns_equal_one_long_prompt_and_feed_each_token_once(generate):
    transport = NumpyTransport(generate=generate, tokenizer=SMALL_TOKENIZER)
    with Client(transport=transport) as client:
        talk = client.conversation()
        for said in ("to be", " or not", " what"):
            list(talk.say(said, max_new_tokens=5, stop_token_ids=[]))
        tokens = talk.tokens
        if not generate:
            assert fed(transport) == len(tokens) - 1
        assert all(shape[1] <= 8 for shape in transport.shapes("input_ids"))
        (fresh,) = client.generate([tokens[:-5]], max_new_tokens=5, stop_token_ids=[])
    assert fresh.tokens == talk.generation.tokens == tokens[-5:]
    assert tokens.count(2) == 1 and len(tokens) == 6 + 7 + 5 + 15


def test_a_turn_left_early_keeps_what_was_said():
    with Client(transport=NumpyTransport(tokenizer=SMALL_TOKENIZER)) as client:
        talk = client.conversation()
        chunks = talk.say("to be", max_new_tokens=9, stop_token_ids=[])
        first, second = next(chunks), next(chunks)
        with pytest.raises(OptserveError, match="under way"):
            next(talk.say("x", max_new_tokens=1))
        chunks.close()
        assert talk.tokens[6:] == first.tokens + second.tokens
        assert talk.cached_tokens == len(talk.tokens) - 1
        list(talk.say("x", max_new_tokens=2))
        talk.reset()
        assert talk.tokens == [] and talk.cached_tokens == 0


def test_a_conversation_that_is_too_long_says_so_or_drops_its_beginning():
    with Client(transport=NumpyTransport(tokenizer=SMALL_TOKENIZER)) as client:
        talk = client.conversation()
        list(talk.say("a" * 40, max_new_tokens=10, stop_token_ids=[]))
        with pytest.raises(PromptTooLong, match="64 positions"):
            list(talk.say("b" * 10, max_new_tokens=10))
        list(talk.say("b" * 10, max_new_tokens=10, stop_token_ids=[], truncate="left"))
        assert len(talk.tokens) == 64 and talk.tokens[0] == 2


def test_async_conversation():
    async def go():
        transport = AsyncNumpy(tokenizer=SMALL_TOKENIZER)
        async with AsyncClient(transport=transport) as client:
            talk = await client.conversation()
            for said in ("to be", " or not"):
                async for _ in talk.say(said, max_new_tokens=4, stop_token_ids=[]):
                    pass
            return talk.tokens

    with Client(transport=NumpyTransport(tokenizer=SMALL_TOKENIZER)) as client:
        talk = client.conversation()
        for said in ("to be", " or not"):
            list(talk.say(said, max_new_tokens=4, stop_token_ids=[]))
    assert asyncio.run(go()) == talk.tokens


def test_chat_in_the_terminal(monkeypatch, capsys):
    transport = NumpyTransport(tokenizer=SMALL_TOKENIZER)
    monkeypatch.setattr("optserve.runtime.client.open_transport", lambda *_: transport)
    typed = io.BytesIO(b"to be\n\n/tokens\nand\n/quit\nno\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed))
    arguments = ["--target", "127.0.0.1:1", "--max-new-tokens", "5"]
    assert cli.main(["chat", *arguments, "--stop-token-id", "-1"]) == 0
    out, err = capsys.readouterr()
    with Client(transport=NumpyTransport(tokenizer=SMALL_TOKENIZER)) as client:
        talk = client.conversation()
        texts = []
        for said in ("to be\n", "and\n"):
            list(talk.say(said, max_new_tokens=5, stop_token_ids=[]))
            texts.append(talk.generation.text)
    assert out == "".join(text + "\n" for text in texts)
    assert err == "12 tokens\n"
    assert cli.main(["chat", *arguments, "--template", "x"]) == 1

"""A known prefix changes what is fed and never what comes of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optserve.runtime import AsyncClient, Beams, Client, PrefixCache, Sampling
from optserve.runtime.decoding.prefix_cache import BLOCK

from tests.runtime.numpy_model import AsyncNumpy, NumpyTransport

DIGEST = {"checkpoint_digest": "a" * 64}
SHARED = [2, *range(5, 5 + 2 * BLOCK)]
WARM = Sampling(temperature=1.2, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=9)
ROW = 4 * 3 * 2 * 4 * 8  # bytes of one token's rows
MODES = {
    "greedy": {},
    "sampled": {"sampling": WARM},
    "constrained": {"top_logprobs": 2},
    "samples": {"sampling": WARM, "samples": 3},
    "beams": {"beams": Beams(width=3)},
}


def transport(**options) -> NumpyTransport:
    return NumpyTransport(**{**DIGEST, **options})


def fed(server: NumpyTransport) -> int:
    """Number of tokens that all calls have fed so far."""
    return sum(
        int(call.inputs["input_length"].sum())
        for call in server.calls
        if "input_length" in call.inputs
    )


def tokens_of(generation) -> list[list[int]]:
    return [generation.tokens, *(other.tokens for other in generation.alternatives)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("generate", [(), (2, 4)])
def test_a_prompt_that_begins_like_another_feeds_the_rest_alone(generate, mode):
    options = {"max_new_tokens": 5, "stop_token_ids": [], **MODES[mode]}
    prompts = [SHARED + [40 + i] * (3 + i) for i in range(3)]
    with Client(transport=transport(generate=generate)) as client:
        expected = [client.generate([p], **options)[0] for p in prompts]
    server = transport(generate=generate)
    with Client(transport=server, prefix_cache=1 << 20) as client:
        actual = []
        for number, prompt in enumerate(prompts):
            before = len(server.calls)
            (result,) = client.generate([prompt], **options)
            actual.append(result)
            hit = 2 * BLOCK if number else 0
            assert result.cached_prompt_tokens == hit
            if mode != "samples":  # which share one set of rows
                assert result.counters.cached_bytes == hit * ROW
            first = server.calls[before]
            assert first.inputs["input_length"][0] <= len(prompt) - hit
    assert [tokens_of(g) for g in actual] == [tokens_of(g) for g in expected]
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


@settings(max_examples=15)
@given(st.data())
def test_any_schedule_gives_the_same_tokens(data):
    draw = data.draw
    shared = st.integers(0, 2 * BLOCK + 1).map(lambda n: SHARED[:n])
    tail = st.lists(st.integers(4, 9), min_size=1, max_size=3)
    prompts = draw(
        st.lists(st.builds(lambda a, b: a + b, shared, tail), min_size=1, max_size=6)
    )
    generate = draw(st.sampled_from([(), (1, 4), (8,)]))
    options = {
        "max_new_tokens": draw(st.integers(1, 20)),
        "sampling": draw(st.sampled_from([None, WARM])),
    }
    room = draw(st.integers(1, 8)) * BLOCK * ROW
    with Client(transport=transport(), max_rows=1) as client:
        expected = [client.generate([p], **options)[0].tokens for p in prompts]
    server = transport(generate=generate, prompt_buckets=[8, 32])
    with Client(transport=server, prefix_cache=room) as client:
        for _ in range(2):
            actual = client.generate(prompts, **options)
            assert [g.tokens for g in actual] == expected


def test_an_answer_is_a_prefix_of_the_next_prompt():
    server = transport(generate=(8,))
    with Client(transport=server, prefix_cache=1 << 20) as client:
        (first,) = client.generate([SHARED], max_new_tokens=BLOCK, stop_token_ids=[])
        before = fed(server)
        whole = [*SHARED, *first.tokens, 9]
        (second,) = client.generate([whole], max_new_tokens=1)
        assert second.cached_prompt_tokens == 3 * BLOCK
        assert fed(server) - before == len(whole) - 3 * BLOCK == 2


def test_a_conversation_counts_what_it_kept():
    with Client(transport=transport()) as client:
        talk = client.conversation()
        list(talk.say([2, 5, 6], max_new_tokens=4, stop_token_ids=[]))
        list(talk.say([7, 8], max_new_tokens=1, stop_token_ids=[]))
        assert talk.generation.cached_prompt_tokens == 3 + 4 - 1


def test_rows_of_another_checkpoint_or_dtype_are_never_used():
    prefixes = PrefixCache()
    expected = None
    for options in (
        {},
        {"checkpoint_digest": "b" * 64},
        {"weights_dtype": "int8"},
        {"checkpoint_digest": ""},
        {"checkpoint_digest": ""},
    ):
        server = transport()
        server.manifest = replace(server.manifest, **options)
        with Client(transport=server, prefix_cache=prefixes) as client:
            (result,) = client.generate([SHARED], max_new_tokens=3)
        assert result.cached_prompt_tokens == 0
        expected = expected or result.tokens
        assert result.tokens == expected
    with Client(transport=transport(), prefix_cache=prefixes) as client:
        (result,) = client.generate([SHARED], max_new_tokens=3)
        assert (result.cached_prompt_tokens, result.tokens) == (2 * BLOCK, expected)


def test_a_newer_version_answers_new_prompts_and_drops_the_older_ones_rows():
    server = transport(generate=(4,))
    with Client(transport=server, prefix_cache=1 << 20) as client:
        (old,) = client.generate([SHARED], max_new_tokens=3)
        assert old.model_version == 1
        newer = transport(generate=(4,), checkpoint_digest="b" * 64)
        server.versions[2], server.manifest = server.model, newer.manifest
        (swapped,) = client.generate([SHARED], max_new_tokens=3)
        assert (swapped.model_version, swapped.rebuilds) == (2, 1)
        (again,) = client.generate([SHARED], max_new_tokens=3)
        assert (again.model_version, again.rebuilds) == (2, 0)
        assert again.cached_prompt_tokens == 2 * BLOCK
        assert old.tokens == swapped.tokens == again.tokens


def test_asyncio_and_a_folder_give_the_same(tmp_path):
    prompts = [[*SHARED, 40 + i] for i in range(6)]
    with Client(transport=transport()) as client:
        expected = [g.tokens for g in client.generate(prompts, max_new_tokens=4)]

    async def go(inner_options):
        served = AsyncNumpy(0.001, **DIGEST, **inner_options)
        with PrefixCache(folder=tmp_path / "rows") as prefixes:
            async with AsyncClient(transport=served, prefix_cache=prefixes) as client:
                return await client.generate(prompts, max_new_tokens=4)

    first = asyncio.run(go({"generate": (2,)}))
    second = asyncio.run(go({"generate": (2,)}))
    assert [g.tokens for g in first] == [g.tokens for g in second] == expected
    assert all(g.cached_prompt_tokens == 2 * BLOCK for g in second)
    assert len(list((tmp_path / "rows").iterdir())) == 2


def test_another_process_begins_after_what_this_one_left(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        from tests.runtime.decoding.test_prefix_reuse import *
        with PrefixCache(folder={str(tmp_path / "rows")!r}) as prefixes:
            with Client(transport=transport(), prefix_cache=prefixes) as client:
                (result,) = client.generate([SHARED], max_new_tokens=3)
        print(result.cached_prompt_tokens, *result.tokens)
    """)
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script], check=True, capture_output=True, text=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert (outputs[0][0], outputs[1][0]) == ("0", str(2 * BLOCK))
    assert outputs[0][1:] == outputs[1][1:] != []

"""Caches that a server keeps give what explicit ones give, whatever becomes of them."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optserve.runtime import AsyncClient, Client, IncompatibleModel, InvalidRequest
from optserve.runtime.decoding.prefix_cache import BLOCK

from tests.runtime.decoding.session_servers import (
    DIGEST,
    MODES,
    PROMPTS,
    SHARED,
    AsyncServers,
    Servers,
    explicit,
    same,
)
from tests.runtime.numpy_model import NumpyTransport


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("generate", [(), (2, 8)])
def test_no_cache_travels_and_the_tokens_are_the_same(generate, mode):
    options = {"max_new_tokens": 9, "stop_token_ids": [], **MODES[mode]}
    sizes = {"slots": 4, "positions": 64}
    servers = Servers(generate=generate, sessions=sizes, prompt_buckets=[4, 16])
    with Client(transport=servers, sessions=True) as client:
        actual = client.generate(PROMPTS, **options)
    assert same(actual, explicit(PROMPTS, **options))
    names = {call.signature for call in servers.calls}
    assert not any("cache" in call.inputs for call in servers.calls)
    assert names - {"describe"} <= {
        *("session_open", "session_copy", "session_decode"),
        *("session_generate_2", "session_generate_8"),
    }
    assert servers.count("session_open") <= 4
    assert ("session_copy" in names) == (mode in ("samples", "beams"))
    assert all(g.counters.session_calls == g.counters.calls for g in actual)
    assert all(g.counters.session_fallbacks == 0 for g in actual)


def test_single_tokens_go_to_the_largest_n_which_servers_keep_quickest():
    servers = Servers(generate=(1, 4, 16), sessions={"slots": 4, "positions": 64})
    with Client(transport=servers) as client:
        stream = client.stream([2, 5, 6], max_new_tokens=12, stop_token_ids=[])
        sizes = [len(chunk.tokens) for chunk in stream]
    assert sizes == [1, 4, 7]
    asked = [
        (call.signature, int(call.inputs["max_new_tokens"][0]))
        for call in servers.calls
        if "max_new_tokens" in call.inputs
    ]
    assert asked == [
        ("session_generate_1", 1),
        ("session_generate_16", 4),
        ("session_generate_16", 7),
    ]


@settings(max_examples=25, derandomize=True)
@given(st.data())
def test_any_schedule_with_any_trouble_gives_the_same_tokens(data):
    draw = data.draw
    shared = st.integers(0, 2 * BLOCK + 1).map(lambda n: SHARED[:n])
    tail = st.lists(st.integers(4, 9), min_size=1, max_size=3)
    prompts = draw(
        st.lists(st.builds(lambda a, b: a + b, shared, tail), min_size=1, max_size=5)
    )
    options = {
        "max_new_tokens": draw(st.integers(1, 12)),
        **MODES[draw(st.sampled_from(list(MODES)))],
    }
    expected = explicit(prompts, **options)
    servers = Servers(
        draw(st.integers(1, 3)),
        troubles=("evict", "restart", "down")[: draw(st.integers(0, 3))],
        chance=draw(st.sampled_from([0.05, 0.3])),
        seed=draw(st.integers(0, 999)),
        generate=draw(st.sampled_from([(), (1, 4), (8,)])),
        batch_sizes=draw(st.sampled_from([[], [4], [1, 8]])),
        sessions={"slots": draw(st.integers(1, 4)), "positions": 40},
        **DIGEST,
    )
    prefixes = draw(st.sampled_from([None, 1 << 20]))
    with Client(transport=servers, prefix_cache=prefixes) as client:
        for _ in range(2):
            assert same(client.generate(prompts, **options), expected)


def test_a_prompt_too_long_for_a_slot_uses_an_explicit_cache():
    servers = Servers(sessions={"slots": 2, "positions": 20})
    with Client(transport=servers) as client:
        short, long = client.generate([[2, 5], [2] * 15], max_new_tokens=8)
    assert short.counters.session_calls == short.counters.calls
    assert (long.counters.session_calls, long.counters.session_fallbacks) == (0, 1)
    assert same([short, long], explicit([[2, 5], [2] * 15], max_new_tokens=8))


def test_sessions_are_asked_for_insisted_on_or_left_alone():
    servers = Servers()
    with Client(transport=servers, sessions=False) as client:
        client.generate([[2, 5]], max_new_tokens=3)
    assert servers.count("session_") == 0
    with Client(transport=NumpyTransport()) as client:
        (result,) = client.generate([[2, 5]], max_new_tokens=3)
        assert result.counters.session_fallbacks == 0
    with pytest.raises(IncompatibleModel, match="--sessions"):
        Client(transport=NumpyTransport(), sessions=True)
    with pytest.raises(InvalidRequest, match="'auto'"):
        Client(transport=NumpyTransport(), sessions="yes")  # type: ignore[arg-type]


def test_two_clients_that_take_each_others_slots_both_get_on():
    servers = Servers(sessions={"slots": 2, "positions": 64})
    prompts = [[2, 5 + i] for i in range(12)]
    expected = explicit(prompts, max_new_tokens=10, stop_token_ids=[])
    with Client(transport=servers) as one, Client(transport=servers) as other:

        def work(client: Client):
            return [
                client.generate([p], max_new_tokens=10, stop_token_ids=[], timeout=30)
                for p in prompts
            ]

        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(work, [one, other] * 4))
    for result in results:
        assert same([g for (g,) in result], expected)
    counters = [g.counters for result in results for (g,) in result]
    assert any(c.session_losses for c in counters)
    assert all(c.session_losses <= 2 for c in counters)


@pytest.mark.parametrize("joined", [1, 2])
def test_hundreds_of_async_streams_over_few_slots(joined):
    async def go():
        sizes = [[], [1, 3, 8]][joined - 1]
        sessions = {"slots": 4, "positions": 64}
        inner = Servers(joined, sessions=sessions, batch_sizes=sizes)
        async with AsyncClient(transport=AsyncServers(inner), max_active=300) as client:

            async def read(number: int):
                stream = client.stream(
                    [2, 5 + number % 40], max_new_tokens=6, stop_token_ids=[]
                )
                tokens = [t async for chunk in stream for t in chunk.tokens]
                return number, tokens, stream.generation

            tasks = [asyncio.create_task(read(i)) for i in range(300)]
            tasks[150].cancel()
            return inner, await asyncio.gather(*tasks, return_exceptions=True)

    inner, results = asyncio.run(go())
    assert isinstance(results.pop(150), asyncio.CancelledError)
    prompts = [[2, 5 + number] for number in range(40)]
    expected = explicit(prompts, max_new_tokens=6, stop_token_ids=[])
    for number, tokens, result in results:
        assert tokens == result.tokens == expected[number % 40].tokens
        assert result.counters.session_losses == 0
        assert result.counters.session_calls == result.counters.calls
    assert inner.count("session_open") <= 4 * joined


def test_threads_and_eviction_for_a_while():
    servers = Servers(2, troubles=("evict", "restart", "down"), chance=0.1, seed=4)
    prompts = [SHARED[: 1 + i] for i in range(20)]
    expected = explicit(prompts, max_new_tokens=8)
    wrong = []
    with Client(transport=servers, prefix_cache=1 << 20) as client:

        def work(start: int) -> None:
            for i in range(10):
                number = (start + i) % len(prompts)
                (result,) = client.generate([prompts[number]], max_new_tokens=8)
                if result.tokens != expected[number].tokens:
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(3 * i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert {"evict", "restart", "down"} <= set(servers.happened)


@pytest.mark.parametrize("joined", [False, True])
def test_no_more_rows_go_together_than_the_export_takes_of_their_slots(joined):
    """The numpy server counts them."""
    prompts = [[2, *range(5, 50), 60 + i] for i in range(4)]
    options = {"max_new_tokens": 8, "stop_token_ids": []}
    servers = Servers(
        generate=(2,), sessions={"slots": 4, "positions": 64}, max_tokens_per_call=130
    )
    if joined:

        async def go():
            transport = AsyncServers(servers)
            async with AsyncClient(transport=transport, in_flight=1) as client:
                return await client.generate(prompts, **options)

        results = asyncio.run(go())
    else:
        with Client(transport=servers) as client:
            results = client.generate(prompts, **options)
    assert same(results, explicit(prompts, **options))
    assert not any(g.counters.session_losses for g in results)
    calls = [call for call in servers.calls if call.signature == "session_generate_2"]
    assert max(call.rows for call in calls) == 2

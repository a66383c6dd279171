"""Caches that a server keeps give what explicit ones give, whatever becomes of them."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optserve.runtime import (
    AsyncClient,
    Beams,
    Client,
    DeadlineExceeded,
    IncompatibleModel,
    InvalidRequest,
    PrefixCache,
    Sampling,
    ServerError,
)
from optserve.runtime.decoding.kv_cache import KVCache
from optserve.runtime.decoding.model_versions import ModelVersions
from optserve.runtime.decoding.prefix_cache import BLOCK
from optserve.runtime.decoding.sequence import Sequence
from optserve.runtime.decoding.served_model import ServedModel
from optserve.runtime.decoding.session_cache import SessionCache
from optserve.runtime.decoding.session_pool import SessionPool, Slot
from optserve.runtime.decoding.sessions import _prepared, begin
from optserve.runtime.options import GenerationOptions
from optserve.runtime.transports.base import Call

from tests.runtime.decoding.session_servers import AsyncServers, Servers
from tests.runtime.numpy_model import AsyncNumpy, NumpyTransport

WARM = Sampling(temperature=1.2, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=9)
SHARED = [2, *range(5, 5 + 2 * BLOCK)]
PROMPTS = [[2, 5, 6], [*SHARED, 9], [*SHARED, 8, 8], [2, 5], [7]]
DIGEST = {"checkpoint_digest": "a" * 64}
MODEL = ServedModel(
    NumpyTransport(sessions={"slots": 3, "positions": 64}).manifest, version=1
)
MODES = {
    "greedy": {},
    "sampled": {"sampling": WARM},
    "logits": {"top_logprobs": 3},
    "samples": {"sampling": WARM, "samples": 3},
    "beams": {"beams": Beams(width=3, returned=2)},
}


def explicit(prompts, **options):
    with Client(transport=NumpyTransport(), max_rows=1) as client:
        return [client.generate([prompt], **options)[0] for prompt in prompts]


def tokens_of(generation) -> list[list[int]]:
    return [generation.tokens, *(other.tokens for other in generation.alternatives)]


def same(actual, expected) -> bool:
    return [tokens_of(g) for g in actual] == [tokens_of(g) for g in expected]


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


def test_a_lost_slot_costs_feeding_again_and_is_counted():
    servers = Servers()
    with Client(transport=servers) as client:
        stream = client.stream([2, 5, 6], max_new_tokens=12, stop_token_ids=[])
        chunks = [next(stream)]
        servers.servers[0].restart()
        chunks += [next(stream), *stream]
        result = stream.generation
    (expected,) = explicit([[2, 5, 6]], max_new_tokens=12, stop_token_ids=[])
    assert result.tokens == expected.tokens
    counters = result.counters
    assert (counters.session_losses, counters.session_fallbacks) == (1, 0)
    assert servers.count("session_open") == 2


def test_one_that_loses_twice_goes_on_with_an_explicit_cache():
    servers = Servers(generate=(2,))
    with Client(transport=servers) as client:
        stream = client.stream([2, 5, 6], max_new_tokens=12, stop_token_ids=[])
        for _ in range(3):
            next(stream)
            servers.servers[0].restart()
        rest = list(stream)
        result = stream.generation
        assert rest
        (after,) = client.generate([[2, 5, 6]], max_new_tokens=3)
    (expected,) = explicit([[2, 5, 6]], max_new_tokens=12, stop_token_ids=[])
    assert result.tokens == expected.tokens
    counters = result.counters
    assert (counters.session_losses, counters.session_fallbacks) == (2, 1)
    assert counters.session_calls < counters.calls
    assert servers.count("decode") + servers.count("generate_") > 0
    assert after.counters.session_calls == after.counters.calls


def test_a_lost_replica_costs_one_step():
    servers = Servers(2)
    with Client(transport=servers) as client:
        stream = client.stream([2, 5, 6], max_new_tokens=12, stop_token_ids=[])
        next(stream)
        (target,) = servers.calls[-1].replicas
        servers.down[servers.targets.index(target)] = 10**6
        list(stream)
        result = stream.generation
        assert servers.calls[-1].replicas not in ((target,), ())
        (after,) = client.generate([[2, 5, 6]], max_new_tokens=3)
    (expected,) = explicit([[2, 5, 6]], max_new_tokens=12, stop_token_ids=[])
    assert result.tokens == expected.tokens
    assert result.counters.session_losses == 1
    assert after.counters.session_losses == 0


def test_all_replicas_gone_is_an_error_and_leaves_the_pool_usable():
    servers = Servers(2)
    with Client(transport=servers) as client:
        servers.down = [10**6] * 2
        with pytest.raises(Exception, match="no replica answers"):
            client.generate([[2, 5]], max_new_tokens=3)
        servers.down = [0] * 2
        (result,) = client.generate([[2, 5]], max_new_tokens=3)
    assert result.tokens == explicit([[2, 5]], max_new_tokens=3)[0].tokens
    assert result.counters.session_calls == result.counters.calls


def test_a_version_that_goes_takes_its_sessions_with_it():
    servers = Servers()
    server = servers.servers[0]
    with Client(transport=servers) as client:
        stream = client.stream([2, 5, 6], max_new_tokens=9, stop_token_ids=[])
        next(stream)
        server.versions = {2: server.model}
        server.restart()
        list(stream)
        result = stream.generation
        (after,) = client.generate([[2, 5, 6]], max_new_tokens=3)
    (expected,) = explicit([[2, 5, 6]], max_new_tokens=9, stop_token_ids=[])
    assert (result.tokens, result.model_version) == (expected.tokens, 2)
    assert (result.rebuilds, after.model_version) == (1, 2)
    assert after.counters.session_calls == after.counters.calls


def test_a_newer_version_is_noticed_though_sessions_pin(monkeypatch):
    monkeypatch.setattr("optserve.runtime.decoding.sessions._ASK_AGAIN", 0.0)
    servers = Servers()
    server = servers.servers[0]
    with Client(transport=servers) as client:
        client.generate([[2, 5, 6]], max_new_tokens=3)
        server.versions[2] = server.model
        (result,) = client.generate([[2, 5, 6]], max_new_tokens=3)
    assert result.model_version == 2
    plain = NumpyTransport()
    with Client(transport=plain) as client:
        client.generate([[2, 5, 6]], max_new_tokens=3)
    assert [call.signature for call in plain.calls].count("describe") == 1


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


def test_the_next_turn_finds_the_slot_of_the_last():
    servers = Servers()
    with Client(transport=servers, sessions=True) as client:
        talk = client.conversation()
        for said in ([2, 5, 6], [7, 8], [9]):
            list(talk.say(said, max_new_tokens=4, stop_token_ids=[]))
        assert talk.cached_tokens == len(talk.tokens) - 1
        assert talk.generation.cached_prompt_tokens == 3 + 4 + 2 + 4 - 1
        fed = sum(
            int(c.inputs["input_length"].sum())
            for c in servers.calls
            if "input_length" in c.inputs
        )
    assert servers.count("session_open") == 1
    (expected,) = explicit([talk.tokens[:-4]], max_new_tokens=4, stop_token_ids=[])
    assert talk.generation.tokens == expected.tokens
    assert fed <= len(talk.tokens) + 2 * 3  # the last token of each call again


def test_a_known_prefix_is_written_into_the_slot_and_read_back():
    servers = Servers(**DIGEST)
    prefixes = PrefixCache()
    with Client(transport=servers, prefix_cache=prefixes) as client:
        (first,) = client.generate([SHARED], max_new_tokens=3)
        assert servers.count("session_read") == 0  # one prompt's own
        client.generate([[*SHARED[: BLOCK + 2], 7]], max_new_tokens=3)
        assert servers.calls[-1].inputs["size"].tolist() == [BLOCK]
        client.generate([[*SHARED, 7]], max_new_tokens=3)
        assert servers.calls[-1].inputs["start"].tolist() == [BLOCK]
        assert servers.count("session_read") == 2
        servers.servers[0].restart()
        client.generate([[9]], max_new_tokens=1)  # the pool forgets
    with Client(transport=servers, prefix_cache=prefixes) as client:
        (second,) = client.generate([SHARED], max_new_tokens=3)
    assert servers.count("session_write") == 1
    assert second.cached_prompt_tokens == 2 * BLOCK
    assert (
        first.tokens == second.tokens == explicit([SHARED], max_new_tokens=3)[0].tokens
    )


def test_the_rest_of_a_known_prefix_is_written_after_what_the_slot_holds():
    servers = Servers(sessions={"slots": 1, "positions": 64}, **DIGEST)
    prefixes = PrefixCache()
    with Client(transport=servers, sessions=False, prefix_cache=prefixes) as client:
        client.generate([SHARED], max_new_tokens=1)
    prompt = [*SHARED, 11]
    with Client(transport=servers, prefix_cache=prefixes) as client:
        client.generate([SHARED[: BLOCK + 3] + [9] * 4], max_new_tokens=3)
        servers.calls.clear()
        (result,) = client.generate([prompt], max_new_tokens=3)
    (write,) = (c for c in servers.calls if c.signature == "session_write")
    assert write.inputs["start"].tolist() == [BLOCK + 3]
    assert result.cached_prompt_tokens == 2 * BLOCK
    assert same([result], explicit([prompt], max_new_tokens=3))


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


def test_threads_wait_their_turn():
    servers = Servers(sessions={"slots": 2, "positions": 64})
    with Client(transport=servers) as client:

        def work(number: int):
            (result,) = client.generate(
                [[2, 5 + number % 40]], max_new_tokens=6, stop_token_ids=[], timeout=60
            )
            return result

        with ThreadPoolExecutor(30) as threads:
            results = list(threads.map(work, range(60)))
    assert servers.count("session_open") <= 2
    assert all(g.counters.session_losses == 0 for g in results)
    assert all(g.counters.session_calls == g.counters.calls for g in results)


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


def test_the_line_is_first_come_first_served():
    async def go():
        transport = AsyncNumpy(
            0.002, generate=(2,), sessions={"slots": 1, "positions": 64}
        )
        ended: list[int] = []
        async with AsyncClient(transport=transport) as client:

            async def one(number: int):
                await client.generate(
                    [[2, 5 + number]], max_new_tokens=8, stop_token_ids=[]
                )
                ended.append(number)

            tasks = []
            for number in range(8):
                tasks.append(asyncio.create_task(one(number)))
                await asyncio.sleep(0.001)
            await asyncio.gather(*tasks)
        return ended

    assert asyncio.run(go()) == list(range(8))


def test_a_stream_that_nobody_reads_gives_its_slot_to_those_who_wait(monkeypatch):
    monkeypatch.setattr("optserve.runtime.decoding.sessions._PATIENCE", 0.02)
    monkeypatch.setattr("optserve.runtime.decoding.sessions._IDLE", 0.05)
    servers = Servers(sessions={"slots": 1, "positions": 64})
    with Client(transport=servers) as client:
        stream = client.stream([2, 5, 6], max_new_tokens=12, stop_token_ids=[])
        next(stream)
        (other,) = client.generate([[2, 7]], max_new_tokens=4, timeout=5)
        assert other.counters.session_losses == 0
        list(stream)
        result = stream.generation
    (expected,) = explicit([[2, 5, 6]], max_new_tokens=12, stop_token_ids=[])
    assert result.tokens == expected.tokens
    assert result.counters.session_losses == 1


def test_waiting_for_a_slot_ends_with_the_deadline():
    servers = Servers(sessions={"slots": 1, "positions": 64})
    with Client(transport=servers) as client:
        stream = client.stream([2, 5, 6], max_new_tokens=12, stop_token_ids=[])
        next(stream)
        begin = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="sessions were taken"):
            client.generate([[2, 7]], max_new_tokens=4, timeout=0.2)
        assert time.monotonic() - begin < 1
        stream.close()
        client.generate([[2, 7]], max_new_tokens=4, timeout=5)


def test_a_stream_that_waits_can_be_cancelled(monkeypatch):
    monkeypatch.setattr("optserve.runtime.decoding.sessions._PATIENCE", 0.02)
    servers = Servers(sessions={"slots": 1, "positions": 64})
    with Client(transport=servers) as client:
        first = client.stream([2, 5, 6], max_new_tokens=12, stop_token_ids=[])
        next(first)
        second = client.stream([2, 7], max_new_tokens=4)
        threading.Timer(0.05, second.cancel).start()
        (chunk,) = list(second)
        assert (chunk.finish_reason, chunk.tokens) == ("cancelled", [])
        assert len(list(first)) > 1


def test_a_slot_whose_call_was_broken_off_is_given_to_nobody():
    async def go():
        transport = AsyncNumpy(0.05, sessions={"slots": 2, "positions": 64})
        async with AsyncClient(transport=transport) as client:
            await client.generate([[2, 5]], max_new_tokens=1)
            task = asyncio.create_task(client.generate([[2, 5]], max_new_tokens=30))
            await asyncio.sleep(0.12)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            before = len(transport.inner.calls)
            await client.generate([[2, 5]], max_new_tokens=1)
            return [call.signature for call in transport.inner.calls[before:]]

    assert asyncio.run(go())[0] == "session_open"


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


def test_what_fails_midway_gives_its_slots_back():
    servers = Servers(sessions={"slots": 2, "positions": 64})

    def refuse(call: Call) -> None:
        if "decode" in call.signature and len(servers.calls) % 2:
            raise DeadlineExceeded("too late")

    with Client(transport=servers) as client:
        for mode in MODES.values():
            servers.servers[0].before = refuse
            for _ in range(3):
                with suppress(DeadlineExceeded):
                    client.generate(PROMPTS[:3], max_new_tokens=3, **mode)
            servers.servers[0].before = None
            after = client.generate(PROMPTS[:3], max_new_tokens=3, timeout=20, **mode)
            assert same(after, explicit(PROMPTS[:3], max_new_tokens=3, **mode))


@pytest.mark.parametrize(
    "signature", ["session_open", "session_decode", "session_generate", "session_"]
)
def test_a_server_that_refuses_sessions_gets_explicit_caches(signature):
    servers = Servers(2, generate=(8,))

    def refuse(call: Call) -> None:
        if call.signature.startswith(signature):
            raise ServerError("the proxy forbids it", "PERMISSION_DENIED")

    for server in servers.servers:
        server.before = refuse
    fallbacks = 0
    with Client(transport=servers) as client:
        for mode in MODES.values():
            actual = client.generate(PROMPTS[:3], max_new_tokens=3, **mode)
            assert same(actual, explicit(PROMPTS[:3], max_new_tokens=3, **mode))
            fallbacks += sum(g.counters.session_fallbacks for g in actual)
    assert fallbacks


def test_reading_back_never_fails_what_has_ended_well():
    servers = Servers(**DIGEST)

    def refuse(call: Call) -> None:
        if call.signature == "session_read":
            raise ServerError("no", "INTERNAL")

    servers.servers[0].before = refuse
    with Client(transport=servers, prefix_cache=1 << 20) as client:
        client.generate([SHARED], max_new_tokens=3)
        (result,) = client.generate([SHARED], max_new_tokens=3)
    assert servers.count("session_read") == 1
    assert same([result], explicit([SHARED], max_new_tokens=3))


@pytest.mark.parametrize("mode", MODES)
def test_a_newer_version_need_not_have_sessions(mode):
    options = {"max_new_tokens": 9, "stop_token_ids": [], **MODES[mode]}
    servers = Servers(generate=(2,))
    (server,) = servers.servers

    def swap(call: Call) -> None:
        if call.signature.startswith("session_") and len(servers.calls) > 5:
            server.versions = {2: server.model}
            server.manifest = NumpyTransport(generate=(2,)).manifest

    server.before = swap
    with Client(transport=servers) as client:
        (result,) = client.generate([[2, 5, 6]], **options)
    assert result.model_version == 2
    assert same([result], explicit([[2, 5, 6]], **options))


@pytest.mark.parametrize(
    "lie",
    [
        {"session_open": ("slot", 99)},
        {"session_open": ("slot", -1)},
        {"session_decode": ("alive", 2)},
        {"session_decode": ("logits", np.nan)},
        {"session_generate": ("count", 9)},
        {"session_copy": ("alive", -1)},
    ],
)
def test_a_replica_that_lies_is_left(lie):
    (signature, (output, value)), *_ = lie.items()

    def tell(call: Call, outputs: dict[str, np.ndarray]) -> None:
        if call.signature.startswith(signature):
            outputs[output][:] = value

    servers = Servers(2, generate=() if "decode" in signature else (2,))
    servers.servers[1].lie = tell
    options = {"max_new_tokens": 4, "samples": 2, "sampling": WARM}
    with Client(transport=servers) as client:
        actual = client.generate(PROMPTS, **options)
    assert same(actual, explicit(PROMPTS, **options))


def seated(pool: SessionPool) -> Sequence:
    """A sequence in a slot of its own."""
    slot = pool.take([2], MODEL)
    assert slot is not None
    number = len(pool._leased)
    pool.opened(slot, Slot("", 1, "", number, number))
    greedy = GenerationOptions(max_new_tokens=4)
    sequence = Sequence([2, 5], greedy, sampling=Sampling(temperature=0), stop_ids=[])
    sequence.take_slot(SessionCache(pool, slot, 0))
    return sequence


def test_a_slot_that_was_taken_away_leaves_its_neighbours_as_they_were():
    pool = SessionPool([])
    revoked, other = seated(pool), seated(pool)
    assert revoked.slot and other.slot
    revoked.slot.revoked = True
    assert not begin([revoked, other])
    assert revoked.slot is None and not other.slot.busy
    assert begin([other]) and other.slot.busy


def test_nothing_is_written_to_a_slot_that_was_taken_away_meanwhile():
    pool = SessionPool([])
    sequence = seated(pool)
    slot = sequence.slot
    assert slot is not None
    slot.revoked = True
    rows = np.zeros((4, *MODEL.layout.row_shape), np.float32)
    sequence.cache, sequence.sought_prefix = KVCache(MODEL.layout, (rows,)), "same"
    calls = _prepared(sequence, slot, pool, ModelVersions(MODEL))
    with pytest.raises(StopIteration) as ended:
        next(calls)
    assert ended.value.value is False


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

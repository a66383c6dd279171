"""Slots: waited for in line, found again by the next turn, filled with prefixes."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from optserve.runtime import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    PrefixCache,
    ServerError,
)
from optserve.runtime.decoding.prefix_cache import BLOCK
from optserve.runtime.transports.base import Call

from tests.runtime.decoding.session_servers import (
    DIGEST,
    SHARED,
    Servers,
    explicit,
    same,
)
from tests.runtime.numpy_model import AsyncNumpy


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


def test_waiting_for_a_slot_ends_with_the_deadline(monkeypatch):
    monkeypatch.setattr("optserve.runtime.decoding.sessions._PATIENCE", 60)
    servers = Servers(sessions={"slots": 1, "positions": 64})
    with Client(transport=servers) as client:
        stream = client.stream([2, 5, 6], max_new_tokens=12, stop_token_ids=[])
        next(stream)
        begin = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="sessions were taken"):
            client.generate([[2, 7]], max_new_tokens=4, timeout=0.2)
        assert time.monotonic() - begin < 30  # not when it would look again
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

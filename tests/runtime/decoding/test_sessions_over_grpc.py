"""Sessions of real servers: the calls go where the slots are, and elsewhere after."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from optserve.runtime import AsyncClient, Client

from tests.runtime.numpy_model import NumpyTransport
from tests.runtime.numpy_server import serving

OPTIONS = {"max_new_tokens": 12, "stop_token_ids": []}
PROMPT = [2, 5, 6, 9]


@pytest.fixture
def expected() -> list[int]:
    with Client(transport=NumpyTransport()) as client:
        return client.generate([PROMPT], **OPTIONS)[0].tokens


def server() -> NumpyTransport:
    return NumpyTransport(generate=(2,), sessions={"slots": 2, "positions": 64})


def slots_used(transport: NumpyTransport) -> int:
    return sum("ticket" in call.inputs for call in transport.calls)


def test_a_server_that_dies_costs_feeding_again(expected):
    servers = [server(), server()]
    with ExitStack() as first, ExitStack() as second:
        stacks = [first, second]
        pairs = zip(stacks, servers, strict=True)
        targets = [stack.enter_context(serving(one)) for stack, one in pairs]
        with Client(targets, sessions=True) as client:
            stream = client.stream(PROMPT, **OPTIONS)
            next(stream), next(stream)
            used = [slots_used(one) for one in servers]
            assert sorted(used) == [0, 2]
            stacks[used.index(2)].close()
            list(stream)
            result = stream.generation
    assert result.tokens == expected
    assert result.counters.session_losses == 1
    assert result.counters.session_fallbacks == 0
    assert slots_used(servers[used.index(0)]) >= 4


def test_a_server_that_starts_anew_at_its_address(expected):
    with ExitStack() as stack:
        target = stack.enter_context(serving(server()))
        with Client(target, sessions=True) as client:
            stream = client.stream(PROMPT, **OPTIONS)
            next(stream)
            stack.close()
            with serving(server(), address=target):
                list(stream)
                result = stream.generation
                (after,) = client.generate([PROMPT], **OPTIONS)
    assert result.tokens == after.tokens == expected
    assert result.counters.session_losses == 1
    assert after.counters.session_calls == after.counters.calls


def test_async_streams_are_joined_where_their_slots_are(expected):
    async def go(targets):
        async with AsyncClient(targets, sessions=True, in_flight=1) as client:
            return await client.generate([PROMPT] * 12, **OPTIONS)

    servers = [server(), server()]
    with serving(servers[0], seconds=0.01) as a, serving(servers[1], seconds=0.01) as b:
        results = asyncio.run(go([a, b]))
    assert all(g.tokens == expected for g in results)
    assert all(g.counters.session_losses == 0 for g in results)
    assert all(slots_used(one) for one in servers)
    most = max(
        len(c.inputs["ticket"])
        for s in servers
        for c in s.calls
        if "ticket" in c.inputs
    )
    assert most == 2

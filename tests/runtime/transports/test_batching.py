"""Rows join and leave shared calls at call borders."""

from __future__ import annotations

import asyncio

from optserve.runtime import AsyncClient, Client

from tests.runtime.numpy_model import AsyncNumpy, NumpyTransport

PROMPTS = [[2, *range(5, 5 + n)] for n in (1, 9, 3, 20, 2, 7, 7, 30, 1, 12)]


def alone(max_new_tokens, **options):
    with Client(transport=NumpyTransport(**options)) as client:
        return [
            client.generate([p], max_new_tokens=max_new_tokens)[0].tokens
            for p in PROMPTS
        ]


async def read(stream):
    return [token async for chunk in stream for token in chunk.tokens]


def test_streams_that_come_at_different_times_meet():
    async def go():
        transport = AsyncNumpy(0.01, generate=(1, 4))
        async with AsyncClient(transport=transport) as client:

            async def later(i, prompt):
                await asyncio.sleep(0.003 * i)
                return await read(client.stream(prompt, max_new_tokens=20))

            tokens = await asyncio.gather(*(later(*x) for x in enumerate(PROMPTS)))
        return tokens, transport

    tokens, transport = asyncio.run(go())
    assert tokens == alone(20)
    rows = [rows for rows, size in transport.inner.shapes("input_ids") if size == 1]
    # Once all have begun they go on together: nobody is left to calls of its own.
    assert max(rows) == len(PROMPTS)
    assert len(rows) < 30  # ten streams one by one: 60 calls


def test_a_new_caller_gets_its_first_token_while_others_decode():
    async def go():
        transport = AsyncNumpy(0.05, generate=(1, 32))
        async with AsyncClient(transport=transport) as client:
            many = [
                asyncio.create_task(read(client.stream(p, max_new_tokens=30)))
                for p in PROMPTS[:4]
            ]
            await asyncio.sleep(0.18)
            loop = asyncio.get_running_loop()
            calls, begin = len(transport.inner.calls), loop.time()
            first = await anext(aiter(client.stream([2, 9, 9], max_new_tokens=9)))
            seconds, calls = loop.time() - begin, len(transport.inner.calls) - calls
            assert len(first.tokens) == 1
            await asyncio.gather(*many)
        return seconds, calls

    _, calls = asyncio.run(go())
    assert calls <= 2  # its own, and one that was under way

"""Many generations side by side give what each gives alone, in fewer calls."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from optserve.runtime import (
    AsyncClient,
    Beams,
    Cancelled,
    Client,
    Sampling,
    ServerError,
)
from optserve.runtime.decoding.engine import Engine
from optserve.runtime.decoding.model_versions import ModelVersions
from optserve.runtime.decoding.served_model import ServedModel
from optserve.runtime.transports.base import Call

from .numpy_model import AsyncNumpy, NumpyTransport
from .overrun import SLACK, overrun_async

PROMPTS = [[2, *range(5, 5 + n)] for n in (1, 9, 3, 20, 2, 7, 7, 30, 1, 12)]
WARM = Sampling(temperature=1.3, top_k=40, top_p=0.9, seed=5)


def alone(**options):
    with Client(transport=NumpyTransport(generate=(2, 4))) as client:
        return [
            client.generate([p], max_new_tokens=9, **options)[0].tokens for p in PROMPTS
        ]


def test_rows_are_padded_to_the_sizes_of_the_calls_version():
    old, new = (NumpyTransport(batch_sizes=sizes).manifest for sizes in ([4], [2, 8]))
    versions = ModelVersions(ServedModel(old, 1, pads_rows=False))
    versions.known[2] = ServedModel(new, 2, pads_rows=False)
    core = Engine(versions, None, None)
    calls = [Call("decode", {}, version=version) for version in (None, 1, 2)]
    assert [core.padded_rows(call, 3) for call in calls] == [4, 4, 8]


@pytest.mark.parametrize("sampling", [None, WARM])
@pytest.mark.parametrize("batch_sizes", [[], [2, 4]])
def test_joined_calls_give_the_same_tokens(sampling, batch_sizes):
    async def go():
        transport = AsyncNumpy(0.002, generate=(2, 4), batch_sizes=batch_sizes)
        async with AsyncClient(transport=transport) as client:
            generations = await client.generate(
                PROMPTS, max_new_tokens=9, sampling=sampling
            )
            streamed = [
                client.stream(p, max_new_tokens=9, sampling=sampling) for p in PROMPTS
            ]

            async def read(stream):
                return [t async for chunk in stream for t in chunk.tokens]

            chunks = await asyncio.gather(*map(read, streamed))
        assert [s.generation.tokens for s in streamed] == chunks
        return generations, chunks, transport

    generations, chunks, transport = asyncio.run(go())
    expected = alone(sampling=sampling)
    assert [g.tokens for g in generations] == expected
    assert chunks == expected
    assert [g.index for g in generations] == list(range(len(PROMPTS)))
    assert max(shape[0] for shape in transport.inner.shapes("input_ids")) >= 4
    assert transport.most <= 2


def test_at_most_max_active_are_under_way_and_an_endless_source_is_read_lazily():
    async def go():
        read = 0

        def endless():
            nonlocal read
            while True:
                read += 1
                yield [2, 5 + read % 50]

        transport = AsyncNumpy(0.001)
        async with AsyncClient(transport=transport, max_active=3) as client:
            results = client.generate_many(endless(), max_new_tokens=2)
            seen = [(await anext(results)).index for _ in range(10)]
            await results.aclose()
        assert len(set(seen)) == 10
        assert read <= 10 + 2 * 3
        rows = [shape[0] for shape in transport.inner.shapes("input_ids")]
        assert max(rows) <= 3

    asyncio.run(go())


def test_waiting_for_a_turn_counts_to_the_deadline():
    async def go():
        transport = AsyncNumpy(0.02)
        async with AsyncClient(transport=transport, max_active=1) as client:
            long = asyncio.create_task(
                client.generate([[2, 5]], max_new_tokens=60, stop_token_ids=[])
            )
            await asyncio.sleep(0.05)
            options = {"max_new_tokens": 2, "timeout": 0.1}
            for start in (
                lambda: client.generate([[2, 6]], **options),
                lambda: anext(client.stream([2, 6], **options)),
            ):
                late = await overrun_async(start, 0.1, "1 other generations")
                assert abs(late) < SLACK
            (result,) = await long
            assert len(result.tokens) == 60
            (after,) = await client.generate([[2, 6]], max_new_tokens=2, timeout=9)
            assert len(after.tokens) == 2

    asyncio.run(go())


def test_cancelling_one_leaves_the_others():
    async def go():
        transport = AsyncNumpy(0.01)
        async with AsyncClient(transport=transport, in_flight=1) as client:
            tasks = [
                asyncio.create_task(client.generate([p], max_new_tokens=6))
                for p in PROMPTS[:4]
            ]
            await asyncio.sleep(0.025)
            tasks[1].cancel()
            actual = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(actual[1], asyncio.CancelledError)
        return [g[0].tokens for i, g in enumerate(actual) if i != 1]

    expected = [tokens[:6] for tokens in alone()[:4]]
    del expected[1]
    assert asyncio.run(go()) == expected


def test_a_lone_cancelled_stream_cancels_its_call():
    async def go():
        transport = AsyncNumpy(5.0)
        transport.delay = 0.0
        async with AsyncClient(transport=transport) as client:
            transport.delay = 5.0
            task = asyncio.create_task(client.generate([[2]], max_new_tokens=3))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.01)
            assert transport.cancelled == 1 and transport.under_way == 0

    asyncio.run(go())


def test_deadline_cuts_a_stalled_server():
    async def go():
        transport = AsyncNumpy()
        async with AsyncClient(transport=transport) as client:
            transport.delay = 10.0
            options = {"max_new_tokens": 3, "timeout": 0.2}
            late = await overrun_async(lambda: client.generate([[2]], **options), 0.2)
            assert -0.01 < late < SLACK

    asyncio.run(go())


def test_one_refused_call_does_not_take_its_neighbours_along():
    def refuse(call: Call) -> None:
        ids = np.asarray(call.inputs.get("input_ids", np.zeros((1, 1))))
        if (ids == 77).any():
            raise ServerError("no 77s", "INVALID_ARGUMENT")

    async def go():
        transport = AsyncNumpy(0.002, before=refuse)
        async with AsyncClient(transport=transport) as client:
            prompts = [[2, 5], [2, 77], [2, 6]]
            work = [client.generate([p], max_new_tokens=1) for p in prompts]
            return await asyncio.gather(*work, return_exceptions=True)

    first, second, third = asyncio.run(go())
    assert isinstance(second, ServerError)
    assert len(first[0].tokens) == len(third[0].tokens) == 1


def test_beams_scores_and_embeddings_work_here_too():
    async def go():
        async with AsyncClient(transport=AsyncNumpy()) as client:
            return (
                await client.generate([PROMPTS[1]], max_new_tokens=5, beams=Beams()),
                await client.score([PROMPTS[1]]),
                await client.embed([PROMPTS[1]]),
                await client.describe(),
            )

    (beam,), (score,), (hidden,), manifest = asyncio.run(go())
    with Client(transport=NumpyTransport()) as client:
        same = client.generate([PROMPTS[1]], max_new_tokens=5, beams=Beams())
        assert same[0].tokens == beam.tokens
        assert client.score([PROMPTS[1]])[0].total == pytest.approx(score.total)
        np.testing.assert_allclose(client.embed([PROMPTS[1]])[0], hidden)
    assert manifest.vocab_size == 128


def test_joined_scores_have_few_rows_where_texts_are_long(monkeypatch):
    monkeypatch.setattr(
        "optserve.runtime.decoding.scoring._LOGITS_LIMIT", 4 * 128 * 100
    )

    async def go():
        transport = AsyncNumpy(0.002)
        async with AsyncClient(transport=transport, in_flight=1) as client:
            text = [2, *range(4, 43)]
            await asyncio.gather(*(client.score([text]) for _ in range(7)))
        return {rows for rows, _ in transport.inner.shapes("input_ids")}

    assert asyncio.run(go()) == {1, 2}


def test_a_closed_client_refuses():
    async def go():
        transport = AsyncNumpy()
        client = AsyncClient(transport=transport)
        await client.connect()
        await client.close()
        assert transport.inner.closed
        with pytest.raises(Cancelled):
            await client.generate([[2]], max_new_tokens=1)

    asyncio.run(go())


def test_a_version_swap_in_the_middle_costs_rebuilds_and_no_token():
    async def go():
        transport = AsyncNumpy(0.001)
        async with AsyncClient(transport=transport) as client:
            work = asyncio.create_task(
                client.generate(PROMPTS, max_new_tokens=9, sampling=WARM)
            )
            await asyncio.sleep(0.02)
            transport.inner.versions = {2: transport.inner.model}
            return await work

    actual = asyncio.run(go())
    assert [g.tokens for g in actual] == alone(sampling=WARM)
    assert all(g.model_version == 2 for g in actual)
    assert sum(g.rebuilds for g in actual) > 0

"""Sessions and known prefixes of a client, on any server of our export."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from optserve.runtime import AsyncClient, Beams, Client, Generation, Sampling
from optserve.runtime.decoding.prefix_cache import BLOCK

from .conftest import MODEL

pytestmark = pytest.mark.serving

WARM = Sampling(temperature=1.2, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=9)
SHARED = [2, *range(5, 5 + BLOCK)]
PROMPTS = [[2, 5, 6], [*SHARED, 9], [*SHARED, 8, 8], [2, 5], [7]]
OPTIONS = {"max_new_tokens": 9, "stop_token_ids": [], "timeout": 120}
MODES = {
    "greedy": {},
    "sampled": {"sampling": WARM},
    "logits": {"top_logprobs": 7},
    "samples": {"sampling": WARM, "samples": 3},
    "beams": {"beams": Beams(width=3, returned=2)},
}


def tokens_of(results: list[Generation]) -> list[list[list[int]]]:
    return [[g.tokens, *(other.tokens for other in g.alternatives)] for g in results]


@pytest.fixture(scope="module")
def expected(target):
    """Tokens of every mode with caches that travel."""
    with Client(target, model=MODEL, sessions=False) as client:
        manifest = client.describe()
        if {manifest.weights_dtype, manifest.cache_dtype} != {"float32"}:
            pytest.skip("equal numbers in another order of sums: float32 only")
        return {
            name: tokens_of(client.generate(PROMPTS, **OPTIONS, **mode))
            for name, mode in MODES.items()
        }


@pytest.fixture(scope="module")
def slots(target) -> int:
    with Client(target, model=MODEL) as client:
        sessions = client.describe().sessions
    if not sessions:
        pytest.skip("this export keeps no sessions")
    return sessions["slots"]


@pytest.mark.parametrize("mode", MODES)
def test_sessions_give_what_explicit_caches_give(target, slots, expected, mode):
    with Client(target, model=MODEL, sessions=True, prefix_cache=1 << 24) as client:
        for _ in range(2):
            results = client.generate(PROMPTS, **OPTIONS, **MODES[mode])
            assert tokens_of(results) == expected[mode]
    assert all(g.counters.session_calls for g in results)


@pytest.mark.parametrize("mode", MODES)
def test_known_prefixes_give_what_whole_prompts_give(target, expected, mode):
    options = {"sessions": False, "prefix_cache": 1 << 24}
    with Client(target, model=MODEL, **options) as client:
        for _ in range(2):
            results = client.generate(PROMPTS, **OPTIONS, **MODES[mode])
            assert tokens_of(results) == expected[mode]
        named = client.describe().checkpoint_digest
    if named:
        assert results[1].cached_prompt_tokens == BLOCK


def test_two_clients_with_more_streams_than_slots(target, slots, expected):
    """Each takes the other's slots."""

    def work(client: Client) -> list[list[list[int]]]:
        return tokens_of([client.generate([p], **OPTIONS)[0] for p in PROMPTS])

    with (
        Client(target, model=MODEL) as one,
        Client(target, model=MODEL) as other,
        ThreadPoolExecutor(2 * slots) as threads,
    ):
        for result in threads.map(work, [one, other] * slots):
            assert result == expected["greedy"]


def test_many_streams_over_few_slots(target, slots, expected):
    async def go() -> list[list[int]]:
        async with AsyncClient(target, model=MODEL, sessions=True) as client:

            async def read(number: int) -> list[int]:
                prompt = PROMPTS[number % len(PROMPTS)]
                stream = client.stream(prompt, **OPTIONS)
                return [token async for chunk in stream for token in chunk.tokens]

            return await asyncio.gather(*map(read, range(15 * slots)))

    for number, tokens in enumerate(asyncio.run(go())):
        assert tokens == expected["greedy"][number % len(PROMPTS)][0]

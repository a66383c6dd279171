"""Generations over three replicas while they die, stall, change and lie."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from optserve.runtime import AsyncClient

from . import enemies
from .peace import MODES, OPTIONS, PROMPTS, prompts, undisturbed
from .replicas import HostileReplica, resident

pytestmark = pytest.mark.slow
GENERATIONS = int(os.environ.get("OPTSERVE_CHAOS_GENERATIONS", "200"))
SEED = int(os.environ.get("OPTSERVE_CHAOS_SEED", "1"))
TROUBLES = ("SIGKILL", "SIGSTOP", "new version", "half-open connection", "slot taken")
MOST_GROWTH = 64e6  # bytes, of the client, once it has done a fifth


def test_nothing_is_lost_and_nothing_is_different(replicas, versions):
    expected = undisturbed(replicas[0].target)
    done: Counter[str] = Counter()
    with HostileReplica(replicas[0].target, SEED) as hostile:
        targets = [*(replica.target for replica in replicas), hostile.target]
        begin = time.monotonic()
        asyncio.run(_bad_day(targets, replicas, versions, expected, done))
        done["hostile answer"] = hostile.answers
    done["second"] = int(time.monotonic() - begin)
    counts = ", ".join(f"{n} {what}" for what, n in sorted(done.items()))
    print(f"\nchaos, seed {SEED}: {counts}")
    assert done["failed"] == done["different"] == 0
    for what in ("hostile answer", "session lost", "cached token"):
        assert done[what], what


async def _bad_day(targets, replicas, versions, expected, done: Counter[str]) -> None:
    dice = random.Random(SEED)
    troubles = [
        enemies.killer(replicas, dice, done),
        enemies.freezer(replicas, dice, done),
        enemies.publisher(versions, dice, done),
        enemies.stormer(replicas, dice, done),
        enemies.evictor(replicas, dice, done),
    ]
    options = {"max_active": 16, "attempt_timeout": 2.0, "prefix_cache": 1 << 20}
    async with AsyncClient(targets, **options) as client:
        running = [asyncio.create_task(trouble) for trouble in troubles]
        try:
            await _generate(client, expected, done)
        finally:
            for task in running:
                task.cancel()
            ended = await asyncio.gather(*running, return_exceptions=True)
    for trouble in ended:  # one that broke does no harm any more
        assert isinstance(trouble, asyncio.CancelledError), trouble


def _work(done: Counter[str]) -> Iterator[tuple[int, int]]:
    """Modes and prompts, so many that every kind of trouble has come."""
    numbered = enumerate(
        itertools.cycle(itertools.product(range(len(MODES)), range(PROMPTS)))
    )
    for number, work in numbered:
        if number >= GENERATIONS and all(done[trouble] for trouble in TROUBLES):
            return
        assert number < 100 * GENERATIONS, done
        yield work


async def _generate(client: AsyncClient, expected, done: Counter[str]) -> None:
    """Sixteen callers share the generations; each compares what it gets."""
    work = _work(done)
    asked = prompts()
    settled = 0

    async def caller() -> None:
        nonlocal settled
        for mode, number in work:
            try:
                (result,) = await client.generate(
                    [asked[number]], sampling=MODES[mode], timeout=300, **OPTIONS
                )
            except Exception as error:
                print(f"\nfailed: {type(error).__name__}: {error}")
                done["failed"] += 1
                continue
            done["right"] += result.tokens == expected[mode][number]
            done["different"] += result.tokens != expected[mode][number]
            done["call repeated"] += result.retries
            done["rebuild"] += result.rebuilds
            done["session lost"] += result.counters.session_losses
            done["explicit fallback"] += result.counters.session_fallbacks
            done["cached token"] += result.cached_prompt_tokens
            if done["right"] == GENERATIONS // 5:
                settled = resident(os.getpid())

    await asyncio.gather(*(caller() for _ in range(16)))
    assert done["failed"] or resident(os.getpid()) < settled + MOST_GROWTH

"""Sixty-four streams through a gateway while the replicas behind it are killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections import Counter

import httpx
import pytest
from optserve.runtime import AsyncClient
from optserve.runtime.gateway import create_app
from optserve.runtime.gateway.connections import BoundedConnection

from tests.runtime.gateway.conftest import serving

from . import enemies
from .peace import MODES, OPTIONS, PROMPTS, prompts, undisturbed
from .replicas import resident

pytestmark = pytest.mark.slow
SECONDS = float(os.environ.get("OPTSERVE_CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("OPTSERVE_CHAOS_SEED", "1"))
STREAMS = 64
MOST_GROWTH = 64e6  # bytes, once a fifth of the time is over


def test_no_stream_fails_and_none_is_different(replicas):
    expected = undisturbed(replicas[0].target)
    done: Counter[str] = Counter()
    firsts: list[float] = []
    targets = [replica.target for replica in replicas]
    client = AsyncClient(targets, attempt_timeout=2.0, max_active=STREAMS)
    with serving(create_app({"opt": client})) as address:
        grown = asyncio.run(_bad_day(address, replicas, expected, done, firsts))
        told = httpx.get(f"{address}/metrics").text
    counts = ", ".join(f"{n} {what}" for what, n in sorted(done.items()))
    firsts.sort()
    middle, late = firsts[len(firsts) // 2], firsts[len(firsts) * 99 // 100]
    print(
        f"\ngateway, seed {SEED}, {SECONDS:g} s: {counts}; "
        f"{done['token'] / SECONDS:.0f} tokens/s, first token p50 {middle:.2f} s, "
        f"p99 {late:.2f} s; memory {grown / 1e6:+.1f} MB after the first fifth"
    )
    assert grown < MOST_GROWTH
    for name in ("running", "waiting"):
        (line,) = re.findall(rf"^vllm:num_requests_{name}{{.*}} (.*)$", told, re.M)
        assert float(line) == 0
    assert done["failed"] == done["different"] == 0
    assert done["right"] and done["SIGKILL"] and done["half-sent request"]


async def _bad_day(
    address, replicas, expected, done: Counter[str], firsts: list[float]
) -> int:
    """How many bytes the process has grown by since a fifth of the time was over."""
    dice = random.Random(SEED)
    attacks = [
        asyncio.create_task(enemies.killer(replicas, dice, done)),
        asyncio.create_task(_half_requests(address, done)),
    ]
    limits = httpx.Limits(max_connections=STREAMS)
    async with httpx.AsyncClient(timeout=300, limits=limits) as http:
        end = time.monotonic() + SECONDS
        memory = asyncio.create_task(_memory(SECONDS))
        streams = [
            _stream(http, address, i, end, expected, done, firsts)
            for i in range(STREAMS)
        ]
        await asyncio.gather(*streams)
    for attack in attacks:
        attack.cancel()
    for ended in await asyncio.gather(*attacks, return_exceptions=True):
        assert isinstance(ended, asyncio.CancelledError), ended
    return resident(os.getpid()) - await memory


async def _half_requests(address: str, done: Counter[str]) -> None:
    """Open connections that bring half a request's head, more than may be idle."""
    host, port = address.rpartition("/")[2].split(":")
    opened: list[asyncio.StreamWriter] = []
    try:
        while True:
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-")
            opened.append(writer)
            done["half-sent request"] += 1
            if len(opened) > 2 * BoundedConnection.most_idle:
                opened.pop(0).close()
            await asyncio.sleep(0.02)
    finally:
        for writer in opened:
            writer.close()


async def _memory(seconds: float) -> int:
    """This process's, which is the gateway's, when a fifth of the time is over."""
    await asyncio.sleep(seconds / 5)
    return resident(os.getpid())


async def _stream(
    http, address, i, end, expected, done: Counter[str], firsts: list[float]
) -> None:
    """One caller: a stream after the other, each compared with what peace gave."""
    dice, asked = random.Random(SEED * STREAMS + i), prompts()
    while time.monotonic() < end:
        mode, number = dice.randrange(len(MODES)), dice.randrange(PROMPTS)
        sampling = MODES[mode]
        body = {
            "prompt": asked[number],
            "max_tokens": OPTIONS["max_new_tokens"],
            "ignore_eos": True,
            "temperature": 0 if sampling is None else sampling.temperature,
            "top_k": 0 if sampling is None else sampling.top_k,
            "seed": 0 if sampling is None else sampling.seed,
            "user": str(i),
            "stream": True,
            "return_token_ids": True,
        }
        tokens: list[int] = []
        begin = time.monotonic()
        try:
            path = f"{address}/v1/completions"
            async with http.stream("POST", path, json=body) as answer:
                assert answer.status_code == 200, await answer.aread()
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line[6:])
                        if not tokens:
                            firsts.append(time.monotonic() - begin)
                        tokens += event["choices"][0]["token_ids"]
        except Exception as error:
            print(f"\nfailed: {type(error).__name__}: {error}")
            done["failed"] += 1
            continue
        done["token"] += len(tokens)
        right = tokens == expected[mode][number]
        done["right" if right else "different"] += 1

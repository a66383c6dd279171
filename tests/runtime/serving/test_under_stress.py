"""Replicas killed, versions swapped, many streams: nobody notices."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from optserve.runtime import AsyncClient, Client, DeadlineExceeded, Sampling

pytestmark = pytest.mark.slow
WARM = Sampling(temperature=0.9, top_k=60, seed=3)
SECONDS = float(os.environ.get("OPTSERVE_STRESS_SECONDS", "120"))


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [[2, *rng.integers(4, 127, rng.integers(1, 24))] for _ in range(count)]


@pytest.fixture(scope="module")
def export(tmp_path_factory, data_dir) -> Path:
    pytest.importorskip("tensorflow")
    from optserve.export.pipeline import export_checkpoint

    out = tmp_path_factory.mktemp("stress") / "opt"
    export_checkpoint(data_dir / "golden" / "pre_ln", out, verify=False)
    return out


@pytest.fixture(scope="module")
def other_export(tmp_path_factory, data_dir) -> Path:
    """The same sizes, other weights."""
    from optserve.export.pipeline import export_checkpoint

    out = tmp_path_factory.mktemp("stress") / "other"
    export_checkpoint(data_dir / "golden" / "untied_head", out, verify=False)
    return out


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Replica:
    """``optserve serve`` in a process of its own, always at the same port."""

    def __init__(self, out: Path, *flags: str) -> None:
        self.port = free_port()
        self.command = [sys.executable, "-m", "optserve.runtime.cli", "serve", str(out)]
        self.command += ["--port", str(self.port), "--json-ready", *flags]
        self.start()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def wait_until_ready(self) -> None:
        json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def memory(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024


@pytest.fixture
def replicas(export, request):
    started: list[Replica] = []

    def start(count: int, out: Path = export, *flags: str) -> list[Replica]:
        started.extend(Replica(out, *flags) for _ in range(count))
        for replica in started:
            replica.wait_until_ready()
        return started

    yield start
    for replica in started:
        replica.kill()


def undisturbed(target: str, prompts: list[list[int]], **options) -> list[list[int]]:
    with Client(target) as client:
        return [g.tokens for g in client.generate(prompts, **options)]


def test_replicas_are_killed_and_restarted_and_no_token_changes(replicas):
    three = replicas(3)
    asked = prompts(100)
    modes = [
        {"max_new_tokens": 16, "stop_token_ids": [], "sampling": sampling}
        for sampling in (None, WARM)
    ]
    expected = [undisturbed(three[0].target, asked, **options) for options in modes]
    kills = rounds = retries = 0

    async def killer(stop: asyncio.Event) -> None:
        nonlocal kills
        dice = random.Random(1)
        while not stop.is_set():
            victim = dice.choice(three)
            await asyncio.to_thread(victim.kill)
            kills += 1
            victim.start()
            await asyncio.to_thread(victim.wait_until_ready)
            await asyncio.sleep(dice.uniform(0, 0.3))

    async def go() -> None:
        nonlocal rounds, retries
        stop = asyncio.Event()
        targets = [replica.target for replica in three]
        async with AsyncClient(targets, max_active=16) as client:
            enemy = asyncio.create_task(killer(stop))
            while kills < 8 and not enemy.done():
                for options, tokens in zip(modes, expected, strict=True):
                    results = await client.generate(asked, **options)
                    assert [g.tokens for g in results] == tokens
                    retries += sum(g.retries for g in results)
                rounds += 1
            stop.set()
            await enemy

    asyncio.run(go())
    assert retries > 0
    print(f"{rounds} times 200 generations, {kills} kills, {retries} calls repeated")


def test_a_frozen_server_is_left_at_the_deadline(replicas):
    (server,) = replicas(1)
    options = {"max_new_tokens": 8, "stop_token_ids": []}

    async def go(client: Client) -> list[float]:
        late = []
        async with AsyncClient(server.target) as other:
            await other.generate([[2, 5]], **options)
            server.process.send_signal(signal.SIGSTOP)
            for timeout in (0.3, 1.5):
                for ask in (
                    lambda t: asyncio.to_thread(
                        client.generate, [[2, 5]], timeout=t, **options
                    ),
                    lambda t: other.generate([[2, 5]] * 3, timeout=t, **options),
                ):
                    begin = time.monotonic()
                    with pytest.raises(DeadlineExceeded):
                        await ask(timeout)
                    late.append(time.monotonic() - begin - timeout)
            server.process.send_signal(signal.SIGCONT)
            (result,) = await other.generate([[2, 5]], **options)
            assert len(result.tokens) == 8
        return late

    with Client(server.target) as client:
        client.generate([[2, 5]], **options)
        late = asyncio.run(go(client))
    print("seconds after the deadline:", [round(x, 4) for x in late])
    assert max(map(abs, late)) <= 0.05


@pytest.mark.parametrize("weights", ["the same", "others"])
@pytest.mark.parametrize("calls", ["few", "one for each token"])
def test_a_new_version_under_load_fails_nothing_and_mixes_no_cache(
    replicas, export, other_export, tmp_path, weights, calls
):
    out, new = tmp_path / "opt", tmp_path / "new"
    shutil.copytree(export, out)
    shutil.copytree((export if weights == "the same" else other_export) / "1", new)
    (server,) = replicas(1, out, "--poll-seconds", "0.2")
    asked = prompts(8)
    options = {"max_new_tokens": 30, "stop_token_ids": [], "sampling": WARM}
    options["top_logprobs"] = 6 * (calls == "one for each token")
    old = undisturbed(server.target, asked, **options)

    async def go():
        results = []
        async with AsyncClient(server.target) as client:
            results += await client.generate(asked, **options)
            new.rename(out / "2")
            begin = time.monotonic()
            while time.monotonic() < begin + 300:
                results_now = await client.generate(asked, **options)
                results += results_now
                if all(g.model_version == 2 and not g.rebuilds for g in results_now):
                    return results, time.monotonic() - begin
        raise AssertionError("version 2 never came")

    results, seconds = asyncio.run(go())
    fresh = undisturbed(server.target, asked, **options)
    assert (fresh == old) == (weights == "the same")
    with Client(server.target) as client:
        for result in results:
            before, after = old[result.index], fresh[result.index]
            if result.rebuilds:  # begun on version 1, ended on version 2
                ends = endings(client, asked[result.index], before, **options)
                assert result.tokens in ends
            else:
                assert result.tokens == (before if result.model_version == 1 else after)
    rebuilds = sum(g.rebuilds for g in results)
    print(
        f"{len(results)} generations, {rebuilds} rebuilds, all new in {seconds:.1f} s"
    )


def endings(client: Client, prompt, tokens, *, max_new_tokens, **options):
    """What the served version makes of each beginning of ``tokens``."""
    yield list(tokens)
    for k in range(max_new_tokens):
        left = max_new_tokens - k
        given = [*prompt, *tokens[:k]]
        (rest,) = client.generate([given], max_new_tokens=left, **options)
        yield [*tokens[:k], *rest.tokens]


def memory_of_this() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_64_streams_for_long_give_the_right_tokens_in_flat_memory(replicas):
    (server,) = replicas(1)
    asked = prompts(64)
    options = {"max_new_tokens": 24, "stop_token_ids": [], "sampling": WARM}
    expected = undisturbed(server.target, asked, **options)
    memory: list[tuple[int, int]] = []

    async def one(client: AsyncClient, i: int, end: float) -> int:
        count = 0
        while time.monotonic() < end:
            stream = client.stream(asked[i], **options)
            tokens = [token async for chunk in stream for token in chunk.tokens]
            assert tokens == expected[i]
            count += len(tokens)
        return count

    async def watch(end: float) -> None:
        while time.monotonic() < end:
            memory.append((memory_of_this(), server.memory()))
            await asyncio.sleep(SECONDS / 20)

    async def go() -> tuple[float, float]:
        async with AsyncClient(server.target) as client:
            await asyncio.gather(
                *(one(client, i, time.monotonic() + 1) for i in (0, 1))
            )
            begin = time.monotonic()
            alone = await one(client, 0, begin + SECONDS / 4)
            alone /= time.monotonic() - begin
            begin = time.monotonic()
            work = [one(client, i, begin + SECONDS) for i in range(64)]
            *counts, _ = await asyncio.gather(*work, watch(begin + SECONDS))
            return alone, sum(counts) / (time.monotonic() - begin)

    alone, together = asyncio.run(go())
    print(f"one stream {alone:.0f} tokens/s, 64 streams {together:.0f} tokens/s")
    print("memory, MB:", [(a >> 20, b >> 20) for a, b in memory[:: len(memory) // 5]])
    assert together >= 3 * alone
    settled = memory[len(memory) // 4]
    for now, before in zip(memory[-1], settled, strict=True):
        assert now < 1.1 * before + (20 << 20)

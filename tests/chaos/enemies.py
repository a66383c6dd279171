"""What goes wrong on a bad day, one coroutine for each kind of it.

Each runs until it is cancelled and counts what it did in a ``Counter``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections import Counter

import numpy as np
from optserve.runtime.errors import OptserveError
from optserve.runtime.transports.base import Call
from optserve.runtime.transports.connection import Retry
from optserve.runtime.transports.grpc_async import AsyncGrpcTransport

from .replicas import Replica, Versions

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes(9)[:3] + b"\x04" + bytes(5)  # an empty frame of settings
HALF_A_FRAME = b"\x00\x40\x00\x01\x04\x00\x00\x00\x01abc"  # promises 16 KiB of headers
CONNECTIONS = 64


async def killer(
    replicas: list[Replica], dice: random.Random, done: Counter[str]
) -> None:
    """SIGKILL; the replica comes back and is left alone for a while."""
    while True:
        await asyncio.sleep(dice.uniform(1, 5))
        victim = dice.choice(replicas)
        await asyncio.to_thread(victim.kill)
        done["SIGKILL"] += 1
        victim.start()
        await asyncio.to_thread(victim.wait_until_ready)


async def freezer(
    replicas: list[Replica], dice: random.Random, done: Counter[str]
) -> None:
    """SIGSTOP for up to three seconds."""
    while True:
        await asyncio.sleep(dice.uniform(1, 5))
        victim = dice.choice(replicas)
        victim.freeze()
        done["SIGSTOP"] += 1
        try:
            await asyncio.sleep(dice.uniform(0.2, 3))
        finally:
            victim.thaw()


async def publisher(
    versions: Versions, dice: random.Random, done: Counter[str]
) -> None:
    """New versions of the same weights, now and then a corrupt one."""
    while True:
        await asyncio.sleep(dice.uniform(3, 8))
        if dice.random() < 0.3:
            folder = await asyncio.to_thread(versions.publish_corrupt)
            done["corrupt version"] += 1
            await asyncio.sleep(dice.uniform(1, 4))
            await asyncio.to_thread(shutil.rmtree, folder)
        else:
            await asyncio.to_thread(versions.publish)
            done["new version"] += 1


async def stormer(
    replicas: list[Replica], dice: random.Random, done: Counter[str]
) -> None:
    """Connections that begin a request and never end it, for some seconds each."""
    while True:
        victim = dice.choice(replicas)
        opened = []
        for _ in range(CONNECTIONS):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", victim.port)
                writer.write(HTTP2_PREFACE + SETTINGS + HALF_A_FRAME)
                opened.append(writer)
        done["half-open connection"] += len(opened)
        try:
            await asyncio.sleep(dice.uniform(2, 6))
        finally:
            for writer in opened:
                writer.close()


async def evictor(
    replicas: list[Replica], dice: random.Random, done: Counter[str]
) -> None:
    """Somebody else's sessions, each in the slot that was used longest ago."""
    opening = Call("session_open", {"row": np.zeros(1, np.int32)})
    while True:
        await asyncio.sleep(dice.uniform(0.05, 0.5))
        target = dice.choice(replicas).target
        retry = Retry(connect=0, recover=0)
        async with AsyncGrpcTransport(target, model="opt", retry=retry) as transport:
            with contextlib.suppress(OptserveError):
                await transport.call(opening, timeout=1)
                done["slot taken"] += 1

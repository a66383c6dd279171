"""Several servers with sessions in one process, which die, restart and evict."""

from __future__ import annotations

import random
from dataclasses import replace

from optserve.runtime.errors import Unavailable
from optserve.runtime.transports.base import AsyncTransport, Call, Reply, Transport

from tests.runtime.numpy_model import NumpyTransport

SESSIONS = {"slots": 2, "positions": 64}


class Servers(Transport):
    """Replicas that answer in turn; calls of sessions go where they say.

    Before each call of a session, one of ``troubles`` happens with probability
    ``chance``: ``"evict"`` gives a slot to somebody else, ``"restart"`` forgets all,
    ``"down"`` makes a replica fail for its next calls.
    """

    def __init__(
        self,
        count: int = 1,
        *,
        troubles: tuple[str, ...] = (),
        chance: float = 0.2,
        seed: int = 0,
        **options,
    ) -> None:
        options = {"sessions": SESSIONS, "generate": (2, 8), **options}
        self.servers = [NumpyTransport(**options) for _ in range(count)]
        self.down = [0] * count  # calls that fail from now on
        self.happened: list[str] = []
        self.calls: list[Call] = []
        self._troubles, self._chance = troubles, chance
        self._dice = random.Random(seed)
        self._next = 0

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(f"replica {i}" for i in range(len(self.servers)))

    def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        self.calls.append(call)
        if call.signature.startswith("session_"):
            self._trouble()
        allowed = [i for i, t in enumerate(self.targets) if t in call.replicas]
        turn = allowed or [*range(len(self.servers))]
        for _ in range(len(turn)):
            self._next += 1
            index = turn[self._next % len(turn)]
            if self.down[index]:
                self.down[index] -= 1
                continue
            reply = self.servers[index].call(call, timeout=timeout)
            return replace(reply, target=self.targets[index])
        raise Unavailable("no replica answers")

    def close(self) -> None:
        pass

    def count(self, signature: str) -> int:
        """How many calls of it there were."""
        return sum(call.signature.startswith(signature) for call in self.calls)

    def _trouble(self) -> None:
        if not self._troubles or self._dice.random() >= self._chance:
            return
        trouble = self._dice.choice(self._troubles)
        server = self._dice.choice(self.servers)
        self.happened.append(trouble)
        if trouble == "evict":
            server.sessions.evict(self._dice.randrange(len(server.sessions.tickets)))
        elif trouble == "restart":
            server.restart()
        elif trouble == "down":
            # One replica stays, or nobody could go on.
            self.down[self.servers.index(server)] = self._dice.randint(1, 4)
            self.down[0] = 0


class AsyncServers(AsyncTransport):
    """``Servers`` for asyncio."""

    def __init__(self, inner: Servers) -> None:
        self.inner = inner

    @property
    def targets(self) -> tuple[str, ...]:
        return self.inner.targets

    async def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        return self.inner.call(call, timeout=timeout)

    async def close(self) -> None:
        pass

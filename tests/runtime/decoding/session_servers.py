"""Several servers with sessions in one process, which die, restart and evict."""

from __future__ import annotations

import random
from dataclasses import replace

from optserve.runtime import Beams, Client, Generation, Sampling
from optserve.runtime.decoding.prefix_cache import BLOCK
from optserve.runtime.errors import Unavailable
from optserve.runtime.transports.base import AsyncTransport, Call, Reply, Transport

from tests.runtime.numpy_model import NumpyTransport

SESSIONS = {"slots": 2, "positions": 64}
WARM = Sampling(temperature=1.2, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=9)
SHARED = [2, *range(5, 5 + 2 * BLOCK)]
PROMPTS = [[2, 5, 6], [*SHARED, 9], [*SHARED, 8, 8], [2, 5], [7]]
DIGEST = {"checkpoint_digest": "a" * 64}
MODES = {
    "greedy": {},
    "sampled": {"sampling": WARM},
    "logits": {"top_logprobs": 3},
    "samples": {"sampling": WARM, "samples": 3},
    "beams": {"beams": Beams(width=3, returned=2)},
}


def explicit(prompts: list[list[int]], **options) -> list[Generation]:
    """What a server without sessions gives, one prompt after another."""
    with Client(transport=NumpyTransport(), max_rows=1) as client:
        return [client.generate([prompt], **options)[0] for prompt in prompts]


def same(actual: list[Generation], expected: list[Generation]) -> bool:
    """Whether all samples have the same tokens."""
    return [_tokens(g) for g in actual] == [_tokens(g) for g in expected]


def _tokens(generation: Generation) -> list[list[int]]:
    return [generation.tokens, *(other.tokens for other in generation.alternatives)]


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

"""Which replica gets the next attempt: round-robin, leaving out the unhealthy.

No I/O and no clock of its own, so that both transports share it and tests drive it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from .connection import Ejection

_log = logging.getLogger(__name__)


@dataclass
class _Health:
    failures: int = 0  # in a row
    out_until: float = 0.0


class Replicas:
    """The state of a transport's targets. Safe to use from several threads."""

    def __init__(
        self,
        targets: Sequence[str],
        ejection: Ejection,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.targets = tuple(targets)
        self.answered = False  # whether any of them ever did
        self._ejection = ejection
        self._clock = clock
        self._jitter = jitter
        self._health = [_Health() for _ in self.targets]
        self._next = 0
        self._lock = threading.Lock()

    def pick(self, tried: Collection[int] = ()) -> int | None:
        """The next replica in turn that isn't in ``tried``; None if all are.

        An ejected one is taken only if there is no other, the earliest back first.
        """
        with self._lock:
            count = len(self.targets)
            turn = [(self._next + i) % count for i in range(count)]
            left = [i for i in turn if i not in tried]
            if not left:
                return None
            now = self._clock()
            healthy = [i for i in left if self._health[i].out_until <= now]
            chosen = (
                healthy[0]
                if healthy
                else min(left, key=lambda i: self._health[i].out_until)
            )
            self._next = (chosen + 1) % count
            health = self._health[chosen]
            if health.failures and chosen in healthy:
                # One call tries it; the others stay away until that has ended well.
                health.out_until = now + self._ejection.first
            return chosen

    def succeeded(self, index: int) -> None:
        """The replica answered (an orderly refusal is an answer as well)."""
        with self._lock:
            health = self._health[index]
            returned = health.failures > 0
            health.failures, health.out_until = 0, 0.0
            self.answered = True
        if returned:
            _log.info("replica %s is back", self.targets[index])

    def failed(self, index: int) -> None:
        """The replica couldn't be reached, broke off or sent nonsense: leave it out."""
        with self._lock:
            health = self._health[index]
            health.failures += 1
            doubled = self._ejection.first * 2 ** min(health.failures - 1, 30)
            seconds = min(doubled, self._ejection.longest) * (0.5 + self._jitter() / 2)
            health.out_until = self._clock() + seconds
            first = health.failures == 1
        if first and len(self.targets) > 1:
            _log.warning("replica %s left out for %.1f s", self.targets[index], seconds)

    def is_healthy(self, index: int) -> bool:
        """Whether the replica is not left out now."""
        with self._lock:
            return self._health[index].out_until <= self._clock()

    def healthy(self) -> list[str]:
        """The targets not left out now."""
        with self._lock:
            now = self._clock()
            return [
                target
                for target, health in zip(self.targets, self._health, strict=True)
                if health.out_until <= now
            ]

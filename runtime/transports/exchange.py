"""One request, and whichever replica gives a good reply to it, without I/O.

Which replica is next, whether to try again and how long to wait is decided here, with
``replicas``, ``retry_policy``, ``same_model`` and ``status_mapping``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..codec import ModelSpec, PredictResponse
from ..errors import DeadlineExceeded, MalformedReply
from .base import Expectation
from .connection import Connection
from .replicas import Replicas
from .retry_policy import Attempts
from .same_model import SameModel
from .status_mapping import MALFORMED, Failure, Outcome, classify, one_line
from .steps import PREDICT, Attempt, Operation, Pause

CONTROL_LIMIT = 4 << 20
"""Bytes of a reply that carries no tensors."""

_CLOCKS_APART = 0.005  # seconds between gRPC's clock and ours


@dataclass(frozen=True)
class Request:
    """What is sent to a replica, and how its reply is read."""

    method: str
    payload: bytes
    model: ModelSpec
    decode: Callable[[bytes], Any]
    most_bytes: int = CONTROL_LIMIT
    model_id: str = ""  # the model whose cache it carries
    expected: Expectation | None = None
    replicas: tuple[str, ...] = ()  # the only ones that may answer; () for all


@dataclass(frozen=True)
class Answer:
    """A good reply, and what it took."""

    result: Any
    data: bytes
    target: int
    retries: int


class Exchange:
    """Sends requests to a model's replicas, until one of them replies well.

    Args:
        targets: the replicas' addresses, for messages.
        connection: its times and its retry policy.
        replicas: which of them are well.
        same_model: which of them serve the agreed model.
        clock: seconds.
        jitter: a random number from 0 to 1, for pauses.
    """

    def __init__(
        self,
        targets: tuple[str, ...],
        connection: Connection,
        replicas: Replicas,
        same_model: SameModel,
        *,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._targets = targets
        self._connection = connection
        self._replicas = replicas
        self._same_model = same_model
        self._clock = clock
        self._jitter = jitter

    def send(self, request: Request, deadline: float) -> Operation[Answer]:
        """One request and its reply, from whichever replica gives a good one."""
        started = self._clock()
        barred = self._barred(request)
        attempts = Attempts(
            self._replicas,
            request.model,
            self._connection.retry,
            self._clock,
            self._jitter,
            named=bool(request.replicas),
        )
        while True:
            index = self._replicas.pick({*attempts.tried, *barred})
            if index is None:
                wait = attempts.end_round(self.time_left(deadline))
                if wait > 0:
                    yield Pause(wait)
                continue
            left = self.time_left(deadline)
            if left is not None and left <= 0:
                raise self._too_late(deadline - started, attempts.last)
            allowed = least(left, self._connection.attempt_timeout)
            outcome = yield from self._attempt(request, index, allowed)
            late = self._clock() > deadline - _CLOCKS_APART
            if outcome.code == "DEADLINE_EXCEEDED" and late:
                raise self._too_late(deadline - started, attempts.last)
            failure = classify(outcome)
            if failure is None:
                self._replicas.succeeded(index)
                return Answer(outcome.result, outcome.data, index, attempts.failed)
            if failure is Failure.DOWN:
                self._same_model.forget(index)
            attempts.note(index, failure, outcome)

    def _barred(self, request: Request) -> set[int]:
        """The replicas that may not answer."""
        if not request.replicas:
            return set()
        return {
            index
            for index, target in enumerate(self._targets)
            if target not in request.replicas
        }

    def _attempt(
        self, request: Request, index: int, timeout: float | None
    ) -> Operation[Outcome]:
        """Send a request to one replica; a good reply comes read and checked."""
        pinned = request.model.version
        if pinned is not None and request.method == PREDICT:
            wrong = yield from self._same_model.why_not(index, pinned, request.model_id)
            if wrong:
                return wrong
        outcome: Outcome = yield Attempt(
            index, request.method, request.payload, timeout, request.most_bytes
        )
        outcome = read(outcome, request)
        if outcome.code != "OK" or request.method != PREDICT:
            return outcome
        version = outcome.result.model.version
        wrong = yield from self._same_model.why_not(
            index, version, request.model_id, timeout
        )
        return wrong or self._compared(outcome, request)

    def _compared(self, outcome: Outcome, request: Request) -> Outcome:
        """A good reply of a version that the call was not planned for."""
        response: PredictResponse = outcome.result
        expected = self.expected_of(request.expected, response.model.version)
        if expected in (None, request.expected):
            return outcome
        try:
            expected.check(response.outputs)
        except MalformedReply as error:
            return Outcome(MALFORMED, str(error))
        return outcome

    def expected_of(
        self, expected: Expectation | None, version: int | None
    ) -> Expectation | None:
        """What a reply of this version must be like; None if nobody knows."""
        if expected is None or version is None or expected.version in (None, version):
            return expected
        described = self._same_model.described(version)
        return expected.of(described) if described else None

    def time_left(self, deadline: float) -> float | None:
        """Seconds until the deadline; None without one."""
        return None if deadline == math.inf else deadline - self._clock()

    def _too_late(self, seconds: float, last: Outcome | None) -> DeadlineExceeded:
        why = f" (last: {last.code} {one_line(last.details)})" if last else ""
        return DeadlineExceeded(
            f"no reply from {', '.join(self._targets)} within {max(seconds, 0):.3g} s"
            f"{why}: allow more time, or look whether the server is overloaded"
        )


def read(outcome: Outcome, request: Request) -> Outcome:
    """A good reply's outcome with its result; a malformed reply is a failure."""
    if outcome.code != "OK":
        return outcome
    try:
        return replace(outcome, result=request.decode(outcome.data))
    except MalformedReply as error:
        return Outcome(MALFORMED, str(error))


def least(*values: float | None) -> float | None:
    """The shortest of some times; None, which is no limit, if there is none."""
    return min((v for v in values if v is not None), default=None)

"""Everything that both gRPC transports do alike, without I/O.

An operation is a generator: it yields ``Send`` and ``Pause``, receives an ``Outcome``
for each ``Send``, and returns its result. The transports only carry the steps out, one
blocking, one awaiting; which replica, whether again, and how long to wait is here.
"""

from __future__ import annotations

import logging
import math
import os
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from ..codec import (
    MalformedMessage,
    ModelMetadata,
    ModelSpec,
    VersionStatus,
    decode_metadata_response,
    decode_predict_response,
    decode_status_response,
    encode_metadata_request,
    encode_predict_request,
    encode_status_request,
)
from ..errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    MalformedReply,
    OptserveError,
    Unavailable,
)
from .base import Call, Reply
from .connection import Connection, checked_label
from .replicas import Replicas
from .status_mapping import LEAVE_OUT, Failure, Outcome, classify, error_for, one_line

_log = logging.getLogger(__name__)

T = TypeVar("T")

PREDICT = "/tensorflow.serving.PredictionService/Predict"
GET_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
GET_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
METHODS = (PREDICT, GET_METADATA, GET_STATUS)

_READY_PAUSE = 0.2  # seconds between questions whether the model is there
_STATUS_TIMEOUT = 5.0
_MISSING_PATIENCE = 3.0  # seconds for replicas that are down to return with a version
_TELLING = (  # the failure to report if several kinds happened
    Failure.MISSING,
    Failure.EXHAUSTED,
    Failure.BUSY,
    Failure.UNTRUSTED,
    Failure.DOWN,
    Failure.GARBLED,
)


@dataclass(frozen=True)
class Send:
    """Call ``method`` of replica ``target`` (an index) and give back its Outcome."""

    target: int
    method: str
    payload: bytes
    timeout: float | None


@dataclass(frozen=True)
class Pause:
    """Wait, unless the transport is closed meanwhile."""

    seconds: float


@dataclass(frozen=True)
class TargetStatus:
    """What one server says of the model: its versions, or why it says nothing."""

    target: str
    versions: tuple[VersionStatus, ...] = ()
    error: str = ""

    @property
    def available(self) -> bool:
        """Whether a version is ready to answer."""
        return any(version.state == "AVAILABLE" for version in self.versions)


Steps = Generator[Send | Pause, Any, T]


@dataclass(frozen=True)
class _Answer:
    result: Any
    data: bytes
    target: int
    retries: int


class Operations:
    """One model on several replicas: the operations as steps."""

    def __init__(
        self,
        targets: tuple[str, ...],
        model: str,
        connection: Connection,
        *,
        label: str = "",
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if not model:
            raise InvalidRequest("the model has no name: give the served model's name")
        checked_label(label)
        self.targets = targets
        self.model = model
        self.label = label
        self.connection = connection
        self.replicas = Replicas(
            targets, connection.ejection, clock=clock, jitter=jitter
        )
        self.closed = False
        self._clock = clock
        self._jitter = jitter
        self._pid = os.getpid()

    # --- operations -------------------------------------------------------------

    def predict(self, call: Call, timeout: float | None) -> Steps[Reply]:
        """Run one call of a signature."""
        started = self._clock()
        deadline = self._deadline(timeout)
        limit = self.connection.limits.message
        model = self._spec(call.version, call.signature)
        payload = encode_predict_request(model, call.inputs, call.outputs, limit=limit)

        def decode(data: bytes):
            reply = decode_predict_response(
                data, expansion_limit=self.connection.limits.expansion
            )
            got = reply.model.version
            if call.version is not None and got not in (None, call.version):
                raise MalformedMessage(
                    f"version {got} answered, version {call.version} was asked"
                )
            return reply

        answer = yield from self._exchange(PREDICT, payload, model, deadline, decode)
        return Reply(
            outputs=answer.result.outputs,
            version=answer.result.model.version or 0,
            seconds=self._clock() - started,
            bytes_sent=len(payload),
            bytes_received=len(answer.data),
            retries=answer.retries,
            target=self.targets[answer.target],
        )

    def metadata(
        self, version: int | None, timeout: float | None
    ) -> Steps[ModelMetadata]:
        """The model's signatures, as the server lists them."""
        deadline = self._deadline(timeout)
        model = self._spec(version)
        payload = encode_metadata_request(model)
        answer = yield from self._exchange(
            GET_METADATA, payload, model, deadline, decode_metadata_response
        )
        return answer.result

    def status(self, timeout: float | None) -> Steps[list[TargetStatus]]:
        """What each server says of the model; servers that are down are listed too."""
        found = []
        for index in range(len(self.targets)):
            found.append((yield from self._status_of(index, timeout)))
        return found

    def wait_until_ready(self, timeout: float | None) -> Steps[None]:
        """CallRequest until a server has a version of the model AVAILABLE."""
        deadline = self._deadline(timeout)
        while True:
            last = []
            for index in range(len(self.targets)):
                left = self._left(deadline)
                if left is not None and left <= 0:
                    break
                status = yield from self._status_of(index, left)
                if status.available:
                    return
                states = [f"version {v.version} {v.state}" for v in status.versions]
                last.append(f"{status.target}: {status.error or ', '.join(states)}")
            left = self._left(deadline)
            if left is not None and left <= _READY_PAUSE:
                raise Unavailable(
                    f"model {self.model!r} was not ready within {timeout:g} s "
                    f"({'; '.join(last) or 'no answer'}): check that the server runs "
                    "and serves that name"
                )
            yield Pause(_READY_PAUSE)

    # --- one call, as often as needed -------------------------------------------

    def _exchange(
        self,
        method: str,
        payload: bytes,
        model: ModelSpec,
        deadline: float,
        decode: Callable[[bytes], Any],
    ) -> Steps[_Answer]:
        started = self._clock()
        rounds = _Rounds(self, model)
        retries = 0
        while True:
            index = self.replicas.pick(rounds.tried)
            if index is None:
                wait = rounds.end(self._left(deadline))
                if wait > 0:
                    yield Pause(wait)
                continue
            left = self._left(deadline)
            if left is not None and left <= 0:
                raise self._too_late(deadline - started, rounds.last)
            allowed = _least(left, self.connection.attempt_timeout)
            outcome = yield Send(index, method, payload, allowed)
            if outcome.code == "OK":
                try:
                    result = decode(outcome.data)
                except MalformedMessage as error:
                    outcome = Outcome("OK", str(error))
                    failure = Failure.GARBLED
                else:
                    self.replicas.succeeded(index)
                    return _Answer(result, outcome.data, index, retries)
            else:
                late = self._clock() > deadline - 0.005  # gRPC's clock and ours
                if outcome.code == "DEADLINE_EXCEEDED" and late:
                    raise self._too_late(deadline - started, rounds.last)
                failure = classify(outcome)
            retries += 1
            rounds.note(index, failure, outcome)

    def _status_of(self, index: int, timeout: float | None) -> Steps[TargetStatus]:
        target = self.targets[index]
        payload = encode_status_request(self._spec(None))
        allowed = _least(timeout, _STATUS_TIMEOUT)
        outcome = yield Send(index, GET_STATUS, payload, allowed)
        if outcome.code != "OK":
            return TargetStatus(target, error=f"{outcome.code} {outcome.details}")
        try:
            return TargetStatus(target, tuple(decode_status_response(outcome.data)))
        except MalformedMessage as error:
            return TargetStatus(target, error=str(error))

    def _spec(self, version: int | None, signature: str = "") -> ModelSpec:
        """What to ask for: a pinned version, else the label's, else the newest."""
        label = self.label if version is None else ""
        return ModelSpec(self.model, signature, version, label)

    def _deadline(self, timeout: float | None) -> float:
        if self.closed:
            raise self.closed_error()
        if os.getpid() != self._pid:
            raise InvalidRequest(
                "this connection was made in another process (gRPC does not survive a "
                "fork): make a new one after forking"
            )
        return math.inf if timeout is None else self._clock() + timeout

    def _left(self, deadline: float) -> float | None:
        return None if deadline == math.inf else deadline - self._clock()

    def closed_error(self) -> Cancelled:
        """The error for calls on a closed transport, and those that it broke off."""
        return Cancelled("the connection was closed: make a new client")

    def _too_late(self, seconds: float, last: Outcome | None) -> DeadlineExceeded:
        why = f" (last: {last.code} {last.details})" if last else ""
        return DeadlineExceeded(
            f"no reply from {', '.join(self.targets)} within {max(seconds, 0):.3g} s"
            f"{why}: allow more time, or look whether the server is overloaded"
        )


class _Rounds:
    """The failed attempts of one call: each replica once a round, then a wait."""

    def __init__(self, operations: Operations, model: ModelSpec) -> None:
        self.tried: dict[int, tuple[Failure, Outcome]] = {}
        self.last: Outcome | None = None
        self._operations = operations
        self._model = model
        self._count = 0
        self._started = operations._clock()

    def note(self, index: int, failure: Failure, outcome: Outcome) -> None:
        """Record a failed attempt.

        Raises:
            OptserveError: no other replica could do better.
        """
        operations = self._operations
        self.tried[index] = (failure, outcome)
        self.last = outcome
        if failure in LEAVE_OUT:
            operations.replicas.failed(index)
        else:
            operations.replicas.succeeded(index)
        if failure is Failure.REFUSED:
            raise self._error(failure)
        target, details = operations.targets[index], one_line(outcome.details)
        _log.debug("attempt failed: %s: %s %s", target, outcome.code, details)

    def end(self, left: float | None) -> float:
        """Every replica has failed: the seconds to wait before the next round.

        Raises:
            OptserveError: waiting won't help, or has been enough.
        """
        operations, retry = self._operations, self._operations.connection.retry
        kinds = {failure for failure, _ in self.tried.values()}
        self._count += 1
        hopeless = {Failure.MISSING, Failure.GARBLED, Failure.UNTRUSTED}
        if operations.replicas.answered:  # trusted before: perhaps it's restarting
            hopeless.remove(Failure.UNTRUSTED)
        if kinds <= hopeless:
            raise self._error(next(kind for kind in _TELLING if kind in kinds))
        if kinds == {Failure.EXHAUSTED} and self._count >= retry.busy_rounds:
            raise self._error(Failure.EXHAUSTED)
        patience = retry.recover if operations.replicas.answered else retry.connect
        if Failure.MISSING in kinds:  # others may have it once they are back
            patience = min(patience, _MISSING_PATIENCE)
        wait = min(retry.first_wait * 2 ** min(self._count - 1, 30), retry.longest_wait)
        wait *= 0.5 + operations._jitter() / 2
        if operations._clock() + wait > self._started + patience:
            raise self._error(next(kind for kind in _TELLING if kind in kinds))
        self.tried.clear()
        return wait if left is None else max(min(wait, left), 0.0)

    def _error(self, kind: Failure) -> OptserveError:
        operations = self._operations
        index, outcome = next(
            (i, outcome)
            for i, (failure, outcome) in self.tried.items()
            if failure is kind
        )
        target = operations.targets[index]
        if kind is Failure.GARBLED:
            return MalformedReply(
                f"{target} sent a reply that makes no sense ({outcome.details}): "
                "check that it is a TensorFlow Serving server"
            )
        return error_for(
            kind, outcome, target, self._model, others=len(operations.targets) - 1
        )


def _least(*values: float | None) -> float | None:
    return min((v for v in values if v is not None), default=None)

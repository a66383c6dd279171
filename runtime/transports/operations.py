"""TensorFlow Serving's operations on one model and its replicas, without I/O.

An operation is a generator: it yields ``Attempt`` and ``Pause``, receives an
``Outcome`` for each ``Attempt``, and returns its result. The two gRPC transports only
carry these out, one blocking, one awaiting. Which replica is next, whether to try again
and how long to wait is decided here (``replicas``, ``retry_policy``,
``status_mapping``).
"""

from __future__ import annotations

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
    PredictResponse,
    VersionStatus,
    decode_metadata_response,
    decode_predict_response,
    decode_status_response,
    encode_metadata_request,
    encode_predict_request,
    encode_status_request,
)
from ..errors import Cancelled, DeadlineExceeded, InvalidRequest, Unavailable
from .base import Call, Reply
from .connection import Connection, checked_label
from .replicas import Replicas
from .retry_policy import Attempts
from .status_mapping import Failure, Outcome, classify, one_line

T = TypeVar("T")

PREDICT = "/tensorflow.serving.PredictionService/Predict"
GET_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
GET_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
METHODS = (PREDICT, GET_METADATA, GET_STATUS)

_READY_PAUSE = 0.2  # seconds between questions whether the model is there
_STATUS_TIMEOUT = 5.0
_CLOCKS_APART = 0.005  # seconds between gRPC's clock and ours


@dataclass(frozen=True)
class Attempt:
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


Operation = Generator[Attempt | Pause, Any, T]


@dataclass(frozen=True)
class _Answer:
    result: Any
    data: bytes
    target: int
    retries: int


class Operations:
    """One model on several replicas."""

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

    def predict(self, call: Call, timeout: float | None) -> Operation[Reply]:
        """Run one call of a signature."""
        started = self._clock()
        deadline = self._deadline(timeout)
        limits = self.connection.limits
        model = self._spec(call.version, call.signature)
        payload = encode_predict_request(
            model, call.inputs, call.outputs, limit=limits.message
        )

        def decode(data: bytes) -> PredictResponse:
            response = decode_predict_response(data, expansion_limit=limits.expansion)
            _check_version(response.model.version, call.version)
            return response

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
    ) -> Operation[ModelMetadata]:
        """The model's signatures, as the server lists them."""
        deadline = self._deadline(timeout)
        model = self._spec(version)
        payload = encode_metadata_request(model)
        answer = yield from self._exchange(
            GET_METADATA, payload, model, deadline, decode_metadata_response
        )
        return answer.result

    def status(self, timeout: float | None) -> Operation[list[TargetStatus]]:
        """What each server says of the model; servers that are down are listed too."""
        statuses = []
        for index in range(len(self.targets)):
            statuses.append((yield from self._status_of(index, timeout)))
        return statuses

    def wait_until_ready(self, timeout: float | None) -> Operation[None]:
        """Ask until a server has a version of the model AVAILABLE."""
        deadline = self._deadline(timeout)
        while True:
            last = []
            for index in range(len(self.targets)):
                left = self._time_left(deadline)
                if left is not None and left <= 0:
                    break
                status = yield from self._status_of(index, left)
                if status.available:
                    return
                states = [f"version {v.version} {v.state}" for v in status.versions]
                last.append(f"{status.target}: {status.error or ', '.join(states)}")
            left = self._time_left(deadline)
            if left is not None and left <= _READY_PAUSE:
                raise Unavailable(
                    f"model {self.model!r} was not ready within {timeout:g} s "
                    f"({'; '.join(last) or 'no answer'}): check that the server runs "
                    "and serves that name"
                )
            yield Pause(_READY_PAUSE)

    def _exchange(
        self,
        method: str,
        payload: bytes,
        model: ModelSpec,
        deadline: float,
        decode: Callable[[bytes], Any],
    ) -> Operation[_Answer]:
        """One request and its reply, from whichever replica gives a good one."""
        started = self._clock()
        attempts = Attempts(
            self.replicas, model, self.connection.retry, self._clock, self._jitter
        )
        while True:
            index = self.replicas.pick(attempts.tried)
            if index is None:
                wait = attempts.end_round(self._time_left(deadline))
                if wait > 0:
                    yield Pause(wait)
                continue
            left = self._time_left(deadline)
            if left is not None and left <= 0:
                raise self._too_late(deadline - started, attempts.last)
            allowed = _least(left, self.connection.attempt_timeout)
            outcome = yield Attempt(index, method, payload, allowed)
            if outcome.code == "OK":
                try:
                    result = decode(outcome.data)
                except MalformedMessage as error:
                    outcome = Outcome("OK", str(error))
                    failure = Failure.GARBLED
                else:
                    self.replicas.succeeded(index)
                    return _Answer(result, outcome.data, index, attempts.failed)
            else:
                late = self._clock() > deadline - _CLOCKS_APART
                if outcome.code == "DEADLINE_EXCEEDED" and late:
                    raise self._too_late(deadline - started, attempts.last)
                failure = classify(outcome)
            attempts.note(index, failure, outcome)

    def _status_of(self, index: int, timeout: float | None) -> Operation[TargetStatus]:
        target = self.targets[index]
        payload = encode_status_request(self._spec(None))
        allowed = _least(timeout, _STATUS_TIMEOUT)
        outcome = yield Attempt(index, GET_STATUS, payload, allowed)
        if outcome.code != "OK":
            error = f"{outcome.code} {one_line(outcome.details)}"
            return TargetStatus(target, error=error)
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

    def _time_left(self, deadline: float) -> float | None:
        return None if deadline == math.inf else deadline - self._clock()

    def closed_error(self) -> Cancelled:
        """The error for calls on a closed transport, and those that it broke off."""
        return Cancelled("the connection was closed: make a new client")

    def _too_late(self, seconds: float, last: Outcome | None) -> DeadlineExceeded:
        why = f" (last: {last.code} {one_line(last.details)})" if last else ""
        return DeadlineExceeded(
            f"no reply from {', '.join(self.targets)} within {max(seconds, 0):.3g} s"
            f"{why}: allow more time, or look whether the server is overloaded"
        )


def _check_version(answered: int | None, asked: int | None) -> None:
    if asked is not None and answered not in (None, asked):
        raise MalformedMessage(
            f"version {answered} answered, version {asked} was asked"
        )


def _least(*values: float | None) -> float | None:
    return min((v for v in values if v is not None), default=None)

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
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..codec import (
    MalformedMessage,
    ModelMetadata,
    ModelSpec,
    PredictResponse,
    decode_metadata_response,
    decode_predict_response,
    decode_status_response,
    encode_metadata_request,
    encode_predict_request,
    encode_status_request,
)
from ..contract import MESSAGE_LIMIT
from ..errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    MalformedReply,
    Unavailable,
)
from .base import Call, Expectation, Identity, Reply
from .connection import Connection, check_secrecy, checked_label
from .replicas import Replicas
from .retry_policy import Attempts
from .same_model import SameModel
from .status_mapping import (
    MALFORMED,
    Failure,
    Outcome,
    classify,
    connect_failure,
    one_line,
)
from .steps import Attempt, Operation, Pause, TargetStatus

PREDICT = "/tensorflow.serving.PredictionService/Predict"
GET_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
GET_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"

_CONTROL_LIMIT = 4 << 20  # bytes of a reply that carries no tensors
_READY_PAUSE = 0.2  # seconds between questions whether the model is there
_STATUS_TIMEOUT = 5.0
_CLOCKS_APART = 0.005  # seconds between gRPC's clock and ours


@dataclass(frozen=True)
class _Request:
    method: str
    payload: bytes
    model: ModelSpec
    decode: Callable[[bytes], Any]
    most_bytes: int = _CONTROL_LIMIT
    model_id: str = ""  # the model whose cache it carries
    expected: Expectation | None = None
    replicas: tuple[str, ...] = ()  # the only ones that may answer; () for all


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
        identity: Identity | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if not model:
            raise InvalidRequest("the model has no name: give the served model's name")
        if any("\ud800" <= letter <= "\udfff" for letter in model):
            raise InvalidRequest(f"the model's name {model!a} is not text")
        checked_label(label)
        if not callable(connection.metadata):
            check_secrecy(connection.metadata, targets, connection)
        self.targets = targets
        self.model = model
        self.label = label
        self.connection = connection
        self.replicas = Replicas(
            targets, connection.ejection, clock=clock, jitter=jitter
        )
        self.same_model = SameModel(self.replicas, identity, self._ask)
        self.closed = False
        self.compares_models = identity is not None
        """Whether lost connections have to be told (``connection_lost``)."""
        self._clock = clock
        self._jitter = jitter
        self._pid = os.getpid()

    def connection_lost(self, index: int) -> None:
        """A channel to this replica is not connected any more."""
        self.same_model.forget(index)

    def predict(self, call: Call, timeout: float | None) -> Operation[Reply]:
        """Run one call of a signature."""
        started = self._clock()
        request = self._request(call)
        deadline = self._deadline(timeout)
        answer = yield from self._exchange(request, deadline)
        version = answer.result.model.version
        return Reply(
            outputs=answer.result.outputs,
            version=version,
            seconds=self._clock() - started,
            bytes_sent=len(request.payload),
            bytes_received=len(answer.data),
            retries=answer.retries,
            model_id=self.same_model.model_id(version),
            target=self.targets[answer.target],
            checked=self._expected_of(call.expected, version) is not None,
        )

    def _request(self, call: Call) -> _Request:
        """The call's message, and how to read the reply."""
        limits, expected = self.connection.limits, call.expected
        most_bytes = expected.most_bytes if expected else MESSAGE_LIMIT
        model = self._spec(call.version, call.signature)
        payload = encode_predict_request(
            model, call.inputs, call.outputs, limit=limits.message
        )

        def decode(data: bytes) -> PredictResponse:
            budget = min(limits.expansion, most_bytes)
            response = decode_predict_response(data, expansion_limit=budget)
            response = _with_version(response, call.version)
            if expected and expected.version in (None, response.model.version):
                expected.check(response.outputs)
            else:  # see `_compared`; rows are rows in any case
                _check_rows(response, call.rows)
            return response

        return _Request(
            PREDICT,
            payload,
            model,
            decode,
            most_bytes,
            call.model_id,
            expected,
            call.replicas,
        )

    def metadata(
        self, version: int | None, timeout: float | None
    ) -> Operation[ModelMetadata]:
        """The model's signatures, as the server lists them."""
        deadline = self._deadline(timeout)
        model = self._spec(version)
        payload = encode_metadata_request(model)
        request = _Request(GET_METADATA, payload, model, decode_metadata_response)
        answer = yield from self._exchange(request, deadline)
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
        said: dict[str, str] = {}  # by replica
        while True:
            for index, target in enumerate(self.targets):
                left = self._time_left(deadline)
                if left is not None and left <= 0:
                    break
                status = yield from self._status_of(index, left)
                if status.available:
                    return
                states = [f"version {v.version} {v.state}" for v in status.versions]
                # What our own deadline cut short says less than the answer before.
                if target not in said or not status.error.startswith("DEADLINE"):
                    said[target] = status.error or ", ".join(states)
            left = self._time_left(deadline)
            if left is not None and left <= _READY_PAUSE:
                last = "; ".join(f"{target}: {text}" for target, text in said.items())
                raise Unavailable(
                    f"model {self.model!r} was not ready within {timeout:g} s "
                    f"({last or 'no answer'}): check that the server runs "
                    "and serves that name"
                )
            yield Pause(_READY_PAUSE)

    def _exchange(self, request: _Request, deadline: float) -> Operation[_Answer]:
        """One request and its reply, from whichever replica gives a good one."""
        started = self._clock()
        barred = self._barred(request)
        attempts = Attempts(
            self.replicas,
            request.model,
            self.connection.retry,
            self._clock,
            self._jitter,
            named=bool(request.replicas),
        )
        while True:
            index = self.replicas.pick({*attempts.tried, *barred})
            if index is None:
                wait = attempts.end_round(self._time_left(deadline))
                if wait > 0:
                    yield Pause(wait)
                continue
            left = self._time_left(deadline)
            if left is not None and left <= 0:
                raise self._too_late(deadline - started, attempts.last)
            allowed = _least(left, self.connection.attempt_timeout)
            outcome = yield from self._attempt(request, index, allowed)
            late = self._clock() > deadline - _CLOCKS_APART
            if outcome.code == "DEADLINE_EXCEEDED" and late:
                raise self._too_late(deadline - started, attempts.last)
            failure = classify(outcome)
            if failure is None:
                self.replicas.succeeded(index)
                return _Answer(outcome.result, outcome.data, index, attempts.failed)
            if failure is Failure.DOWN:
                self.connection_lost(index)
            attempts.note(index, failure, outcome)

    def _barred(self, request: _Request) -> set[int]:
        """The replicas that may not answer."""
        if not request.replicas:
            return set()
        return {
            index
            for index, target in enumerate(self.targets)
            if target not in request.replicas
        }

    def _attempt(
        self, request: _Request, index: int, timeout: float | None
    ) -> Operation[Outcome]:
        """Send a request to one replica; a good reply comes read and checked."""
        pinned = request.model.version
        if pinned is not None and request.method == PREDICT:
            wrong = yield from self.same_model.why_not(index, pinned, request.model_id)
            if wrong:
                return wrong
        outcome: Outcome = yield Attempt(
            index, request.method, request.payload, timeout, request.most_bytes
        )
        outcome = _read(outcome, request)
        if outcome.code != "OK" or request.method != PREDICT:
            return outcome
        version = outcome.result.model.version
        wrong = yield from self.same_model.why_not(
            index, version, request.model_id, timeout
        )
        return wrong or self._compared(outcome, request)

    def _compared(self, outcome: Outcome, request: _Request) -> Outcome:
        """A good reply of a version that the call was not planned for."""
        response: PredictResponse = outcome.result
        expected = self._expected_of(request.expected, response.model.version)
        if expected in (None, request.expected):
            return outcome
        try:
            expected.check(response.outputs)
        except MalformedReply as error:
            return Outcome(MALFORMED, str(error))
        return outcome

    def _expected_of(
        self, expected: Expectation | None, version: int | None
    ) -> Expectation | None:
        """What a reply of this version must be like; None if nobody knows."""
        if expected is None or version is None or expected.version in (None, version):
            return expected
        described = self.same_model.described(version)
        return expected.of(described) if described else None

    def _ask(self, index: int, call: Call, timeout: float) -> Operation[Outcome]:
        """A small call of one replica, for ``SameModel``; its reply comes read."""
        request = self._request(call)
        outcome: Outcome = yield Attempt(
            index, PREDICT, request.payload, timeout, request.most_bytes
        )
        return _read(outcome, request)

    def _status_of(self, index: int, timeout: float | None) -> Operation[TargetStatus]:
        target = self.targets[index]
        payload = encode_status_request(self._spec(None))
        allowed = _least(timeout, _STATUS_TIMEOUT)
        outcome = yield Attempt(index, GET_STATUS, payload, allowed, _CONTROL_LIMIT)
        if outcome.code != "OK":
            details = one_line(connect_failure(outcome.details))
            error = f"{outcome.code} {details}"
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


def _read(outcome: Outcome, request: _Request) -> Outcome:
    """A good reply's outcome with its result; a reply that makes none is a failure."""
    if outcome.code != "OK":
        return outcome
    try:
        return replace(outcome, result=request.decode(outcome.data))
    except MalformedReply as error:
        return Outcome(MALFORMED, str(error))


def _check_rows(response: PredictResponse, rows: int) -> None:
    for name, array in response.outputs.items():
        if not array.shape or array.shape[0] != rows:
            raise MalformedReply(
                f"output {name!r} has shape {list(array.shape)}, expected {rows} rows"
            )


def _with_version(response: PredictResponse, asked: int | None) -> PredictResponse:
    """The response with the version that answered, which servers always name."""
    version = response.model.version
    if version is None and asked is not None:
        version = asked
    if version is None or version < 0 or asked not in (None, version):
        expected = "any version" if asked is None else f"version {asked}"
        raise MalformedReply(f"version {version} answered, {expected} was asked for")
    return replace(response, model=replace(response.model, version=version))


def _least(*values: float | None) -> float | None:
    return min((v for v in values if v is not None), default=None)

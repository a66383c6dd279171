"""TensorFlow Serving's operations on one model and its replicas, without I/O.

An operation is a generator: it yields ``Attempt`` and ``Pause``, receives an
``Outcome`` for each ``Attempt``, and returns its result. The two gRPC transports only
carry these out, one blocking, one awaiting. Which replica is asked, and how often, is
decided in ``exchange``.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace

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
    InvalidRequest,
    MalformedReply,
    Unavailable,
)
from .base import Call, Identity, Reply
from .connection import Connection, check_secrecy, checked_label
from .exchange import CONTROL_LIMIT, Exchange, Request, least, read
from .replicas import Replicas
from .same_model import SameModel
from .status_mapping import (
    Outcome,
    connect_failure,
    one_line,
)
from .steps import (
    GET_METADATA,
    GET_STATUS,
    PREDICT,
    Attempt,
    Operation,
    Pause,
    TargetStatus,
)

_READY_PAUSE = 0.2  # seconds between questions whether the model is there
_STATUS_TIMEOUT = 5.0


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
        self._exchange = Exchange(
            targets,
            connection,
            self.replicas,
            self.same_model,
            clock=clock,
            jitter=jitter,
        )
        self.closed = False
        self.compares_models = identity is not None
        """Whether lost connections have to be told (``connection_lost``)."""
        self._clock = clock
        self._pid = os.getpid()

    def connection_lost(self, index: int) -> None:
        """A channel to this replica is not connected any more."""
        self.same_model.forget(index)

    def predict(self, call: Call, timeout: float | None) -> Operation[Reply]:
        """Run one call of a signature."""
        started = self._clock()
        request = self._request(call)
        deadline = self._deadline(timeout)
        answer = yield from self._exchange.send(request, deadline)
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
            checked=self._exchange.expected_of(call.expected, version) is not None,
        )

    def _request(self, call: Call) -> Request:
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
            else:  # see ``Exchange``; rows are rows in any case
                _check_rows(response, call.rows)
            return response

        return Request(
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
        request = Request(GET_METADATA, payload, model, decode_metadata_response)
        answer = yield from self._exchange.send(request, deadline)
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
                left = self._exchange.time_left(deadline)
                if left is not None and left <= 0:
                    break
                # One that is frozen must not take the time of those after it.
                share = left and left / (len(self.targets) - index)
                status = yield from self._status_of(index, share)
                if status.available:
                    return
                states = [f"version {v.version} {v.state}" for v in status.versions]
                # What our own deadline cut short says less than the answer before.
                if target not in said or not status.error.startswith("DEADLINE"):
                    said[target] = status.error or ", ".join(states)
            left = self._exchange.time_left(deadline)
            if left is not None and left <= _READY_PAUSE:
                last = "; ".join(f"{target}: {text}" for target, text in said.items())
                raise Unavailable(
                    f"model {self.model!r} was not ready within {timeout:g} s "
                    f"({last or 'no answer'}): check that the server runs "
                    "and serves that name"
                )
            yield Pause(_READY_PAUSE)

    def _ask(self, index: int, call: Call, timeout: float) -> Operation[Outcome]:
        """A small call of one replica, for ``SameModel``; its reply comes read."""
        request = self._request(call)
        outcome: Outcome = yield Attempt(
            index, PREDICT, request.payload, timeout, request.most_bytes
        )
        return read(outcome, request)

    def _status_of(self, index: int, timeout: float | None) -> Operation[TargetStatus]:
        target = self.targets[index]
        payload = encode_status_request(self._spec(None))
        allowed = least(timeout, _STATUS_TIMEOUT)
        outcome = yield Attempt(index, GET_STATUS, payload, allowed, CONTROL_LIMIT)
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

    def closed_error(self) -> Cancelled:
        """The error for calls on a closed transport, and those that it broke off."""
        return Cancelled("the connection was closed: make a new client")


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

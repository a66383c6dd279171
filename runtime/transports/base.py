"""How the decode loop reaches a model: one call in, one reply out.

A transport runs one signature once. It knows nothing of tokens or caches, and the
decode loop knows nothing of gRPC. Implementations: ``grpc_sync`` and ``grpc_async``
(TensorFlow Serving), ``local`` (a SavedModel in this process), ``litert``;
``batching`` and ``in_threads`` wrap another one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..codec import ModelMetadata, Tensor
from ..errors import IncompatibleModel, VersionGone


class Described(Protocol):
    """A model as it describes itself."""

    @property
    def model_id(self) -> str:
        """A short text that two models share only if they give the same tokens."""
        ...


class Expectation(Protocol):
    """What the reply to a call must be like; another one is never used."""

    @property
    def version(self) -> int | None:
        """The model version that it is about; None: every one."""
        ...

    @property
    def most_bytes(self) -> int:
        """Most bytes that a right reply can have, as a message and in memory."""
        ...

    def check(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Raise ``MalformedReply`` for a wrong name, dtype, shape or value."""
        ...

    def of(self, model: Described) -> Expectation:
        """The same of another model: another version may answer than was planned."""
        ...


@dataclass(frozen=True)
class Call:
    """One call of one signature.

    ``inputs`` follow the contract (``runtime/contract/``); arrays need not be
    contiguous, and a cache may come as ``RowBlocks``. ``outputs`` names those to
    fetch, empty for all. ``version`` pins the model version, None takes the newest.
    ``model_id`` names the very model that a cache comes from (``Reply.model_id``).
    ``replicas`` names the addresses that may answer (``Reply.target``), as the server
    that holds a session; empty for any. If these fail, the call fails soon.
    ``expected`` says what a right reply is like, so that a transport can turn to
    another replica.
    """

    signature: str
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...] = ()
    version: int | None = None
    model_id: str = ""
    expected: Expectation | None = field(default=None, compare=False)
    replicas: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """B, which is axis 0 of every input."""
        return next(iter(self.inputs.values())).shape[0]


@dataclass(frozen=True)
class Reply:
    """What a call returned, and what it cost.

    Arrays may be read-only views into the reply's bytes. ``version`` is the model
    version that answered (0 where there are none). ``seconds`` is the call's wall time,
    ``retries`` how many attempts failed before this one. ``model_id`` tells models
    apart that were served under one version number; "" where nobody compares them.
    ``checked`` says that the transport has compared it with what the call expected.
    """

    outputs: Mapping[str, np.ndarray]
    version: int = 0
    seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    retries: int = 0
    model_id: str = ""
    target: str = field(default="", compare=False)
    checked: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Identity:
    """How a transport finds out whether its replicas serve the same model.

    ``question`` is a call that every replica must answer alike; ``read`` makes a model
    of the answer's outputs and its version, or raises ``MalformedReply``.
    """

    question: Call
    read: Callable[[Mapping[str, np.ndarray], int], Described]


def check_call(call: Call, version: int, signatures: Container[str]) -> None:
    """Refuse what a server would, for a model in this process.

    Raises:
        VersionGone: the call is pinned to another version.
        IncompatibleModel: the model has no such signature.
    """
    if call.version not in (None, version):
        raise VersionGone(
            f"version {call.version} is not loaded, version {version} is", "NOT_FOUND"
        )
    if call.signature not in signatures:
        raise IncompatibleModel(
            f"the model has no signature {call.signature!r}: give one made with "
            "`optserve export`"
        )


class Transport(ABC):
    """A blocking transport. Safe to use from several threads."""

    @abstractmethod
    def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        """Run one call within ``timeout`` seconds; raises ``OptserveError``."""

    @abstractmethod
    def close(self) -> None:
        """Release connections; further calls are refused."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The addresses that calls go to; none where there is one model only."""
        return ()

    def metadata(
        self, *, version: int | None = None, timeout: float | None = None
    ) -> ModelMetadata | None:
        """The signatures that a server lists; None where no server is asked."""
        return None

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Wait for a server; a model in this process is ready.

        Raises:
            Unavailable: not ready within ``timeout`` seconds.
        """
        return


class AsyncTransport(ABC):
    """The same for asyncio. Cancelling the awaiting task cancels the call."""

    @abstractmethod
    async def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        """Run one call within ``timeout`` seconds; raises ``OptserveError``."""

    @abstractmethod
    async def close(self) -> None:
        """Release connections; further calls are refused."""

    @property
    def targets(self) -> tuple[str, ...]:
        """As ``Transport.targets``."""
        return ()

    async def metadata(
        self, *, version: int | None = None, timeout: float | None = None
    ) -> ModelMetadata | None:
        """As ``Transport.metadata``."""
        return None

    async def wait_until_ready(self, timeout: float | None = None) -> None:
        """As ``Transport.wait_until_ready``."""
        return

"""How the decode loop reaches a model: one call in, one reply out.

A transport runs one signature once. It knows nothing of tokens or caches, and the
decode loop knows nothing of gRPC. Implementations: ``grpc_sync`` and ``grpc_async``
(TensorFlow Serving), ``local`` (a SavedModel in this process), ``litert``;
``batching`` and ``in_threads`` wrap another one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..codec import ModelMetadata, Tensor
from ..errors import IncompatibleModel, VersionGone


@dataclass(frozen=True)
class Call:
    """One call of one signature.

    ``inputs`` follow the contract (``runtime/contract/``); arrays need not be
    contiguous, and a cache may come as ``RowBlocks``. ``outputs`` names those to
    fetch, empty for all. ``version`` pins the model version, None takes the newest.
    """

    signature: str
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...] = ()
    version: int | None = None

    @property
    def rows(self) -> int:
        """B, which is axis 0 of every input."""
        return next(iter(self.inputs.values())).shape[0]


@dataclass(frozen=True)
class Reply:
    """What a call returned, and what it cost.

    Arrays may be read-only views into the reply's bytes. ``version`` is the model
    version that answered (0 where there are none). ``seconds`` is the call's wall time,
    ``retries`` how many attempts failed before this one.
    """

    outputs: Mapping[str, np.ndarray]
    version: int = 0
    seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    retries: int = 0
    target: str = field(default="", compare=False)


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

    async def metadata(
        self, *, version: int | None = None, timeout: float | None = None
    ) -> ModelMetadata | None:
        """As ``Transport.metadata``."""
        return None

    async def wait_until_ready(self, timeout: float | None = None) -> None:
        """As ``Transport.wait_until_ready``."""
        return

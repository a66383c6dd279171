"""How the decode loop reaches a model: one call in, one reply out.

A transport runs one signature once. It knows nothing of tokens or caches, and the
decode loop knows nothing of gRPC. Implementations: ``grpc_transport`` (sync and
asyncio), ``local_transport`` (a SavedModel in this process), ``litert_transport``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Call:
    """One call of one signature.

    ``inputs`` follow the contract (``export/contract.py``); arrays need not be
    contiguous. ``outputs`` names the outputs wanted, empty for all. ``version`` pins
    the model version, None takes the newest.
    """

    signature: str
    inputs: Mapping[str, np.ndarray]
    outputs: tuple[str, ...] = ()
    version: int | None = None


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


class Transport(Protocol):
    """A blocking transport. Safe to use from several threads."""

    def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        """Run one call within ``timeout`` seconds; raises ``OptserveError``."""
        ...

    def close(self) -> None:
        """Release connections; further calls are refused."""
        ...


class AsyncTransport(Protocol):
    """The same for asyncio. Cancelling the awaiting task cancels the call."""

    async def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        """Run one call within ``timeout`` seconds; raises ``OptserveError``."""
        ...

    async def close(self) -> None:
        """Release connections; further calls are refused."""
        ...

"""How the decode loop reaches a model: one call in, one reply out.

A transport runs one signature once. It knows nothing of tokens or caches, and the
decode loop knows nothing of gRPC. Implementations: ``grpc_transport`` (sync and
asyncio), ``local_transport`` (a SavedModel in this process), ``litert_transport``.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..errors import IncompatibleModel, VersionGone


@dataclass(frozen=True)
class RowBlocks:
    """A ``[B, slots, …]`` tensor in pieces, copied once: onto the wire.

    ``rows[b]`` holds the arrays ``[n, …]`` that make up row b one after another; zeros
    follow up to ``slots``. Wherever an array is expected, ``numpy.asarray`` makes one.
    """

    rows: tuple[tuple[np.ndarray, ...], ...]
    slots: int

    @property
    def dtype(self) -> np.dtype:
        """The pieces' dtype."""
        return self.rows[0][0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """``(B, slots, …)``."""
        return (len(self.rows), self.slots, *self.rows[0][0].shape[1:])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.rows[0][0].ndim + 1

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor, the zeros included."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def pieces(self) -> Iterator[np.ndarray | int]:
        """The tensor's memory in order: arrays, and numbers of zero bytes."""
        row_bytes = self.nbytes // len(self.rows)
        for row in self.rows:
            yield from row
            if rest := row_bytes - sum(piece.nbytes for piece in row):
                yield rest

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        out = np.zeros(self.shape, dtype or self.dtype)
        for b, row in enumerate(self.rows):
            start = 0
            for piece in row:
                out[b, start : start + len(piece)] = piece
                start += len(piece)
        return out


Tensor = np.ndarray | RowBlocks


@dataclass(frozen=True)
class Call:
    """One call of one signature.

    ``inputs`` follow the contract (``runtime/contract/``); arrays need not be
    contiguous, and a cache may come as ``RowBlocks``. ``outputs`` names the outputs
    wanted, empty for all. ``version`` pins the model version, None takes the newest.
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

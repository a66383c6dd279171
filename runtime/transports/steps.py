"""What an operation asks of the transport that carries it out, and what it tells."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from ..codec import VersionStatus

PREDICT = "/tensorflow.serving.PredictionService/Predict"
GET_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
GET_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
"""gRPC's names of the methods that a client calls."""

T = TypeVar("T")


@dataclass(frozen=True)
class Attempt:
    """Call ``method`` of replica ``target`` (an index) and give back its Outcome."""

    target: int
    method: str
    payload: bytes
    timeout: float | None
    most_bytes: int
    """Bytes of the largest right reply; a longer one need not be received."""


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
"""Yields steps, is sent an ``Outcome`` for each ``Attempt``, and returns its result."""

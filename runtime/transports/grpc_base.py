"""What the blocking and the asyncio gRPC transport share: options and metadata."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .addresses import checked_targets
from .base import Identity
from .connection import (
    Connection,
    ConnectionKeywords,
    Metadata,
    check_secrecy,
    checked_metadata,
)
from .operations import Operations

if TYPE_CHECKING:
    from typing_extensions import Unpack


class GrpcKeywords(ConnectionKeywords, total=False):
    """The keywords of both transports besides ``model``; see ``GrpcTransport``."""

    label: str
    identity: Identity | None


class GrpcBase:
    """One model on one or several servers, and how to reach them."""

    def __init__(
        self,
        targets: str | Iterable[str],
        *,
        model: str,
        label: str = "",
        identity: Identity | None = None,
        **options: Unpack[ConnectionKeywords],
    ) -> None:
        self._operations = Operations(
            checked_targets(targets),
            model,
            Connection(**options),
            label=label,
            identity=identity,
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """The servers' addresses."""
        return self._operations.targets

    def _checked(self, pairs: Metadata) -> tuple[tuple[str, str | bytes], ...]:
        """What a metadata function returned, as gRPC takes it."""
        checked = checked_metadata(pairs)
        check_secrecy(checked, self.targets, self._operations.connection)
        return checked

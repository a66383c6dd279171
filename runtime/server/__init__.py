"""The embedded server: TensorFlow Serving's protocol from this process.

Needs ``optserve[serve]``. Importing this package doesn't import TensorFlow; using
``EmbeddedServer`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import (
    BatchingParameters,
    ModelOptions,
    SessionOptions,
    TlsOptions,
    VersionPolicy,
)

if TYPE_CHECKING:
    from .embedded import EmbeddedServer

__all__ = [
    "BatchingParameters",
    "EmbeddedServer",
    "ModelOptions",
    "SessionOptions",
    "TlsOptions",
    "VersionPolicy",
]


def __getattr__(name: str) -> Any:
    if name == "EmbeddedServer":
        from ...models.quiet import import_tensorflow

        import_tensorflow()
        from .embedded import EmbeddedServer

        return EmbeddedServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

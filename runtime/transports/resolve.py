"""From a target to a transport: an address, several, or a path of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...models.tokenizer import Tokenizer, TokenizerError
from ..errors import InvalidRequest
from ..model_dir import SAVED_MODEL_FILE, version_folders
from .addresses import SCHEMES
from .base import AsyncTransport, Identity, Transport
from .connection import ConnectionKeywords


class TransportKeywords(ConnectionKeywords, total=False):
    """Options of whichever transport a target means, as keywords.

    ``threads`` is of models in this process, all others of connections to servers.
    """

    threads: int | None


Target = str | os.PathLike[str] | Sequence[str]


def open_transport(
    target: Target,
    model: str,
    label: str,
    options: dict[str, Any],
    identity: Identity | None = None,
) -> Transport:
    """A blocking transport for ``target``; ``options`` are the transport's own."""
    if (path := _path(target)) is None:
        from .grpc_sync import GrpcTransport

        addresses = _addresses(target)
        return GrpcTransport(
            addresses, model=model, label=label, identity=identity, **options
        )
    if label:
        raise InvalidRequest(
            f"version labels are a server's: {path} is run in this process, give the "
            "folder of one version"
        )
    if is_tflite(path):
        from .litert import LiteRTTransport

        return LiteRTTransport(path, **options)
    from .local import LocalTransport

    return LocalTransport(path, **options)


def open_async_transport(
    target: Target,
    model: str,
    label: str,
    options: dict[str, Any],
    identity: Identity | None = None,
) -> AsyncTransport:
    """The same for asyncio; a model in this process runs in threads."""
    if _path(target) is None:
        from .grpc_async import AsyncGrpcTransport

        addresses = _addresses(target)
        return AsyncGrpcTransport(
            addresses, model=model, label=label, identity=identity, **options
        )
    from .in_threads import InThreads

    return InThreads(open_transport(target, model, label, options))


def check_path(target: Target) -> None:
    """Raise for a path that holds no model, before it is opened; let addresses be.

    Raises:
        InvalidRequest: nothing is there, or neither a SavedModel nor a TFLite file.
    """
    path = _path(target)
    if path is not None and not is_tflite(path):
        from .local import version_folder

        version_folder(path)


def open_tokenizer(
    source: Tokenizer | str | os.PathLike[str] | None,
) -> Tokenizer | None:
    """A tokenizer as given, or read from a directory or a ``tokenizer.json``."""
    if source is None or isinstance(source, Tokenizer):
        return source
    path = Path(source)
    try:
        if path.is_file():
            return Tokenizer.from_json(path.read_bytes())
        return Tokenizer.from_directory(path)
    except TokenizerError as error:
        raise InvalidRequest(str(error)) from None


def _path(target: Target) -> Path | None:
    """The path that a target is, None for addresses."""
    if isinstance(target, os.PathLike):
        path = Path(target)
    elif not isinstance(target, str) or target.startswith(SCHEMES):
        return None
    else:
        path = Path(target)
        looks_like_one = os.sep in target or target.endswith(".tflite")
        if not path.exists() and not looks_like_one:
            return None
    if not path.exists():
        raise InvalidRequest(
            f"no such file or folder: {path}; a target is HOST:PORT, unix:PATH, an "
            "export's folder or a .tflite file"
        )
    return path


def is_tflite(path: Path) -> bool:
    """Whether a path means a ``.tflite`` file: itself, or in it, or in its newest
    version's folder.

    Raises:
        InvalidRequest: a file of another kind.
    """
    if path.is_file() and path.suffix != ".tflite":
        raise InvalidRequest(f"{path} is not a .tflite file: give an export's folder")
    if not path.is_dir():
        return path.suffix == ".tflite"
    if any(path.glob("*.tflite")):
        return True
    newest = next(iter(version_folders(path).values()), None)
    return (
        newest is not None
        and not (newest / SAVED_MODEL_FILE).is_file()
        and any(newest.glob("*.tflite"))
    )


def _addresses(target: Target) -> list[str]:
    addresses = [target] if isinstance(target, str | os.PathLike) else target
    return [str(address) for address in addresses]

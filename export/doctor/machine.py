"""Room, ports and sockets of this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ...models.config import OPTConfig
from ...runtime.memory import available_bytes
from ..estimate import estimate_savedmodel
from ..footprint import GIB
from ..full_disk import free_bytes
from ..options import ExportOptions
from .check import Check

_SOCKET_PATH_LIMIT = 107  # sockaddr_un, less the final zero


def check_room(folder: str | Path, config: OPTConfig | None = None) -> Iterator[Check]:
    """Free memory and disk; against a model's needs if its config is given."""
    memory, disk = available_bytes(), free_bytes(folder)
    for name, have in (("memory", memory), ("disk", disk)):
        detail = "unknown" if have is None else f"{have / GIB:.1f} GiB free"
        if config is None or have is None:
            yield Check(name, "note" if have is None else "ok", detail)
            continue
        planned = estimate_savedmodel(config, ExportOptions())
        peak = max(planned.export_memory, planned.verify_memory)
        need = peak if name == "memory" else planned.artefact
        detail += f", {need / GIB:.1f} GiB needed for float32"
        advice = f"a float32 export needs more {name}: int8 weights need about a third"
        fits = have >= need
        yield Check(name, "ok" if fits else "note", detail, "" if fits else advice)


def check_port(port: int) -> Check:
    """Whether a server could listen on a port of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            advice = "choose another port, or 0 for any free one"
            return Check(f"port {port}", "failed", f"not free: {error}", advice)
    return Check(f"port {port}", "ok", "free")


def check_socket(path: str | Path) -> Check:
    """Whether a server could make a Unix socket at a path."""
    path = Path(path)
    length = len(os.fsencode(path.absolute()))
    if length > _SOCKET_PATH_LIMIT:
        detail = f"{length} bytes long, {_SOCKET_PATH_LIMIT} are allowed"
        return Check("socket", "failed", detail, "choose a shorter path")
    if not os.access(path.absolute().parent, os.W_OK):
        detail = f"{path.absolute().parent} does not exist or is not writable"
        return Check("socket", "failed", detail, "choose another folder")
    if path.exists() and not path.is_socket():
        return Check("socket", "failed", f"{path} is something else", "remove it")
    return Check("socket", "ok", str(path))

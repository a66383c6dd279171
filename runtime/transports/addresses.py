"""Servers' addresses: which texts are some, and which stay on this machine."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from ..errors import InvalidRequest

SCHEMES = ("unix:", "unix-abstract:", "vsock:", "dns:", "ipv4:", "ipv6:", "xds:")
"""How gRPC addresses begin that aren't HOST:PORT."""

_LOCAL_SCHEMES = ("unix:", "unix-abstract:")
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:/\s]+):([0-9]{1,5})")
_SCHEME = re.compile(rf"({'|'.join(SCHEMES)})\S+")
_HOST = re.compile(r"(?:dns:///|ipv4:|ipv6:|dns:)?(\[[^\]]+\]|[^:/\[\],]+)(?::\d+)?")


def checked_targets(targets: str | Iterable[str]) -> tuple[str, ...]:
    """The addresses as a tuple, each once.

    Raises:
        InvalidRequest: none, or one that is not ``HOST:PORT``, ``unix:PATH`` or
            another of gRPC's own schemes.
    """
    addresses = (targets,) if isinstance(targets, str) else tuple(targets)
    if not addresses:
        raise InvalidRequest("no server address was given: write HOST:PORT")
    for target in addresses:
        match = isinstance(target, str) and _HOST_PORT.fullmatch(target)
        if match and 0 < int(match.group(2)) < 65536:
            continue
        if isinstance(target, str) and _SCHEME.fullmatch(target):
            continue
        raise InvalidRequest(
            f"{target!r} is not a server's address: write HOST:PORT, unix:PATH or "
            "dns:///NAME:PORT"
        )
    return tuple(dict.fromkeys(addresses))


def is_local(target: str) -> bool:
    """Whether an address is a Unix socket or a loopback address."""
    if target.startswith(_LOCAL_SCHEMES):
        return True
    match = _HOST.fullmatch(target)
    if match is None:
        return False
    host = match.group(1).strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: who knows where it leads

"""Which addresses stay on this machine."""

from __future__ import annotations

import ipaddress
import re

_LOCAL_SCHEMES = ("unix:", "unix-abstract:")
_HOST_PORT = re.compile(
    r"(?:dns:///|ipv4:|ipv6:|dns:)?(\[[^\]]+\]|[^:/\[\],]+)(?::\d+)?"
)


def is_local(target: str) -> bool:
    """Whether a gRPC target is a Unix socket or a loopback address."""
    if target.startswith(_LOCAL_SCHEMES):
        return True
    match = _HOST_PORT.fullmatch(target)
    if match is None:
        return False
    host = match.group(1).strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: who knows where it leads

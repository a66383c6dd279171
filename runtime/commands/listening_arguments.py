"""What the commands that listen have in common: where, and how they log."""

from __future__ import annotations

import resource
from contextlib import suppress

from .argument_types import Group, whole


def add_port(group: Group, default: int) -> None:
    """The TCP port."""
    group.add_argument(
        "--port",
        type=whole(0, 65535),
        default=default,
        help="TCP port; 0 picks a free one (default %(default)s)",
    )


def add_host(group: Group) -> None:
    """The address."""
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default %(default)s)",
    )


def add_json_log(group: Group) -> None:
    """How log lines look."""
    group.add_argument(
        "--json-log", action="store_true", help="print log lines as JSON"
    )


def allow_many_connections() -> None:
    """As many as the system lets one process have; the default is often 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

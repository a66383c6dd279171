"""Options of the commands that listen: where, and how they log."""

from __future__ import annotations

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

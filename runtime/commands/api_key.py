"""``optserve api-key``: a key for a gateway's callers."""

from __future__ import annotations

import argparse
import json

from .argument_types import whole


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("name", metavar="NAME", help="whose key it is; the gateway's log names it")
    add(
        "--requests-per-minute",
        type=whole(1, 10**9),
        metavar="N",
        help="as many as the key may make (any)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the key, and what goes into the gateway's file for it."""
    from ..gateway.keys import new_key

    key, entry = new_key(args.name, args.requests_per_minute)
    print(f"key, shown this once:        {key}")
    print(f'entry of "keys" in the file: {json.dumps(entry)}')
    return 0

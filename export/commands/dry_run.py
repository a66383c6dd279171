"""``optserve export --dry-run``: what an export would be and need."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..contract import generate_name
from ..errors import ExportError
from ..estimate import Estimate, estimate, read_config
from ..layout import next_version, refuse_existing
from ..savedmodel import GENERATE, SIGNATURES


def dry_run(args: argparse.Namespace) -> int:
    """Print the estimate. Reads ``config.json`` alone, writes nothing. Returns 0."""
    if args.target != "savedmodel":
        raise ExportError("--dry-run is for --target savedmodel")
    refuse_existing(args.out, args.version)
    names = [*SIGNATURES, *map(generate_name, getattr(args, "generate", GENERATE))]
    found = estimate(
        read_config(args.checkpoint), names, weights=args.weights, cache=args.cache
    )
    version = next_version(args.out) if args.version is None else args.version
    folder = Path(args.out) / str(version)
    if args.json:
        print(json.dumps({"path": str(folder), **found.to_dict()}, indent=1))
    else:
        _show(folder, found)
    return 0


def _show(folder: Path, found: Estimate) -> None:
    rows = [
        ("would write", str(folder)),
        ("parameters", f"{found.parameters:,}"),
        ("artefact", _bytes(found.artefact)),
        ("memory to export", _bytes(found.export_memory)),
        ("memory to verify", _bytes(found.verify_memory)),
        ("memory to serve one row", _bytes(found.server_memory)),
        ("cache of one token", _bytes(found.cache_row)),
        ("cache of a full sequence", _bytes(found.full_cache)),
        ("tokens cached in a message", f"{found.message_tokens:,}"),
    ]
    for name, value in rows:
        print(f"{name:26} {value}")
    for name, tensors in found.signatures.items():
        print(f"{name}\n    {tensors['inputs']}\n    → {tensors['outputs']}")


def _bytes(size: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size} B"

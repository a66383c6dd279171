"""``optserve export --dry-run``: what an export would be and need."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ...runtime.printable import sentence
from ..estimate import (
    EdgeEstimate,
    Estimate,
    estimate_savedmodel,
    estimate_tflite,
    read_config,
)
from ..options import ExportOptions
from ..publish import check_version, next_version

_LABELS = {
    "parameters": ("parameters", False),
    "artefact": ("artefact", True),
    "export_memory": ("memory to export", True),
    "verify_memory": ("memory to verify", True),
    "server_memory": ("memory to serve one row", True),
    "session_memory": ("of that the full sessions", True),
    "device_memory": ("memory to run it", True),
    "cache_row": ("cache of one token", True),
    "full_cache": ("cache of a full sequence", True),
    "message_tokens": ("tokens cached in a message", False),
}


def dry_run(args: argparse.Namespace, options: ExportOptions) -> int:
    """Print the estimate. Reads ``config.json`` alone, writes nothing. Returns 0."""
    check_version(args.out, args.version)
    config = read_config(args.checkpoint)
    estimates = {"savedmodel": estimate_savedmodel, "tflite": estimate_tflite}
    estimate = estimates[options.target](config, options)
    version = next_version(args.out) if args.version is None else args.version
    folder = Path(args.out) / str(version)
    if args.json:
        print(json.dumps({"path": str(folder), **estimate.to_dict()}, indent=1))
    else:
        _show(folder, estimate)
    return 0


def _show(folder: Path, estimate: Estimate | EdgeEstimate) -> None:
    print(f"{'would write':26} {sentence(folder)}")
    for field, value in estimate.to_dict().items():
        if field in _LABELS:
            label, in_bytes = _LABELS[field]
            print(f"{label:26} {_bytes(value) if in_bytes else f'{value:,}'}")
    for name, tensors in estimate.signatures.items():
        print(f"{name}\n    {tensors['inputs']}\n    → {tensors['outputs']}")


def _bytes(size: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size} B"

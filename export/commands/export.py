"""``optserve export``: a checkpoint becomes a version in a model's base folder."""

from __future__ import annotations

import argparse
import json
import sys
import time

from ..contract import CACHE_DTYPES, WEIGHT_DTYPES


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="directory, or hub id")
    parser.add_argument("out", metavar="OUT", help="the model's base folder")
    parser.add_argument("--framework", default="tf", choices=("tf", "jax"))
    parser.add_argument(
        "--compiler",
        choices=("none", "xla"),
        help="none runs on a stock server; xla is faster and needs "
        "--xla_cpu_compilation_enabled there (default: none, xla for jax)",
    )
    parser.add_argument("--weights", default="float32", choices=WEIGHT_DTYPES)
    parser.add_argument("--cache", default="float32", choices=CACHE_DTYPES)
    parser.add_argument("--version", type=_positive, help="default: the next number")
    parser.add_argument("--revision", help="of a hub checkpoint")
    parser.add_argument("--json", action="store_true", help="say the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Export; prints the version's folder."""
    from ..savedmodel import export_savedmodel

    started = time.monotonic()

    def progress(message: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {message}", file=sys.stderr)

    path = export_savedmodel(
        args.checkpoint,
        args.out,
        framework=args.framework,
        compiler=args.compiler,
        weights=args.weights,
        cache=args.cache,
        version=args.version,
        revision=args.revision,
        progress=progress,
    )
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if args.json:
        seconds = round(time.monotonic() - started, 3)
        print(json.dumps({"path": str(path), "bytes": size, "seconds": seconds}))
    else:
        print(f"{path} ({size / 1e6:.1f} MB)")
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"should be 1 or more, got {text}")
    return value

"""``optserve export``: a checkpoint becomes a version in a model's base folder."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...models.checkpoints import resolve
from ...runtime.contract import CACHE_DTYPES, WEIGHT_DTYPES
from ...runtime.model_dir import manifest_digest, read_manifest
from ..deploy import FOLDER, DeployOptions, write_deployment
from ..errors import ExportError
from ..publish import check_version, staging
from ..subprocesses import peak_memory, run_apart, why
from ..verify.edge import require_litert
from ..verify.process import verify_in_fresh_process
from .dry_run import dry_run

_EXIT_CODES = (
    "Exit code: 0 published; 1 refused, or not verified, and nothing published; "
    "2 wrong arguments; 130 or 143 interrupted, and what was written removed."
)
_OPTIONS = (
    *("target", "framework", "compiler", "weights", "cache", "generate"),
    *("prompt_buckets", "cache_buckets", "batch_sizes", "cache_size"),
)
"""What a version is made with, ``--portable`` apart, which takes no value."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _EXIT_CODES
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="directory, or hub id")
    parser.add_argument("out", metavar="OUT", help="the model's base folder")
    parser.add_argument(
        "--target", default="savedmodel", choices=("savedmodel", "tflite")
    )
    parser.add_argument("--framework", default="tf", choices=("tf", "jax"))
    parser.add_argument(
        "--compiler",
        choices=("none", "xla"),
        help="none runs on a stock server; xla is faster and needs "
        "--xla_cpu_compilation_enabled there (default: none, xla for jax)",
    )
    parser.add_argument(
        "--weights",
        default="float32",
        choices=(*WEIGHT_DTYPES, "int4"),
        help="int4 is for --target tflite, bfloat16 for a savedmodel",
    )
    parser.add_argument("--cache", default="float32", choices=CACHE_DTYPES)
    parser.add_argument(
        "--generate",
        type=_sizes,
        metavar="N[,N…]",
        default=[1, 8, 32],
        help="tokens that one call makes, a signature for each (default: 1,8,32)",
    )
    parser.add_argument(
        "--prompt-buckets",
        type=_sizes,
        metavar="S[,S…]",
        help="prompt sizes to compile for (xla), up to the model's positions by "
        "default; tflite: prompt tokens that one call takes, each size with a "
        "signature and a copy of the weights in memory (default: 128)",
    )
    parser.add_argument(
        "--cache-buckets",
        type=_sizes,
        metavar="C[,C…]",
        help="xla: cache sizes to compile for; the graph rounds up to them",
    )
    parser.add_argument(
        "--batch-sizes",
        type=_sizes,
        metavar="B[,B…]",
        help="xla: numbers of rows to compile for; the graph rounds up to them",
    )
    parser.add_argument(
        "--cache-size",
        type=_positive,
        metavar="C",
        help="tflite: tokens that the cache holds (default: 512)",
    )
    parser.add_argument(
        "--portable",
        action="store_true",
        help="int8: leave out the kernels that TensorFlow has on x86-64 alone, with "
        "which several rows are twice as fast",
    )
    parser.add_argument("--version", type=_positive, help="default: the next number")
    parser.add_argument("--revision", help="of a hub checkpoint")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what the export would be and need, and write nothing; CHECKPOINT "
        "may then be a published size like 66b",
    )
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="publish without comparing every signature with the checkpoint",
    )
    parser.add_argument(
        "--name", default="opt", help="the model's name in the deployment files"
    )
    parser.add_argument(
        "--no-deploy", action="store_true", help="write no deployment files"
    )
    parser.add_argument("--json", action="store_true", help="say the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Export; prints the version's folder.

    One process writes it and then another verifies it, before its version appears;
    deployment files are written beside the first version of a SavedModel's base folder.
    """
    if args.dry_run:
        return dry_run(args, edge_options(args) if args.target == "tflite" else {})
    options = DeployOptions(name=args.name)  # refuses a name before the work
    clock = _Clock()
    with _cleaning_up():
        try:
            made = (_write if args.no_verify else _write_verified)(args, clock)
        except _AlreadySaid:
            return 1
        path = Path(made["path"])
        deploys = args.target == "savedmodel" and not args.no_deploy
        deployed = _deploy(path, options) if deploys else []
    manifest = read_manifest(path)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    result = {
        "path": str(path),
        "bytes": size,
        "digest": manifest_digest(manifest),
        "checkpoint_digest": manifest.checkpoint_digest,
        "seconds": clock.seconds(),
        "phases": made["phases"],
        "memory": made["memory"],
        "verification": made["verification"],
        "deployment": [str(file) for file in deployed],
    }
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{path} ({size / 1e6:.1f} MB)")
    return 0


def _write(args: argparse.Namespace, clock: _Clock) -> dict[str, Any]:
    """Export in this process, unverified. The report's part on it."""
    from ...models.quiet import import_tensorflow

    import_tensorflow()
    from ..savedmodel.exporter import export_savedmodel
    from ..tflite.exporter import export_tflite

    common = {
        "framework": args.framework,
        "weights": args.weights,
        "version": args.version,
        "revision": args.revision,
        "progress": clock,
    }
    if args.target == "tflite":
        path = export_tflite(args.checkpoint, args.out, **common, **edge_options(args))
    else:
        path = export_savedmodel(
            args.checkpoint,
            args.out,
            compiler=args.compiler,
            cache=args.cache,
            generate=args.generate,
            prompt_buckets=args.prompt_buckets,
            cache_buckets=args.cache_buckets,
            batch_sizes=args.batch_sizes,
            portable=args.portable,
            **common,
        )
    return {
        "path": str(path),
        "phases": clock.phases(),
        "memory": {"export": peak_memory()},
        "verification": None,
    }


def _write_verified(args: argparse.Namespace, clock: _Clock) -> dict[str, Any]:
    """Export and verify, each in a process of its own, so that one of them at a time
    is in memory. The report's part on it."""
    check_version(args.out, args.version)
    if args.target == "tflite":
        edge_options(args)
        require_litert()
    source = resolve(args.checkpoint, revision=args.revision)
    with staging(args.out, args.version) as staged:
        folder = staged.folder
        base = folder / "base"  # inside, since `folder` is locked against removal
        ended = run_apart(*_unverified(args, source, base))
        if ended.returncode == 1:
            raise _AlreadySaid
        if ended.returncode != 0:
            raise ExportError(f"nothing published: the export failed ({why(ended)})")
        made = json.loads(ended.stdout)
        written = Path(made["path"])
        for entry in written.iterdir():
            entry.rename(folder / entry.name)
        written.rmdir()
        base.rmdir()
        clock("verifying every signature in a process of its own")
        report = verify_in_fresh_process(folder, source)
    path = staged.published
    report["export"] = path.name  # it had no number yet
    return {
        "path": str(path),
        "phases": made["phases"] + clock.phases(),
        "memory": {**made["memory"], "verify": report["memory"]},
        "verification": report,
    }


def _unverified(args: argparse.Namespace, source: Path, out: Path) -> list[str]:
    """The command that exports the same to another base folder, and no more."""
    command = ["export", str(source), str(out), "--no-verify", "--no-deploy", "--json"]
    if args.portable:
        command.append("--portable")
    for option in _OPTIONS:
        value = getattr(args, option)
        if value is not None:
            values = value if isinstance(value, list) else [value]
            command += [f"--{option.replace('_', '-')}", ",".join(map(str, values))]
    return command


class _AlreadySaid(Exception):
    """The process that writes has printed in a sentence why it did not."""


class _Clock:
    """Prints what an export is at, and how long each part of it took."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._begun: list[tuple[str, float]] = []

    def __call__(self, message: str) -> None:
        self._begun.append((message, self.seconds()))
        print(f"[{self.seconds():6.1f} s] {message}", file=sys.stderr)

    def seconds(self) -> float:
        """Since the beginning."""
        return round(time.monotonic() - self._started, 3)

    def phases(self) -> list[dict[str, Any]]:
        """Each part and its seconds."""
        ends = [begin for _, begin in self._begun[1:]] + [self.seconds()]
        return [
            {"phase": name, "seconds": round(end - begin, 3)}
            for (name, begin), end in zip(self._begun, ends, strict=True)
        ]


@contextmanager
def _cleaning_up() -> Iterator[None]:
    """Ended by SIGTERM, an export removes what it has written, as by Control-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _deploy(version: Path, options: DeployOptions) -> list[Path]:
    """Deployment files for the first version; later ones must not move its labels."""
    folder = version.parent / FOLDER
    if folder.exists():
        print(
            f"{folder} is left as it is: `optserve deploy` takes version "
            f"{version.name} into service",
            file=sys.stderr,
        )
        return []
    options = replace(options, stable=int(version.name))
    return write_deployment(read_manifest(version), folder, options)


def edge_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a TFLite export that are its own.

    Raises:
        ExportError: options of a SavedModel.
    """
    if args.compiler == "xla" or args.cache != "float32":
        raise ExportError(
            "--target tflite takes neither --compiler xla nor --cache: leave them out"
        )
    options = {"prompt_buckets": args.prompt_buckets, "cache_size": args.cache_size}
    return {name: value for name, value in options.items() if value is not None}


def _sizes(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"should be 1 or more, got {text}")
    return value

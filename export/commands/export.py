"""``optserve export``: a checkpoint becomes a version in a model's base folder."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

from ...runtime.commands.argument_types import Group
from ...runtime.contract import CACHE_DTYPES
from ...runtime.model_dir import manifest_digest, read_manifest
from ...runtime.printable import json_text, sentence
from ..deploy import FOLDER, DeployOptions, write_deployment
from ..errors import ExportError
from ..options import (
    ACTIVATIONS,
    COMPILERS,
    FRAMEWORKS,
    GENERATE,
    SESSION_SLOTS,
    TARGETS,
    TUNED_FOR,
    WEIGHTS,
    ExportOptions,
)
from ..pipeline import Exported, PhaseClock, export_checkpoint
from .dry_run import dry_run

_EXIT_CODES = (
    "Exit code: 0 published; 1 refused, or not verified, and nothing published; "
    "2 wrong arguments; 130 or 143 interrupted, and what was written removed."
)
_ALL_WEIGHTS = tuple(
    dict.fromkeys(kind for kinds in WEIGHTS.values() for kind in kinds)
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = _EXIT_CODES
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="directory, or hub id")
    add("out", metavar="OUT", help="the model's base folder")
    _configure_options(parser)
    add("--version", type=int, metavar="N", help="its number (default: the next one)")
    add("--revision", help="of a hub checkpoint")
    add(
        "--dry-run",
        action="store_true",
        help="print what the export would be and need, and write nothing; CHECKPOINT "
        "may then be a published size like 66b",
    )
    add(
        "--no-verify",
        action="store_true",
        help="publish without comparing every signature with the checkpoint",
    )
    add(
        "--name",
        default="opt",
        help="the model's name in deployment files (default opt)",
    )
    add("--no-deploy", action="store_true", help="write no deployment files")
    add("--json", action="store_true", help="print the result as JSON")


def _configure_options(parser: argparse.ArgumentParser) -> None:
    """An argument for each field of :class:`ExportOptions`, under its name."""
    _add_graph(parser.add_argument_group("graph"))
    _add_sizes(parser.add_argument_group("sizes"))
    _add_sessions(parser.add_argument_group("sessions"))


def _add_graph(group: Group) -> None:
    """What is written, and for what."""
    add = group.add_argument
    add(
        "--target",
        default="savedmodel",
        choices=TARGETS,
        help="savedmodel for servers (default), tflite for devices",
    )
    add(
        "--framework",
        default="tf",
        choices=FRAMEWORKS,
        help="whose graph is exported: TensorFlow's (default), or JAX's programs with "
        "TensorFlow's ops for the sizes that those are quicker at",
    )
    add(
        "--compiler",
        choices=COMPILERS,
        help="none runs on a stock server; xla is faster and needs "
        "--xla_cpu_compilation_enabled there (default: none, xla for jax)",
    )
    add(
        "--weights",
        default="float32",
        choices=_ALL_WEIGHTS,
        help="how matrices are stored (default float32); int4 is for --framework jax "
        "and --target tflite, bfloat16 for a savedmodel",
    )
    add(
        "--cache",
        default="float32",
        choices=CACHE_DTYPES,
        help="how the key-value cache travels (default float32)",
    )
    add(
        "--activations",
        choices=ACTIVATIONS,
        default="auto",
        help="int8 weights: what they are multiplied with; int8 is faster for "
        "prompts and several rows (default auto: int8 where it raises the loss on the "
        "calibration text by at most 0.1 per cent)",
    )
    add(
        "--calibrate",
        metavar="FILE",
        help="int8 activations: a text like those the model will see, of some thousand "
        "words (default: one of the package's own)",
    )
    add(
        "--portable",
        action="store_true",
        help="int8: leave out the kernels that TensorFlow has on x86-64 alone, with "
        "which several rows are twice as fast; jax: programs of JAX alone",
    )
    add(
        "--tuned-for",
        choices=TUNED_FOR,
        default="any",
        help="int8 and bfloat16 weights: any processor finds out at load what it "
        "multiplies quickest; this-processor has that found out now, and one that "
        "can't do as much refuses the version (default any)",
    )
    add(
        "--compile-for-this-processor",
        action="store_true",
        help="xla, jax: keep what XLA compiles in the version; `optserve serve` on the "
        "same kind of processor is then ready sooner, others compile as ever",
    )


def _add_sizes(group: Group) -> None:
    """What shapes there are signatures and programs for."""
    add = group.add_argument
    add(
        "--generate",
        type=_sizes,
        metavar="N[,N…]",
        default=GENERATE,
        help="tokens that one call generates, a signature for each "
        f"(default: {','.join(map(str, GENERATE))})",
    )
    add(
        "--prompt-buckets",
        type=_sizes,
        metavar="S[,S…]",
        help="jax: prompt sizes to compile for, where programs take prompts (default: "
        "1,32,128); tflite: prompt "
        "tokens that one call takes, each size with a signature and a copy of the "
        "weights in memory (default: 128)",
    )
    add(
        "--batch-sizes",
        type=_sizes,
        metavar="B[,B…]",
        help="xla, jax: numbers of rows to compile for, where programs take them; the "
        "graph rounds up (default: 1, with a plain loop for more; 1,8 for jax)",
    )
    add(
        "--cache-size",
        type=int,
        metavar="C",
        help="tflite: tokens that the cache holds (default: 512)",
    )


def _add_sessions(group: Group) -> None:
    """The caches that a server keeps."""
    add = group.add_argument
    add(
        "--sessions",
        type=int,
        metavar="SLOTS",
        default=0,
        help="caches that the server keeps, so that they need not travel with each "
        "call; their memory is taken as they fill (default 0: none)",
    )
    add(
        "--session-slots",
        type=int,
        metavar="C",
        default=SESSION_SLOTS,
        help="tokens that each of these caches holds, at most the model's positions "
        f"(default {SESSION_SLOTS})",
    )


def run(args: argparse.Namespace) -> int:
    """Export; prints the version's folder.

    One process writes it and then another verifies it, before its version appears;
    deployment files are written beside the first version of a SavedModel's base folder.
    """
    options = ExportOptions(
        **{field.name: getattr(args, field.name) for field in fields(ExportOptions)}
    )
    if args.dry_run:
        return dry_run(args, options)
    deploy = DeployOptions(name=args.name)  # refuses a name before the work
    clock = PhaseClock(print_to=sys.stderr)
    with _cleaning_up():
        exported = export_checkpoint(
            args.checkpoint,
            args.out,
            options,
            version=args.version,
            revision=args.revision,
            verify=not args.no_verify,
            clock=clock,
        )
        deploys = options.target == "savedmodel" and not args.no_deploy
        deployed = _deploy(exported.path, deploy) if deploys else []
    _show(exported, deployed, clock.seconds(), as_json=args.json)
    return 0


def _show(
    exported: Exported, deployed: list[Path], seconds: float, *, as_json: bool
) -> None:
    path = exported.path
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if not as_json:
        print(sentence(f"{path} ({size / 1e6:.1f} MB)"))
        return
    manifest = read_manifest(path)
    result = {
        "path": str(path),
        "bytes": size,
        "digest": manifest_digest(manifest),
        "checkpoint_digest": manifest.checkpoint_digest,
        "seconds": seconds,
        "phases": exported.phases,
        "memory": exported.memory,
        "verification": exported.verification,
        "deployment": [str(file) for file in deployed],
    }
    print(json_text(result, indent=1))


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
        text = (
            f"{folder} is left as it is: `optserve deploy` takes version "
            f"{version.name} into service"
        )
        print(sentence(text), file=sys.stderr)
        return []
    options = replace(options, stable=int(version.name))
    try:
        return write_deployment(read_manifest(version), folder, options)
    except OSError as error:
        raise ExportError(
            f"{version} is published, but its deployment files were not written "
            f"({error.strerror}): `optserve deploy {version.parent}` writes them"
        ) from None


def _sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers separated by commas, like 1,8; got {text!r}"
        ) from None

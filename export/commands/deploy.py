"""``optserve deploy OUT``: deployment files for the versions in a base folder."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from ...runtime.model_dir import newest_version, read_manifest, version_folder
from ...runtime.printable import sentence
from ..deploy import FOLDER, DeployOptions, write_deployment
from ..deploy.options import TLS_MODES

_HELP = {
    "name": "the model's name",
    "image": "server image",
    "replicas": "fewest servers",
    "max_replicas": "most servers",
    "cpus": "processors of a server",
    "max_batch": "most rows of a batch",
}
"""Options with a plain default: the field of :class:`DeployOptions`, and its help."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    defaults = DeployOptions()
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="base folder with numbered versions")
    add("--dir", type=Path, help=f"where to write (default OUT/{FOLDER})")
    add("--stable", type=int, help="version to label stable (default: newest)")
    add("--canary", type=int, help="version to label canary, served beside it")
    add(
        "--keep",
        type=int,
        action="append",
        default=[],
        metavar="VERSION",
        help="version to keep loaded without a label, for the way back",
    )
    for field, text in _HELP.items():
        default = getattr(defaults, field)
        add(
            f"--{field.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"{text} (default %(default)s)",
        )
    add(
        "--storage",
        default="",
        help="base folder for the cluster: pvc://, gs://, s3://",
    )
    add(
        "--batching",
        action=argparse.BooleanOptionalAction,
        help="merge callers' requests (default: if this export gains from it)",
    )
    add(
        "--tls",
        choices=TLS_MODES,
        default=defaults.tls,
        help="TLS for gRPC (default %(default)s)",
    )
    add(
        "--gateway-image",
        default="",
        metavar="IMAGE",
        help="run `optserve gateway` of this image in front of the servers (none)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the files. Returns 0."""
    stable = newest_version(args.out) if args.stable is None else args.stable
    manifest = read_manifest(version_folder(args.out, stable))
    given = {field.name: getattr(args, field.name) for field in fields(DeployOptions)}
    options = DeployOptions(**given | {"stable": stable, "keep": tuple(args.keep)})
    for version in options.versions:  # refuses those that are not there
        read_manifest(version_folder(args.out, version))
    directory = args.dir or args.out / FOLDER
    for path in write_deployment(manifest, directory, options):
        print(sentence(path))
    return 0

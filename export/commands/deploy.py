"""``optserve deploy OUT``: deployment files for the versions in a base folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...runtime.model_dir import newest_version, read_manifest, version_folder
from ...runtime.printable import sentence
from ..deploy import FOLDER, DeployOptions, write_deployment
from ..deploy.options import SERVER_IMAGE, TLS_MODES


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    defaults = DeployOptions()
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="base folder with numbered versions")
    add("--dir", type=Path, help=f"where to write (default OUT/{FOLDER})")
    add("--name", default=defaults.name, help="the model's name (default %(default)s)")
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
    add("--image", default=SERVER_IMAGE, help="server image (default %(default)s)")
    add(
        "--storage",
        default="",
        help="base folder for the cluster: pvc://, gs://, s3://",
    )
    add(
        "--replicas",
        type=int,
        default=defaults.replicas,
        help="fewest servers (default %(default)s)",
    )
    add(
        "--max-replicas",
        type=int,
        default=defaults.max_replicas,
        help="most servers (default %(default)s)",
    )
    add(
        "--cpus",
        type=int,
        default=defaults.cpus,
        help="processors of a server (default %(default)s)",
    )
    add(
        "--max-batch",
        type=int,
        default=defaults.max_batch,
        help="most rows of a batch (default %(default)s)",
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
    options = DeployOptions(
        name=args.name,
        stable=stable,
        canary=args.canary,
        keep=tuple(args.keep),
        image=args.image,
        storage=args.storage,
        replicas=args.replicas,
        max_replicas=args.max_replicas,
        cpus=args.cpus,
        max_batch=args.max_batch,
        batching=args.batching,
        tls=args.tls,
        gateway_image=args.gateway_image,
    )
    for version in options.versions:
        read_manifest(
            version_folder(args.out, version)
        )  # refuses versions that are not there
    directory = args.dir or args.out / FOLDER
    for path in write_deployment(manifest, directory, options):
        print(sentence(path))
    return 0

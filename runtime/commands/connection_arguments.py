"""Options that say which model to call, and the client for it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...models.regular_files import read_regular_file
from ..client import Client
from ..decoding.prefix_cache import PrefixCache
from ..errors import InvalidRequest
from ..option_checks import INT32_MAX
from ..transports.connection import Connection, Tls, check_secrecy
from ..transports.resolve import Target
from .argument_types import Group, given, refuse, seconds, whole

_LONGEST_TOKEN = 64 << 10  # bytes; servers take fewer


def add_connection(
    parser: argparse.ArgumentParser,
    *,
    positional: bool = False,
    model_runs: str = "run in this process",
) -> None:
    """Which model to call, and how to reach it.

    With ``positional``, ``OUT`` by itself means ``--model OUT``. ``model_runs`` says
    where the model of ``--model`` runs.
    """
    group = parser.add_argument_group("model")
    which = group.add_mutually_exclusive_group(required=True)
    parser.set_defaults(out=None)
    if positional:
        which.add_argument(
            "out", nargs="?", metavar="OUT", help="an export's folder, as --model"
        )
    which.add_argument(
        "--target",
        action="append",
        metavar="ADDRESS",
        help="server: HOST:PORT, unix:PATH or dns:///NAME:PORT; repeat for replicas, "
        "or separate them by commas",
    )
    which.add_argument(
        "--model", metavar="OUT", help=f"an export's folder, {model_runs}"
    )
    add = group.add_argument
    add("--name", default="opt", help="the model's name on the server (default opt)")
    add("--label", default="", help="version label to follow (default: newest version)")
    add(
        "--tokenizer",
        type=given,
        metavar="DIR",
        help="tokenizer to use instead of the export's",
    )
    add("--wait", type=seconds, metavar="S", help="wait S seconds for the model")
    add(
        "--max-rows",
        type=whole(1, INT32_MAX),
        metavar="B",
        help="most rows of one call",
    )
    add(
        "--threads",
        type=whole(1, 1024),
        metavar="T",
        help="threads for --model (default: the runtime's own choice)",
    )
    _add_security(parser.add_argument_group("encryption"))


def _add_security(group: Group) -> None:
    """TLS, and the token that says who calls."""
    add = group.add_argument
    add("--tls", action="store_true", help="encrypt, trusting the system's authorities")
    for name, metavar, text in (
        ("--tls-ca", "PEM", "encrypt, trusting these certificates"),
        ("--tls-cert", "PEM", "encrypt; the client's certificate (mTLS)"),
        ("--tls-key", "PEM", "the key of --tls-cert"),
        ("--tls-server-name", "NAME", "encrypt; the name in the server's certificate"),
        (
            "--token-file",
            "FILE",
            "send its content as a bearer token (read again for each call)",
        ),
    ):
        add(name, type=given, metavar=metavar, help=text)
    add(
        "--insecure-token",
        action="store_true",
        help="send the token without encryption to other machines, too",
    )


def add_prefix_cache(
    parser: argparse.ArgumentParser,
    *,
    in_memory: str = "1 GiB with a folder, else none are kept",
) -> None:
    """Where the cache rows of what prompts have in common are kept.

    ``in_memory`` says how many bytes of them by default.
    """
    add = parser.add_argument_group("prefix cache").add_argument
    add(
        "--prefix-cache",
        metavar="FOLDER",
        help="keep prompts' cache rows there, for later prompts that begin alike; "
        "closed to other users",
    )
    add(
        "--prefix-cache-bytes",
        type=whole(1, 2**63 - 1),
        metavar="N",
        help=f"most bytes of rows in memory ({in_memory}) and in the folder (8 GiB)",
    )


@contextmanager
def opened_prefix_cache(args: argparse.Namespace) -> Iterator[PrefixCache | None]:
    """The prefix cache that the options ask for; None if they ask for none."""
    folder = getattr(args, "prefix_cache", None)
    limit = getattr(args, "prefix_cache_bytes", None)
    if folder is None and limit is None:
        yield None
        return
    sizes = {} if limit is None else {"memory_bytes": limit, "folder_bytes": limit}
    with PrefixCache(folder=folder, **sizes) as prefixes:
        yield prefixes


@contextmanager
def opened_client(args: argparse.Namespace) -> Iterator[Client]:
    """A client for the parsed options: of servers, or of a model in this process."""
    target, options = client_options(args)
    with (
        opened_prefix_cache(args) as prefixes,
        Client(target, prefix_cache=prefixes, **options) as client,
    ):
        yield client


def client_options(args: argparse.Namespace) -> tuple[Target, dict[str, Any]]:
    """What ``Client`` and ``AsyncClient`` take for the parsed options."""
    options: dict[str, Any] = {"tokenizer": args.tokenizer, "max_rows": args.max_rows}
    if args.target:
        refuse(args, ("threads",), "needs --model: a server has threads of its own")
        options |= {"model": args.name, "label": args.label, "wait": args.wait}
        args.target = [one for given in args.target for one in _separated(given)]
        return args.target, options | _connection(args)
    refuse(args, _SERVER_ONLY, "needs --target: --model runs on this machine")
    return Path(args.model or args.out), options | {"threads": args.threads}


_SERVER_ONLY = (
    *("label", "wait", "tls", "tls_ca", "tls_cert", "tls_key", "tls_server_name"),
    *("token_file", "insecure_token"),
)


def _separated(target: str) -> list[str]:
    """Addresses between commas; those of gRPC's own lists stay together."""
    return [target] if target.startswith(("ipv4:", "ipv6:")) else target.split(",")


def _connection(args: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {}
    files = (args.tls_ca, args.tls_cert, args.tls_key)
    encrypted = args.tls or args.tls_server_name or any(files)
    if encrypted:
        roots, chain, key = (None if file is None else Path(file) for file in files)
        options["tls"] = Tls(
            roots=roots,
            certificate_chain=chain,
            private_key=key,
            server_name=args.tls_server_name,
        )
    if args.token_file:
        options["insecure_token"] = args.insecure_token
        secret = [("authorization", "")]
        check_secrecy(secret, args.target, Connection(**options))
        options["metadata"] = _bearer_token(args.token_file)
    return options


def _bearer_token(path: str) -> Callable[[], list[tuple[str, str]]]:
    def read() -> list[tuple[str, str]]:
        try:
            data = read_regular_file(path, limit=_LONGEST_TOKEN)
        except OSError as error:
            raise InvalidRequest(
                f"the token file {path} can't be used, which is read for each call: "
                f"{error.strerror}"
            ) from None
        token = data.decode("ascii", "replace").strip()
        if not token or not token.isascii() or not token.isprintable():
            raise InvalidRequest(
                f"the token file {path} must hold one line of printable ASCII"
            )
        return [("authorization", f"Bearer {token}")]

    read()  # tells at once where it can't be used
    return read

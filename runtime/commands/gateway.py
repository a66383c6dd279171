"""``optserve gateway``: OpenAI's protocol over HTTP, in front of a served model."""

from __future__ import annotations

import argparse
import logging
import webbrowser
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING

from ...models.regular_files import read_regular_file
from ..async_client import AsyncClient
from ..decoding.prefix_cache import PrefixCache
from ..errors import InvalidRequest
from ..transports.resolve import check_path, is_tflite
from .argument_types import seconds, whole
from .connection_arguments import (
    add_connection,
    add_prefix_cache,
    client_options,
    opened_prefix_cache,
)
from .listening_arguments import (
    add_host,
    add_json_log,
    add_port,
    allow_many_connections,
)
from .own_server import OwnServer, own_server
from .prompt_text import utf8

if TYPE_CHECKING:
    from ..gateway import GatewaySettings

_MOST_TEMPLATE = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_connection(parser, model_runs="run by an embedded server of its own")
    add_prefix_cache(parser, in_memory="1 GiB")
    group = parser.add_argument_group("HTTP")
    add = group.add_argument
    add_port(group, 8000)
    add_host(group)
    add(
        "--also",
        action="append",
        default=[],
        metavar="NAME[:LABEL]",
        help="a further model, or version label, behind the same addresses",
    )
    add("--tls-certificate", metavar="PEM", help="serve HTTPS with this certificate")
    add("--tls-certificate-key", metavar="PEM", help="and its key")
    add(
        "--keys",
        metavar="FILE",
        help="let in only who has one of these (optserve api-key)",
    )
    add("--chat-template", metavar="FILE", help="Jinja template of conversations")
    add(
        "--max-active",
        type=whole(1, 4096),
        default=64,
        metavar="N",
        help="generations under way at a time (64)",
    )
    add(
        "--max-queue",
        type=whole(0, 1 << 20),
        default=256,
        metavar="N",
        help="generations that may wait; more get 429 (256)",
    )
    add(
        "--request-timeout",
        type=seconds,
        default=600.0,
        metavar="S",
        help="for one request, waiting included (600)",
    )
    add(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of this origin call (none may)",
    )
    add("--open", action="store_true", help="open the page in a browser")
    add_json_log(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    logging.getLogger("optserve.gateway").setLevel(logging.INFO)
    from ..gateway import create_app
    from ..gateway.server import listen, make_server, run_server

    if (args.tls_certificate is None) != (args.tls_certificate_key is None):
        raise InvalidRequest("--tls-certificate and --tls-certificate-key go together")
    allow_many_connections()
    with opened_prefix_cache(args) as prefixes, _own_server(args) as own:
        clients = _clients(args, own, prefixes or PrefixCache())
        server = make_server(
            create_app(clients, _settings(args)),
            certificate=args.tls_certificate,
            key=args.tls_certificate_key,
        )
        listener = listen(args.host, args.port)

        def stop() -> None:
            server.should_exit = True

        if own is not None:
            own.wait_until_ready()
            own.on_end(stop)
        _announce(args, listener)
        run_server(server, listener)
    return 0


def _announce(args: argparse.Namespace, listener: socket) -> None:
    """Say where, and show it if so asked."""
    host, port = listener.getsockname()[:2]
    scheme = "http" if args.tls_certificate is None else "https"
    shown = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{shown}:{port}"
    print(f"listening at {url}/v1", flush=True)
    if args.open:
        webbrowser.open(url)


@contextmanager
def _own_server(args: argparse.Namespace) -> Generator[OwnServer | None, None, None]:
    """An embedded server for ``--model``; a TFLite file runs in this process."""
    if args.model is None:
        yield None
        return
    if args.also:
        raise InvalidRequest("--also needs --target: --model is one model")
    path = Path(args.model)
    check_path(path)
    if is_tflite(path):
        yield None
        return
    threads = [] if args.threads is None else ["--intra-op-threads", str(args.threads)]
    log = ["--json-log"] if args.json_log else []
    with own_server(path, name=args.name, options=[*threads, *log]) as own:
        yield own


def _clients(
    args: argparse.Namespace, own: OwnServer | None, prefixes: PrefixCache
) -> dict[str, AsyncClient]:
    """A client for each name that requests may give; they share the prefix cache."""
    target, options = client_options(args)
    options |= {"max_active": args.max_active, "prefix_cache": prefixes}
    if own is not None:
        del options["threads"]  # the server's
        return {args.name: AsyncClient(own.target, model=args.name, **options)}
    if not args.target:
        return {args.name: AsyncClient(target, **options)}
    label = args.label
    named = [f"{args.name}:{label}" if label else args.name, *args.also]
    clients: dict[str, AsyncClient] = {}
    for name in named:
        model, _, label = name.partition(":")
        if not model:
            raise InvalidRequest(f"--also must be NAME or NAME:LABEL, got {name!r}")
        own_options = {**options, "model": model, "label": label}
        clients[name] = AsyncClient(target, **own_options)
    return clients


def _settings(args: argparse.Namespace) -> GatewaySettings:
    from ..gateway import GatewaySettings

    template = None
    if args.chat_template:
        data = read_regular_file(args.chat_template, limit=_MOST_TEMPLATE)
        template = utf8(data, args.chat_template)
    return GatewaySettings(
        keys_file=Path(args.keys) if args.keys else None,
        chat_template=template,
        max_active=args.max_active,
        max_queue=args.max_queue,
        request_seconds=args.request_timeout,
        allow_origins=tuple(args.allow_origin),
    )

"""``optserve gateway``: OpenAI's protocol over HTTP, in front of a served model."""

from __future__ import annotations

import argparse
import logging
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from ...models.regular_files import read_regular_file
from ..async_client import AsyncClient
from ..decoding.prefix_cache import PrefixCache
from ..errors import InvalidRequest
from ..transports.resolve import check_path
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
from .prompt_text import utf8

if TYPE_CHECKING:
    from ..gateway import GatewaySettings

_MOST_TEMPLATE = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_connection(parser)
    add_prefix_cache(parser)
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
    with opened_prefix_cache(args) as prefixes:
        app = create_app(_clients(args, prefixes or PrefixCache()), _settings(args))
        server = make_server(
            app, certificate=args.tls_certificate, key=args.tls_certificate_key
        )
        listener = listen(args.host, args.port)
        allow_many_connections()
        host, port = listener.getsockname()[:2]
        scheme = "http" if args.tls_certificate is None else "https"
        shown = f"[{host}]" if ":" in host else host
        url = f"{scheme}://{shown}:{port}"
        print(f"listening at {url}/v1", flush=True)
        if args.open:
            webbrowser.open(url)
        run_server(server, listener)
    return 0


def _clients(args: argparse.Namespace, prefixes: PrefixCache) -> dict[str, AsyncClient]:
    """A client for each name that requests may give; they share the prefix cache."""
    target, options = client_options(args)
    options |= {"max_active": args.max_active, "prefix_cache": prefixes}
    if not args.target:
        if args.also:
            raise InvalidRequest("--also needs --target: --model is one model")
        check_path(target)  # a server may come later, a model of this machine won't
        return {args.name: AsyncClient(target, **options)}
    label = args.label
    named = [f"{args.name}:{label}" if label else args.name, *args.also]
    clients: dict[str, AsyncClient] = {}
    for name in named:
        model, _, label = name.partition(":")
        if not model:
            raise InvalidRequest(f"--also must be NAME or NAME:LABEL, got {name!r}")
        own = {**options, "model": model, "label": label}
        clients[name] = AsyncClient(target, **own)
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

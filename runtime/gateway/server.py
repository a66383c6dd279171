"""Runs the application with uvicorn until a signal ends it."""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from ..errors import InvalidRequest
from .connections import BoundedConnection

_DRAIN_SECONDS = 30


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one.

    Raises:
        InvalidRequest: the address can't be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:  # whose own text repeats the address
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or error
        raise InvalidRequest(
            f"can't listen at {host}:{port} ({reason}): choose another --port or --host"
        ) from None
    # Accepted connections take it over. Without it an event waits for the caller's
    # acknowledgement of the one before, 40 ms and more; asyncio sets it for sockets
    # that it makes itself.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def make_server(
    app: Starlette, *, certificate: Path | None = None, key: Path | None = None
) -> uvicorn.Server:
    """A server of the application, not running yet.

    Args:
        app: of ``create_app``.
        certificate, key: PEM files; with them HTTPS.

    Raises:
        InvalidRequest: the certificate or the key can't be used.
    """
    config = uvicorn.Config(
        app,
        http=BoundedConnection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        timeout_keep_alive=round(BoundedConnection.request_seconds),
        h11_max_incomplete_event_size=64 << 10,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise InvalidRequest(
            f"the certificate or its key can't be used: {error}"
        ) from None
    return uvicorn.Server(config)


def run_server(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; what is under way then may end.

    Args:
        server: of ``make_server``.
        listener: of ``listen``.
    """
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again at its end
    server.run(sockets=[listener])

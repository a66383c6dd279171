"""Where a server listens: a TCP port or a Unix socket."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import Any

from ..errors import OptserveError
from .settings import TlsOptions
from .tls import server_credentials
from .unix_socket import UnixSocket


class Address:
    """One listening address. ``target`` is what a client connects to."""

    def __init__(
        self, host: str, port: int, path: str | os.PathLike[str] | None
    ) -> None:
        self._socket = None if path is None else UnixSocket(os.path.abspath(path))
        self._host = f"[{host}]" if ":" in host and host[0] != "[" else host
        self._port = port

    @property
    def target(self) -> str:
        """``host:port`` or ``unix:/path``."""
        if self._socket is not None:
            return f"unix:{self._socket.path}"
        return f"{self._host}:{self._port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can call: a Unix socket or a loopback address."""
        if self._socket is not None or self._host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self._host.strip("[]")).is_loopback
        except ValueError:
            return False  # a name: who knows what it stands for

    def claim(self) -> None:
        """Find out early, before a model is loaded, whether the address is free.

        A Unix socket is this server's from now on.

        Raises:
            OptserveError: taken, or not possible.
        """
        if self._socket is not None:
            self._socket.claim()
        elif not self._host:
            raise OptserveError(
                "the host is empty: give an address of this machine, such as "
                "127.0.0.1, or 0.0.0.0 for all of them"
            )
        elif not 0 <= self._port <= 65535:
            raise OptserveError(f"port {self._port} is not between 0 and 65535")
        elif self._port:
            self._try_port()

    def bind(self, server: Any, tls: TlsOptions | None) -> None:
        """Open the port of a ``grpc.Server`` or ``grpc.aio.Server``.

        Raises:
            OptserveError: taken, not possible, or the certificates are wrong.
        """
        if self._socket is not None:
            self._socket.clear()
        try:
            if tls is None:
                port = server.add_insecure_port(self.target)
            else:
                port = server.add_secure_port(self.target, server_credentials(tls))
        except RuntimeError as error:
            raise OptserveError(f"cannot listen at {self.target}: {error}") from None
        if not port:
            raise OptserveError(f"cannot listen at {self.target}")
        if self._socket is None:
            self._port = port
        else:
            self._socket.note_bound()

    def release(self) -> None:
        """Remove the socket's file, if there is one of ours."""
        if self._socket is not None:
            self._socket.release()

    def _try_port(self) -> None:
        family = socket.AF_INET6 if self._host[0] == "[" else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host.strip("[]"), self._port))
            except (TypeError, UnicodeError):  # how Python tells
                raise OptserveError(f"{self._host!r} is not a host's name") from None
            except OSError as error:
                raise self._refused(error) from None

    def _refused(self, error: OSError) -> OptserveError:
        advice = "choose another port (0 picks a free one)"
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            advice = "the host should be an address of this machine"
        return OptserveError(
            f"cannot listen at {self.target}: {error.strerror}; {advice}"
        )

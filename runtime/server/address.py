"""Where a server listens: a TCP port or a Unix socket."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

import grpc

from ..errors import OptserveError
from .settings import TlsOptions

_MAX_SOCKET_PATH = 107  # sun_path of Linux, without the final zero


class Address:
    """One listening address. ``target`` is what a client connects to."""

    def __init__(
        self, host: str, port: int, path: str | os.PathLike[str] | None
    ) -> None:
        self._path = None if path is None else os.path.abspath(path)
        self._host = f"[{host}]" if ":" in host and host[0] != "[" else host
        self._port = port
        self._bound = False

    @property
    def target(self) -> str:
        """``host:port`` or ``unix:/path``."""
        if self._path is not None:
            return f"unix:{self._path}"
        return f"{self._host}:{self._port}"

    def check(self) -> None:
        """Find out early, before a model is loaded, whether the address is free.

        A socket file that no process listens at any more is removed.

        Raises:
            OptserveError: taken, or not possible.
        """
        if self._path is not None:
            self._check_socket(self._path)
        elif not 0 <= self._port <= 65535:
            raise OptserveError(f"port {self._port} is not between 0 and 65535")
        elif self._port:
            family = socket.AF_INET6 if self._host[0] == "[" else socket.AF_INET
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self._host.strip("[]"), self._port))
                except OSError as error:
                    raise self._refused(error) from None

    def bind(self, server: grpc.Server, tls: TlsOptions | None) -> None:
        """Open the port.

        Raises:
            OptserveError: taken, not possible, or the certificates are wrong.
        """
        try:
            if tls is None:
                port = server.add_insecure_port(self.target)
            else:
                port = server.add_secure_port(self.target, _credentials(tls))
        except RuntimeError as error:
            raise OptserveError(f"cannot listen at {self.target}: {error}") from None
        if not port and tls is not None:
            raise OptserveError(
                f"cannot listen at {self.target}: the TLS key or certificate is wrong"
            )
        if not port:
            raise OptserveError(f"cannot listen at {self.target}")
        self._bound = True
        if self._path is None:
            self._port = port

    def release(self) -> None:
        """Remove the socket's file, if there is one of ours."""
        if self._path is not None and self._bound:
            with contextlib.suppress(FileNotFoundError):  # gRPC removes it too
                os.unlink(self._path)
        self._bound = False

    def _check_socket(self, path: str) -> None:
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            raise OptserveError(
                f"socket path {path} is longer than {_MAX_SOCKET_PATH} bytes"
            )
        if not os.path.isdir(os.path.dirname(path)):
            raise OptserveError(f"no folder for the socket: {os.path.dirname(path)}")
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise OptserveError(f"{path} exists and is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except OSError:
                os.unlink(path)  # left over from a process that was killed
                return
        raise OptserveError(f"another process listens at {path}")

    def _refused(self, error: OSError) -> OptserveError:
        advice = "choose another port (0 picks a free one)"
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            advice = "the host should be an address of this machine"
        return OptserveError(
            f"cannot listen at {self.target}: {error.strerror}; {advice}"
        )


def _credentials(tls: TlsOptions) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(tls.server_key, tls.server_cert)],
        root_certificates=tls.custom_ca or None,
        require_client_auth=tls.client_verify,
    )

"""The server's certificates, checked before gRPC takes them.

gRPC opens the port with a key that doesn't belong to the certificate, and every client
then sees a handshake that failed for no stated reason.
"""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path

import grpc

from ..errors import OptserveError
from .settings import TlsOptions


def server_credentials(tls: TlsOptions) -> grpc.ServerCredentials:
    """What gRPC encrypts a port with.

    Raises:
        OptserveError: a text is not PEM, key and certificate don't belong together, or
            clients' certificates are asked for without an authority to check them.
    """
    _check_pair(tls)
    if tls.client_verify and not tls.custom_ca:
        raise OptserveError(
            "client_verify asks clients for certificates, and there is no custom_ca "
            "to check them with: add the certificate of the authority that signs them"
        )
    if tls.custom_ca:
        _check_authority(tls.custom_ca)
    return grpc.ssl_server_credentials(
        [(tls.server_key, tls.server_cert)],
        root_certificates=tls.custom_ca or None,
        require_client_auth=tls.client_verify,
    )


def _check_pair(tls: TlsOptions) -> None:
    for name, text in (("key", tls.server_key), ("cert", tls.server_cert)):
        if b"-----BEGIN" not in text:
            raise OptserveError(f"server_{name} is not PEM text (-----BEGIN …)")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:  # ssl reads from files alone
        cert, key = Path(folder, "cert"), Path(folder, "key")
        cert.write_bytes(tls.server_cert)
        key.touch(0o600)
        key.write_bytes(tls.server_key)
        try:
            context.load_cert_chain(cert, key, password=_no_password)
        except ssl.SSLError as error:
            raise OptserveError(_why(error)) from None


def _why(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return (
            "server_key is not the private key of server_cert: give the two that "
            "belong together (the server's own certificate comes first in the file)"
        )
    return (
        "server_key or server_cert cannot be used "
        f"({error.reason or 'encrypted or damaged'}): give an unencrypted PEM key and "
        "its PEM certificate"
    )


def _no_password() -> str:
    return ""  # an encrypted key is an error, not a question on the terminal


def _check_authority(custom_ca: bytes) -> None:
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(cadata=custom_ca.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise OptserveError("custom_ca holds no PEM certificate") from None

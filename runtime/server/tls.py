"""The server's certificates, checked before gRPC takes them."""

from __future__ import annotations

import grpc

from ..certificates import holds_certificates, why_unusable
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
    if tls.custom_ca and not holds_certificates(tls.custom_ca):
        raise OptserveError("custom_ca holds no PEM certificate")
    return grpc.ssl_server_credentials(
        [(tls.server_key, tls.server_cert)],
        root_certificates=tls.custom_ca or None,
        require_client_auth=tls.client_verify,
    )


def _check_pair(tls: TlsOptions) -> None:
    for name, text in (("key", tls.server_key), ("cert", tls.server_cert)):
        if b"-----BEGIN" not in text:
            raise OptserveError(f"server_{name} is not PEM text (-----BEGIN …)")
    if reason := why_unusable(tls.server_cert, tls.server_key):
        raise OptserveError(f"server_key and server_cert {reason}")

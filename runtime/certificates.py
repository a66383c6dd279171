"""Whether private keys and certificates can be used.

gRPC doesn't say: it opens a port or a channel with them, and every handshake then fails
for no stated reason.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory


def why_unusable(certificate: bytes, key: bytes) -> str:
    """What is wrong with two PEM texts, as the end of a sentence; "" for nothing."""
    import ssl  # only where TLS is used: importing the client stays quick

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as folder:  # ssl reads from files alone
        certificate_path, key_path = Path(folder, "certificate"), Path(folder, "key")
        certificate_path.write_bytes(certificate)
        key_path.touch(0o600)
        key_path.write_bytes(key)
        try:
            # An encrypted key is an error, not a question on the terminal.
            context.load_cert_chain(certificate_path, key_path, password=lambda: "")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                return (
                    "do not belong together: give the key of that certificate (the "
                    "first one in the file, where there are several)"
                )
            return (
                f"cannot be used ({error.reason or 'encrypted or damaged'}): give an "
                "unencrypted PEM key and its PEM certificate"
            )
    return ""


def holds_certificates(pem: bytes) -> bool:
    """Whether a PEM text holds authorities that certificates can be checked with."""
    import ssl

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError):
        return False
    return True

"""Servers shared by the tests of this folder; each is started once."""

from __future__ import annotations

import datetime
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from optserve.runtime.server import EmbeddedServer

from . import rec_model


@pytest.fixture(scope="session")
def rec_path(tmp_path_factory):
    base = tmp_path_factory.mktemp("rec")
    rec_model.save(base / "1")
    return base


@pytest.fixture(scope="session")
def typed_server(rec_path):
    with EmbeddedServer(rec_path, name="rec") as server:
        yield server


@pytest.fixture(scope="session")
def content_server(rec_path):
    with EmbeddedServer(rec_path, name="rec", tensor_content=True) as server:
        yield server


@pytest.fixture
def channel(typed_server):
    with grpc.insecure_channel(typed_server.target) as channel:
        yield channel


@pytest.fixture(scope="session")
def certificates():
    """PEM texts: an authority, and (key, certificate) of a server and a client."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("authority", ca_key, None, ca_key)
    pairs = []
    for name in ("localhost", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        pairs.append((pem, _pem(_certificate(name, key, ca, ca_key))))
    return _pem(ca), *pairs


def _pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


def _certificate(name, key, issuer, issuer_key):
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        .add_extension(x509.BasicConstraints(issuer is None, None), True)
        .sign(issuer_key, hashes.SHA256())
    )

"""How to reach servers, as small frozen objects: ``Connection`` holds the others.

Nothing here imports grpc.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

from ...models.regular_files import read_regular_file
from ..certificates import holds_certificates, why_unusable
from ..codec import EXPANSION_LIMIT
from ..contract import MESSAGE_LIMIT
from ..errors import InvalidRequest
from ..option_checks import check_seconds, check_whole
from .addresses import is_local

Metadata = Iterable[tuple[str, str | bytes]]
"""Pairs sent with every call; names ending in ``-bin`` have bytes as values."""

MetadataSource = Metadata | Callable[[], Metadata | Awaitable[Metadata]]
"""Pairs, or a function called before each attempt (for bearer tokens that expire).

Only the asyncio transport takes a function that returns an awaitable.
"""

Pem = bytes | str | Path
"""PEM text as bytes or str, or the path of a file that holds it."""

_ROOTS_FILES = (  # Debian, Fedora, Alpine and macOS
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
_PEM_LIMIT = 16 << 20  # bytes
_LONGEST_MS = 2e6  # seconds; gRPC counts milliseconds in 32 bits
_METADATA_KEY = re.compile(r"[0-9a-z_.-]+")
_SECRET = re.compile(
    r"authorization|cookie|token|secret|passw|credential|jwt|api-?key|[-_.]key$"
)


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Encrypt, and check who answers.

    Attributes:
        roots: certificates to trust; None trusts the system's, or gRPC's own list where
            the system has none.
        certificate_chain: the client's certificate, for servers that ask (mTLS).
        private_key: its key.
        server_name: the name expected in the server's certificate, if not the host's.
    """

    roots: Pem | None = None
    certificate_chain: Pem | None = None
    private_key: Pem | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate_chain is None) != (self.private_key is None):
            raise InvalidRequest(
                "mTLS needs both certificate_chain and private_key, got only one"
            )
        if self.server_name == "":
            raise InvalidRequest("the TLS server_name is empty: give a name, or None")

    def load(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """PEM bytes of roots, private key and chain.

        Raises:
            InvalidRequest: a file can't be read or holds no PEM, or key and
                certificate don't belong together.
        """
        roots = _system_roots()
        if self.roots is not None:
            roots = _pem(self.roots, "roots")
            if roots and not holds_certificates(roots):
                raise InvalidRequest("the TLS roots hold no PEM certificate")
        key = _pem(self.private_key, "private_key")
        chain = _pem(self.certificate_chain, "certificate_chain")
        if key and chain and (reason := why_unusable(chain, key)):
            raise InvalidRequest(f"private_key and certificate_chain {reason}")
        return roots, key, chain


@dataclass(frozen=True, kw_only=True)
class Keepalive:
    """HTTP/2 pings during calls, so that a vanished or frozen machine is noticed.

    Every ``interval`` seconds, up to ``timeout`` seconds for the answer. gRPC sends at
    most two without data between, which every server tolerates.
    """

    interval: float = 30.0
    timeout: float = 20.0

    def __post_init__(self) -> None:
        check_seconds("keepalive interval", self.interval, most=_LONGEST_MS)
        check_seconds("keepalive timeout", self.timeout, most=_LONGEST_MS)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How long and how fast to try again; every step is pure, so any may be repeated.

    A failed call goes to the other replicas at once. When all have failed, it waits
    ``first_wait`` seconds, then twice as long each round up to ``longest_wait``, each
    wait times a random 0.5 to 1. What is retried: servers that can't be reached or went
    away (UNAVAILABLE, ABORTED, a broken stream), full queues (UNAVAILABLE,
    RESOURCE_EXHAUSTED; the latter for ``busy_rounds`` rounds only, since a server out
    of memory says the same), and replies that don't decode if there are other replicas.

    Attributes:
        connect: seconds to try while no server has ever answered; 0 tries once.
        recover: seconds to try once they had answered; 0 tries each replica once.
    """

    connect: float = 3.0
    recover: float = 60.0
    first_wait: float = 0.1
    longest_wait: float = 2.0
    busy_rounds: int = 5

    def __post_init__(self) -> None:
        for name in ("recover", "first_wait", "longest_wait"):
            check_seconds(f"retry {name}", getattr(self, name), zero=True)
        check_seconds("retry connect", self.connect, most=_LONGEST_MS, zero=True)
        check_whole("retry busy_rounds", self.busy_rounds, 0)


@dataclass(frozen=True, kw_only=True)
class Ejection:
    """When a replica is left out: after a failure, for ``first`` seconds.

    Each failure in a row doubles it, up to ``longest``. Then one call tries it again.
    """

    first: float = 0.5
    longest: float = 10.0

    def __post_init__(self) -> None:
        check_seconds("ejection first", self.first)
        check_seconds("ejection longest", self.longest)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes in bytes above which nothing is sent or allocated.

    ``message`` is for requests (protobuf itself ends at 2 GiB);
    ``expansion`` is what repeated trailing values of one reply may expand to.
    """

    message: int = MESSAGE_LIMIT
    expansion: int = EXPANSION_LIMIT

    def __post_init__(self) -> None:
        check_whole(
            "the message limit", self.message, 1, hint=f"1 to {MESSAGE_LIMIT} bytes"
        )
        check_whole("the expansion limit", self.expansion, 1, 2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """All options of a connection; what ``GrpcTransport`` takes as keywords.

    Attributes:
        tls: encrypt; None sends in the clear.
        metadata: pairs for every call, or a function that makes them. Never logged.
        insecure_token: send tokens and the like (pairs named authorization, …token,
            …api-key, cookie …) without encryption to other machines, too.
        attempt_timeout: seconds after which one attempt is given up and made
            elsewhere; None lets it take as long as the call may.
        retry: how failed calls are repeated.
        ejection: when a replica is left out.
        keepalive: pings; None sends none.
        limits: sizes.
        compression: of requests; None is fastest on a local network.
        user_agent: put before gRPC's own.
        channel_options: gRPC channel arguments, over ours.
    """

    tls: Tls | None = None
    metadata: MetadataSource = field(default=(), repr=False)
    insecure_token: bool = False
    attempt_timeout: float | None = None
    retry: Retry = Retry()
    ejection: Ejection = Ejection()
    keepalive: Keepalive | None = Keepalive()
    limits: Limits = Limits()
    compression: Literal["gzip", "deflate"] | None = None
    user_agent: str = "optserve"
    channel_options: Sequence[tuple[str, str | int]] = ()

    def __post_init__(self) -> None:
        if self.attempt_timeout is not None:
            check_seconds("attempt_timeout", self.attempt_timeout)
        if self.compression not in (None, "gzip", "deflate"):
            raise InvalidRequest(
                f"compression must be None, 'gzip' or 'deflate', "
                f"got {self.compression!r}"
            )
        if not callable(self.metadata):
            object.__setattr__(self, "metadata", checked_metadata(self.metadata))


class ConnectionKeywords(TypedDict, total=False):
    """The fields of ``Connection`` as keywords, for signatures that take them."""

    tls: Tls | None
    metadata: MetadataSource
    insecure_token: bool
    attempt_timeout: float | None
    retry: Retry
    ejection: Ejection
    keepalive: Keepalive | None
    limits: Limits
    compression: Literal["gzip", "deflate"] | None
    user_agent: str
    channel_options: Sequence[tuple[str, str | int]]


def checked_label(label: str) -> str:
    """The version label; "" for none.

    Raises:
        InvalidRequest: it can't be one.
    """
    if not isinstance(label, str) or (label and not label.isprintable()):
        raise InvalidRequest(f"a version label is a short text, got {label!r}")
    return label


def check_secrecy(
    pairs: Metadata, targets: Iterable[str], connection: Connection
) -> None:
    """Refuse to send a secret in the clear to where others may read it.

    Raises:
        InvalidRequest: it would be; the secret is not repeated.
    """
    if connection.tls or connection.insecure_token:
        return
    secrets = [name for name, _ in pairs if _SECRET.search(name)]
    remote = [target for target in targets if not is_local(target)]
    if secrets and remote:
        raise InvalidRequest(
            f"the metadata {secrets[0]!r} would go to {remote[0]} without encryption: "
            "use TLS (tls=Tls(), --tls), or say that nobody can listen there "
            "(insecure_token=True, --insecure-token)"
        )


def checked_metadata(pairs: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    """The pairs as gRPC takes them, names in lower case.

    Raises:
        InvalidRequest: a name or value that HTTP/2 can't carry. The value, which may
            be a secret, is not repeated.
    """
    checked = []
    for pair in pairs:
        if len(pair) != 2 or not isinstance(pair[0], str):
            raise InvalidRequest("call metadata must be (name, value) pairs of str")
        name, value = pair[0].lower(), pair[1]
        if not _METADATA_KEY.fullmatch(name) or name.startswith("grpc-"):
            raise InvalidRequest(f"call metadata can't have the name {name!r}")
        binary = name.endswith("-bin")
        if not isinstance(value, bytes if binary else str):
            kind = "bytes" if binary else "str"
            raise InvalidRequest(
                f"call metadata {name!r} must be {kind}, got {type(value).__name__}"
            )
        if isinstance(value, str) and not (value.isascii() and value.isprintable()):
            raise InvalidRequest(
                f"call metadata {name!r} must be printable ASCII on one line "
                "(a trailing line break from a file, perhaps?)"
            )
        checked.append((name, value))
    return tuple(checked)


def _pem(source: Pem | None, what: str) -> bytes | None:
    if source is None:
        return None
    if isinstance(source, str) and source.lstrip().startswith("-----BEGIN"):
        source = source.encode()
    if not isinstance(source, bytes):
        path = os.fspath(source)
        try:
            source = read_regular_file(path, limit=_PEM_LIMIT)
        except OSError as error:
            raise InvalidRequest(
                f"the TLS {what} can't be read: {error.strerror}: {path!r}"
            ) from None
    if b"-----BEGIN" not in source:
        raise InvalidRequest(f"the TLS {what} must be PEM text (-----BEGIN …)")
    return source


def _system_roots() -> bytes | None:
    """The certificates that this machine trusts; None leaves it to gRPC.

    gRPC's Python package brings a list of its own and doesn't look at the system's,
    where an organisation's own authority is.
    """
    if "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH" in os.environ:
        return None
    default = ssl.get_default_verify_paths().cafile
    for path in (default, *_ROOTS_FILES):
        if path and os.path.isfile(path):
            return Path(path).read_bytes()
    return None

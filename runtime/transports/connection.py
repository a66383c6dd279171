"""How to reach servers, as small frozen objects: ``Connection`` holds the others.

Nothing here imports grpc.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

from ..certificates import why_unusable
from ..codec import EXPANSION_LIMIT
from ..contract import MESSAGE_LIMIT
from ..errors import InvalidRequest

Metadata = Iterable[tuple[str, str | bytes]]
"""Pairs sent with every call; names ending in ``-bin`` have bytes as values."""

MetadataSource = Metadata | Callable[[], Metadata | Awaitable[Metadata]]
"""Pairs, or a function called before each attempt (for bearer tokens that expire).

Only the asyncio transport takes a function that returns an awaitable.
"""

Pem = bytes | str | Path
"""PEM text as bytes or str, or the path of a file that holds it."""

SCHEMES = ("unix:", "unix-abstract:", "vsock:", "dns:", "ipv4:", "ipv6:", "xds:")
"""How gRPC addresses begin that aren't HOST:PORT."""

_METADATA_KEY = re.compile(r"[0-9a-z_.-]+")
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:/\s]+):([0-9]{1,5})")
_SCHEME = re.compile(rf"({'|'.join(SCHEMES)})\S+")


def _positive(what: str, value: float) -> None:
    if not value > 0:
        raise InvalidRequest(f"the {what} must be above 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Encrypt, and check who answers.

    Attributes:
        roots: certificates to trust; None trusts gRPC's own list.
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

    def load(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """PEM bytes of roots, private key and chain.

        Raises:
            InvalidRequest: a file can't be read or holds no PEM, or key and
                certificate don't belong together.
        """
        roots = _pem(self.roots, "roots")
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
        _positive("keepalive interval", self.interval)
        _positive("keepalive timeout", self.timeout)


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
        for name in ("connect", "recover", "first_wait", "longest_wait", "busy_rounds"):
            if not getattr(self, name) >= 0:
                raise InvalidRequest(
                    f"retry {name} must be 0 or more, got {getattr(self, name)}"
                )


@dataclass(frozen=True, kw_only=True)
class Ejection:
    """When a replica is left out: after a failure, for ``first`` seconds.

    Each failure in a row doubles it, up to ``longest``. Then one call tries it again.
    """

    first: float = 0.5
    longest: float = 10.0

    def __post_init__(self) -> None:
        _positive("ejection first", self.first)
        _positive("ejection longest", self.longest)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes in bytes above which nothing is sent or allocated.

    ``message`` is for requests (protobuf itself ends at 2 GiB);
    ``expansion`` is what repeated trailing values of one reply may expand to.
    """

    message: int = MESSAGE_LIMIT
    expansion: int = EXPANSION_LIMIT

    def __post_init__(self) -> None:
        if not 0 < self.message <= MESSAGE_LIMIT:
            raise InvalidRequest(
                f"the message limit must be 1 to {MESSAGE_LIMIT}, got {self.message}"
            )
        _positive("expansion limit", self.expansion)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """All options of a connection; what ``GrpcTransport`` takes as keywords.

    Attributes:
        tls: encrypt; None sends in the clear.
        metadata: pairs for every call, or a function that makes them. Never logged.
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
            _positive("attempt_timeout", self.attempt_timeout)
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
    attempt_timeout: float | None
    retry: Retry
    ejection: Ejection
    keepalive: Keepalive | None
    limits: Limits
    compression: Literal["gzip", "deflate"] | None
    user_agent: str
    channel_options: Sequence[tuple[str, str | int]]


def checked_targets(targets: str | Iterable[str]) -> tuple[str, ...]:
    """The addresses as a tuple, each once.

    Raises:
        InvalidRequest: none, or one that is not ``HOST:PORT``, ``unix:PATH`` or
            another of gRPC's own schemes.
    """
    addresses = (targets,) if isinstance(targets, str) else tuple(targets)
    if not addresses:
        raise InvalidRequest("no server address was given: write HOST:PORT")
    for target in addresses:
        match = isinstance(target, str) and _HOST_PORT.fullmatch(target)
        if match and 0 < int(match.group(2)) < 65536:
            continue
        if isinstance(target, str) and _SCHEME.fullmatch(target):
            continue
        raise InvalidRequest(
            f"{target!r} is not a server's address: write HOST:PORT, unix:PATH or "
            "dns:///NAME:PORT"
        )
    return tuple(dict.fromkeys(addresses))


def checked_label(label: str) -> str:
    """The version label; "" for none.

    Raises:
        InvalidRequest: it can't be one.
    """
    if not isinstance(label, str) or (label and not label.isprintable()):
        raise InvalidRequest(f"a version label is a short text, got {label!r}")
    return label


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
        try:
            source = Path(source).read_bytes()
        except OSError as error:
            raise InvalidRequest(
                f"the TLS {what} can't be read: {error.strerror}: {error.filename!r}"
            ) from None
    if b"-----BEGIN" not in source:
        raise InvalidRequest(f"the TLS {what} holds no PEM (-----BEGIN …)")
    return source

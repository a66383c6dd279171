"""What a failed attempt means: whether to try again, and the sentence for the user.

Statuses are those of TensorFlow Serving and of gRPC itself; codes go by name, so that
nothing here imports grpc.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Any

from ..codec import ModelSpec
from ..errors import (
    IncompatibleModel,
    InvalidRequest,
    MalformedReply,
    OptserveError,
    ServerError,
    Unavailable,
    VersionGone,
)
from ..printable import sentence


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended: a gRPC status name, its details, the reply's bytes."""

    code: str
    details: str = ""
    data: bytes = b""
    result: Any = None
    """What ``data`` says, once it was read and checked."""


class Failure(enum.Enum):
    """Kinds of failure, by what is to be done."""

    DOWN = "leave the replica out, try elsewhere"
    BUSY = "try elsewhere, then wait"
    EXHAUSTED = "try elsewhere, then wait a few times"
    MISSING = "the model or version is not there: try elsewhere"
    UNTRUSTED = "TLS fails: try elsewhere, waiting won't help"
    GARBLED = "the reply makes no sense: leave the replica out, try elsewhere"
    ODD = "it serves another model than the others: leave it out, try elsewhere"
    REFUSED = "the same everywhere: report it"


LEAVE_OUT = frozenset({Failure.DOWN, Failure.GARBLED, Failure.UNTRUSTED, Failure.ODD})
"""Failures that say something bad of the replica."""

_OUR_LIMIT = re.compile(
    r"CLIENT: Received message larger|^Decompressed message|"
    r"Stream removed \(received metadata size exceeds",
    re.I,
)
_METADATA_TOO_LARGE = re.compile(r"^received metadata size exceeds", re.I)
_TOO_LARGE = re.compile(
    rf"(sent|received)\b.*\bmessage larger than max|{_METADATA_TOO_LARGE.pattern}", re.I
)
_BROKEN_STREAM = re.compile(r"RST_STREAM|stream removed|GOAWAY", re.I)
_TLS = re.compile(r"certificate|SSL_ERROR_SSL|peer name|verification check", re.I)
_QUEUE = re.compile(r"\bqueue\b|batch", re.I)
_CONNECT_PREFIX = re.compile(r"^.*last error: [A-Z_]+: (\S+: )?")
_NO_LABEL = re.compile(r"Unrecognized servable version label", re.I)
_NO_SIGNATURE = re.compile(r'Serving signature (?:key|name) "(.*)" not found', re.I)


MALFORMED, ODD = "MALFORMED", "ODD"
"""Codes of our own, for replies that came and are not used."""


def classify(outcome: Outcome) -> Failure | None:
    """The kind of a failed attempt, by its status; None for a good one."""
    code, details = outcome.code, outcome.details
    if code == "OK":
        return None
    if code == MALFORMED or _OUR_LIMIT.search(details):
        return Failure.GARBLED
    if code == ODD:
        return Failure.ODD
    if code == "UNAVAILABLE":
        if _TLS.search(details):
            return Failure.UNTRUSTED
        return Failure.BUSY if _QUEUE.search(details) else Failure.DOWN
    if code in ("ABORTED", "DEADLINE_EXCEEDED", "CANCELLED"):
        # Not our deadline and not our cancelling: the transport asks here only then.
        return Failure.DOWN
    if code == "RESOURCE_EXHAUSTED" and not _TOO_LARGE.search(details):
        return Failure.EXHAUSTED
    if code in ("INTERNAL", "UNKNOWN") and _BROKEN_STREAM.search(details):
        return Failure.DOWN
    if code == "NOT_FOUND" or _NO_LABEL.search(details):
        return Failure.MISSING
    return Failure.REFUSED


def error_for(
    failure: Failure, outcome: Outcome, target: str, model: ModelSpec, *, others: int
) -> OptserveError:
    """The exception for an attempt on ``target`` after which nothing more is tried.

    Args:
        failure: the attempt's kind.
        outcome: its status.
        target: the address that it went to.
        model: what was asked for.
        others: how many other targets there are (they have failed as well).
    """
    code, details = outcome.code, one_line(outcome.details)
    if failure is Failure.GARBLED:
        return MalformedReply(
            f"{target} sent a reply that makes no sense ({details}): "
            "check that it is a TensorFlow Serving server"
        )
    if failure is Failure.ODD:
        return Unavailable(
            f"{target} serves another model than the other servers under the same "
            "version number, and none of those answers: serve one export everywhere"
        )
    if failure is Failure.UNTRUSTED:
        return Unavailable(
            f"no secure connection to {target}: {connect_failure(details)}; check that "
            "the server speaks TLS, that `roots` signed its certificate, and that "
            "`server_name` is in it"
        )
    if failure in (Failure.BUSY, Failure.EXHAUSTED):
        return Unavailable(
            f"{_where(target, others)} too busy ({code}: {details}): try again later, "
            "or send fewer requests at once"
        )
    if failure is Failure.DOWN:
        reason = connect_failure(details) or code
        advice = "check the address, or start a server with `optserve serve OUT`"
        if "Socket closed" in reason:  # all that a client hears of a failed handshake
            advice = (
                "if it is up, it may want TLS (--tls, or `tls`), or a client's "
                "certificate with it (--tls-cert, or `certificate_chain`)"
            )
        return Unavailable(
            f"no server answers at {_places(target, others)} ({reason}): {advice}"
        )
    if failure is Failure.MISSING:
        return _missing(details, target, model)
    return _refused(code, details, target, model)


def _missing(details: str, target: str, model: ModelSpec) -> OptserveError:
    if model.version is not None:
        return VersionGone(
            f"version {model.version} of model {model.name!r} is no longer served "
            f"at {target}",
            "NOT_FOUND",
        )
    if model.version_label:
        return ServerError(
            f"{target} serves no version labelled {model.version_label!r} of a model "
            f"{model.name!r} ({details}): check both names, and version_labels in the "
            "server's model config",
            "NOT_FOUND",
        )
    return ServerError(
        f"{target} serves no model named {model.name!r} ({details}): give the name "
        "that the server was started with",
        "NOT_FOUND",
    )


def _refused(code: str, details: str, target: str, model: ModelSpec) -> OptserveError:
    if "Failed to create channel to" in details:
        return InvalidRequest(
            f"{target} is not a server's address: write HOST:PORT, unix:PATH (at most "
            "107 bytes) or dns:///NAME:PORT"
        )
    if _METADATA_TOO_LARGE.search(details):
        return InvalidRequest(
            f"the call metadata is larger than {target} takes ({details}): send less"
        )
    if code == "RESOURCE_EXHAUSTED":  # a message above a limit
        side = "request" if _is_request(details) else "reply"
        return InvalidRequest(
            f"the {side} is larger than a limit between us and {target} ({details}): "
            "send fewer rows or a shorter cache, or raise the limit there "
            "(grpc.max_receive_message_length)"
        )
    if "XLA compilation disabled" in details:
        return ServerError(
            f"the model at {target} needs XLA, which the server has switched off: "
            "start it with --xla_cpu_compilation_enabled=true, or export the model "
            "with --framework tf --compiler none",
            code,
        )
    if match := _NO_SIGNATURE.search(details):
        return IncompatibleModel(
            f"model {model.name!r} at {target} has no signature {match.group(1)!r}: "
            "serve one made with `optserve export`"
        )
    if code == "UNIMPLEMENTED":
        return IncompatibleModel(
            f"{target} speaks gRPC but is not a TensorFlow Serving server "
            f"({details or 'method not found'}): check the address"
        )
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return ServerError(
            f"{target} refuses the caller ({code}: {details}): check the call "
            "metadata (bearer token) or the client certificate",
            code,
        )
    return ServerError(f"{target} refused the call ({code}: {details})", code)


def _is_request(details: str) -> bool:
    """Whether a limit hit the request and not the reply.

    gRPC names the end at fault in newer releases only; our end has no limits.
    """
    return ("received" in details.lower()) != ("CLIENT" in details)


def _where(target: str, others: int) -> str:
    return f"all {others + 1} servers are" if others else f"{target} is"


def _places(target: str, others: int) -> str:
    if not others:
        return target
    return f"{target} or the {others} other address{'es' * (others > 1)}"


def one_line(details: str) -> str:
    """A status message on one line, printable, and of a length that can be shown."""
    line = sentence(details)
    return line if len(line) <= 300 else line[:297] + "…"


def connect_failure(details: str) -> str:
    """Why connecting failed, without gRPC's words around it."""
    return _CONNECT_PREFIX.sub("", details)

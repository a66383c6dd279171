"""``ServingError``: a gRPC status code and the message that goes with it."""

from __future__ import annotations

import grpc

_DETAILS_BYTES = 1500
"""Of a status message. It travels as an HTTP/2 header, three bytes for each that isn't
ASCII, and a client takes 8 KiB of headers: a longer one would hide the status itself.
"""

_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class ServingError(Exception):
    """A call refused, with the status code and details that the caller gets.

    Details may repeat what was asked, or a path, whatever characters it has.
    """

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        details = _as_header(details)
        super().__init__(details)
        self.code = code
        self.details = details

    @property
    def number(self) -> int:
        """The canonical number of the code, the same in gRPC and TensorFlow."""
        return self.code.value[0]


def _as_header(details: str) -> str:
    encoded = details.encode(errors="backslashreplace")  # a path's bytes, perhaps
    if len(encoded) <= _DETAILS_BYTES:
        return encoded.decode()
    return encoded[:_DETAILS_BYTES].decode(errors="ignore") + "…"


def invalid_argument(details: str) -> ServingError:
    """The caller's request is wrong."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, details)


def failed_precondition(details: str) -> ServingError:
    """The request doesn't fit the state of the model."""
    return ServingError(grpc.StatusCode.FAILED_PRECONDITION, details)


def not_found(details: str) -> ServingError:
    """No such model or version."""
    return ServingError(grpc.StatusCode.NOT_FOUND, details)


def internal(details: str) -> ServingError:
    """Something of the server or the model is wrong."""
    return ServingError(grpc.StatusCode.INTERNAL, details)


def stopping() -> ServingError:
    """The server ends, and what it was preparing with it."""
    return ServingError(grpc.StatusCode.CANCELLED, "the server is stopping")


def as_serving_error(error: Exception) -> ServingError:
    """The refusal that stands for any exception; ours as they are."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, MemoryError):
        return ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED, "out of memory")
    text = " ".join(str(error).split())
    return internal(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def from_tensorflow(error: Exception) -> ServingError:
    """The refusal that matches a ``tf.errors.OpError``; INTERNAL for any other."""
    code = _BY_NUMBER.get(getattr(error, "error_code", None) or -1)
    if code is None:
        return internal(" ".join(str(error).split()))
    return ServingError(code, str(getattr(error, "message", error)))

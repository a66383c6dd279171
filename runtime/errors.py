"""What can go wrong, as one tree.

    OptserveError
    ├── InvalidRequest          the caller's arguments; nothing was sent
    │   └── PromptTooLong       prompt + new tokens exceed the model's positions
    ├── IncompatibleModel       wrong model, contract version, missing signature
    ├── MalformedReply          a reply that does not decode, or of wrong shape
    │   └── MalformedMessage    bytes that aren't the message expected (any side)
    ├── Unavailable             no server answered (after retries)
    ├── DeadlineExceeded        the generation's deadline passed
    ├── Cancelled               the caller cancelled
    └── ServerError             any other refusal; `code` is the gRPC status name
        └── VersionGone         the pinned model version is no longer served

Every message is one sentence that says what was expected, what came, what to do.
"""

from __future__ import annotations

from .printable import printable


class OptserveError(Exception):
    """Base of every error that this package raises on purpose.

    Its message may quote a server or a file, so what would act on a terminal is shown
    as an escape.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class InvalidRequest(OptserveError, ValueError):
    """The caller's arguments are wrong; nothing was sent."""


class PromptTooLong(InvalidRequest):
    """The prompt and the tokens asked for exceed the model's positions."""


class IncompatibleModel(OptserveError):
    """The server's model is not one that this client can drive."""


class MalformedReply(OptserveError):
    """A reply does not decode, or its shapes and values are not those asked for."""


class MalformedMessage(MalformedReply, ValueError):
    """Bytes that are not the message expected, request or reply.

    ``tensor`` names the tensor whose dtype, shape and values don't fit together; it is
    None if the message doesn't even parse.
    """

    def __init__(self, message: str, tensor: str | None = None) -> None:
        super().__init__(message)
        self.tensor = tensor


class Unavailable(OptserveError):
    """No server answered, retries included."""


class DeadlineExceeded(OptserveError, TimeoutError):
    """The deadline passed before the work was done."""


class Cancelled(OptserveError):
    """The caller cancelled the work."""


class ServerError(OptserveError):
    """The server refused a call. ``code`` is the gRPC status name."""

    def __init__(self, message: str, code: str = "UNKNOWN") -> None:
        super().__init__(message)
        self.code = code


class VersionGone(ServerError):
    """The pinned model version is no longer served."""

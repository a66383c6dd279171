"""Errors as OpenAI's clients expect them: ``{"error": {message, type, param, code}}``.

The status says whether it is worth trying again: 429 and 503 are, with ``Retry-After``;
400, 401, 404 and 413 are not. What a message quotes of a server is printable already
(``errors.py``); secrets and prompts are in none.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any

from starlette.responses import JSONResponse

from ..errors import (
    Cancelled,
    DeadlineExceeded,
    IncompatibleModel,
    InvalidRequest,
    MalformedReply,
    OptserveError,
    PromptTooLong,
    ServerError,
    Unavailable,
)

_log = logging.getLogger("optserve.gateway")
RETRY_AFTER = "1"
"""Seconds after which a full or absent server is worth another try."""


class ApiError(Exception):
    """An answer other than 200.

    Args:
        status: of HTTP.
        message: one sentence that says what to do.
        kind: OpenAI's ``type``.
        param: the field of the body that is wrong.
        code: a word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.kind, self.param, self.code = kind, param, code

    def body(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """As a whole answer."""
        headers = {"Retry-After": RETRY_AFTER} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def bad_field(param: str, message: str) -> ApiError:
    """400 for one field."""
    return ApiError(400, message, param=param)


_STATUS: tuple[tuple[type[OptserveError], int, str, str | None], ...] = (
    (PromptTooLong, 400, "invalid_request_error", "context_length_exceeded"),
    (InvalidRequest, 400, "invalid_request_error", None),
    (IncompatibleModel, 501, "server_error", "incompatible_model"),
    (Unavailable, 503, "server_error", "unavailable"),
    (DeadlineExceeded, 504, "server_error", "timeout"),
    (Cancelled, 503, "server_error", "shutting_down"),
    (MalformedReply, 502, "server_error", "bad_reply"),
    (ServerError, 502, "server_error", None),
)


def as_api_error(error: Exception) -> ApiError:
    """What to answer when a request failed with this error."""
    if isinstance(error, ApiError):
        return error
    for kind, status, name, code in _STATUS:
        if isinstance(error, kind):
            return ApiError(status, str(error), kind=name, code=code)
    # Without the error's own words, which may be the caller's.
    frames = "".join(traceback.format_tb(error.__traceback__))
    _log.error("a request failed: %s\n%s", type(error).__name__, frames)
    return ApiError(
        500, "the gateway failed: its log says how", kind="server_error", code=None
    )

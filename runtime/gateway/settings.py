"""What whoever runs a gateway may set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..option_checks import check_seconds, check_whole

MOST_BODY = 64 << 20


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """Limits and files of a gateway.

    Attributes:
        keys_file: JSON file of the API keys (``keys.py``); None lets everybody in.
        chat_template: a Jinja template that makes one text of a conversation.
        max_active: most generations under way at a time, of all models.
        max_queue: most generations that wait for that; further ones get 429.
        body_limit: bytes of a request's body.
        body_seconds: how long a body may take to arrive.
        request_seconds: how long one request may take, waiting included.
        allow_origins: web pages of these origins may call (CORS); none by default.
    """

    keys_file: Path | None = None
    chat_template: str | None = None
    max_active: int = 64
    max_queue: int = 256
    body_limit: int = 4 << 20
    body_seconds: float = 30.0
    request_seconds: float = 600.0
    allow_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_whole("max_active", self.max_active, 1, 4096)
        check_whole("max_queue", self.max_queue, 0, 1 << 20)
        check_whole("body_limit", self.body_limit, 1024, MOST_BODY)
        check_seconds("body_seconds", self.body_seconds)
        check_seconds("request_seconds", self.request_seconds)

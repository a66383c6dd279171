"""Deadlines: times on ``time.monotonic``, None where the caller waits for ever."""

from __future__ import annotations

import time

from ..option_checks import check_seconds


def deadline_in(seconds: float | None) -> float | None:
    """The deadline in so many seconds."""
    return None if seconds is None else time.monotonic() + seconds


def time_left(deadline: float | None) -> float | None:
    """Seconds until a deadline, at least 0."""
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)


def check_waits(connect_timeout: float | None, wait: float | None) -> None:
    """Refuse times that a client can't wait for; None is always all right."""
    for name, seconds in (("connect_timeout", connect_timeout), ("wait", wait)):
        if seconds is not None:
            check_seconds(name, seconds, zero=True)

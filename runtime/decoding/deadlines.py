"""Deadlines: times on ``time.monotonic``, None where the caller waits for ever."""

from __future__ import annotations

import time


def deadline_in(seconds: float | None) -> float | None:
    """The deadline in so many seconds."""
    return None if seconds is None else time.monotonic() + seconds


def time_left(deadline: float | None) -> float | None:
    """Seconds until a deadline, at least 0."""
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)

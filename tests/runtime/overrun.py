"""By how much a deadline is missed, however busy the machine is.

Of some tries the first that is within the slack counts: what is late by itself is late
each time, while what else runs on the machine delays one or another.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest
from optserve.runtime import DeadlineExceeded

SLACK = 0.05
"""Seconds that a deadline may be missed by."""
_TRIES = 5


def overrun(work: Callable[[], object], timeout: float) -> float:
    """Seconds between the deadline and the error."""
    late = 0.0
    for _ in range(_TRIES):
        begin = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            work()
        late = time.monotonic() - begin - timeout
        if abs(late) < SLACK:
            break
    return late


async def overrun_async(
    work: Callable[[], Awaitable[object]], timeout: float, match: str | None = None
) -> float:
    """The same of what is awaited; the error's message has to match."""
    late = 0.0
    for _ in range(_TRIES):
        begin = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=match):
            await work()
        late = time.monotonic() - begin - timeout
        if abs(late) < SLACK:
            break
    return late

"""One deadline for a whole generation, kept to the hundredth of a second over gRPC."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable

import pytest
from optserve.runtime import AsyncClient, Client, DeadlineExceeded

from tests.runtime.numpy_model import NumpyTransport
from tests.runtime.numpy_server import serving

SLACK = 0.05  # seconds that a deadline may be missed by
OPTIONS = {"max_new_tokens": 20, "stop_token_ids": []}


def overrun(work: Callable[[], object], timeout: float) -> float:
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        work()
    return time.monotonic() - begin - timeout


@pytest.mark.parametrize("timeout", [0.2, 0.7])
@pytest.mark.parametrize("steps", [0, 5])
def test_a_server_that_stalls_is_left_at_the_deadline(timeout, steps, caplog):
    """At once, or in the middle: what earlier calls took counts as well."""
    stalled, count = threading.Event(), 0
    transport = NumpyTransport()

    def stall(call) -> None:
        nonlocal count
        if call.signature in ("prefill", "decode") and timeout_is_on.is_set():
            count += 1
            time.sleep(0.01)
            if count > steps:
                stalled.wait(10)

    transport.before = stall
    timeout_is_on = threading.Event()

    async def alone(target: str) -> float:
        async with AsyncClient(target) as client:
            begin = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await client.generate([[2, 5], [2, 6]], timeout=timeout, **OPTIONS)
            seconds = time.monotonic() - begin - timeout
        gc.collect()  # an exception that nobody has looked at is logged now
        return seconds

    late = []
    with serving(transport) as target, Client(target) as client:
        timeout_is_on.set()
        late.append(
            overrun(
                lambda: client.generate([[2, 5]], timeout=timeout, **OPTIONS), timeout
            )
        )
        count = 0
        stream = client.stream([2, 5], timeout=timeout, **OPTIONS)
        late.append(overrun(lambda: list(stream), timeout))
        count = 0
        late.append(asyncio.run(alone(target)))
        stalled.set()
    assert not caplog.records
    assert all(-SLACK <= seconds <= SLACK for seconds in late), late

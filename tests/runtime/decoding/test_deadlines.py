"""One deadline for a whole generation, kept to the hundredth of a second over gRPC."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest
from optserve.runtime import AsyncClient, Client

from tests.runtime.numpy_model import NumpyTransport
from tests.runtime.numpy_server import serving
from tests.runtime.overrun import SLACK, overrun

OPTIONS = {"max_new_tokens": 20, "stop_token_ids": []}


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

    def start_over() -> None:
        nonlocal count
        count = 0

    transport.before = stall
    timeout_is_on = threading.Event()

    def generate() -> None:
        start_over()
        client.generate([[2, 5]], timeout=timeout, **OPTIONS)

    def stream() -> None:
        start_over()
        list(client.stream([2, 5], timeout=timeout, **OPTIONS))

    async def beside_another() -> float:
        async with AsyncClient(target) as client:
            loop = asyncio.get_running_loop()

            def both() -> None:
                start_over()
                prompts = [[2, 5], [2, 6]]
                work = client.generate(prompts, timeout=timeout, **OPTIONS)
                asyncio.run_coroutine_threadsafe(work, loop).result()

            seconds = await asyncio.to_thread(overrun, both, timeout)
        gc.collect()  # an exception that nobody has looked at is logged now
        return seconds

    with serving(transport) as target, Client(target) as client:
        timeout_is_on.set()
        late = [overrun(generate, timeout), overrun(stream, timeout)]
        late.append(asyncio.run(beside_another()))
        stalled.set()
    assert not caplog.records
    assert all(-SLACK <= seconds <= SLACK for seconds in late), late

"""Memory goes back when large calls have ended, and nothing keeps a refused request."""

from __future__ import annotations

import gc
import threading
import tracemalloc

import grpc
import numpy as np
import pytest
from optserve.runtime.server import memory_watch
from optserve.runtime.server.aligned_buffers import AlignedBuffers
from optserve.runtime.server.grpc_front import Limits, Workers
from optserve.runtime.server.memory_watch import MemoryWatch
from optserve.runtime.server.serving_error import invalid_argument

from .test_slow_callers import METHOD, serving

MB = 1 << 20


@pytest.mark.parametrize("error", [invalid_argument("no"), ValueError("no")])
def test_a_refused_request_is_let_go_without_the_garbage_collector(error):
    def refuse(data: bytes) -> bytes:
        copy = bytearray(data)
        try:
            raise KeyError(len(copy))
        except KeyError:
            raise error.with_traceback(None) from None

    options = [("grpc.max_send_message_length", -1)]
    with (
        serving(refuse, Limits()) as target,
        grpc.insecure_channel(target, options) as channel,
    ):
        call = channel.unary_unary(METHOD)
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(6):
                with pytest.raises(grpc.RpcError):
                    call(bytes(16 * MB), timeout=30)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
    assert held < 3 * 16 * MB  # the last one's own, at most


class Watched:
    """A process whose size and messages the test decides."""

    def __init__(self, monkeypatch) -> None:
        self.size, self.released, self.in_use = 100 * MB, 0, 0
        monkeypatch.setattr(memory_watch, "resident_bytes", lambda: self.size)
        monkeypatch.setattr(memory_watch, "release_freed_memory", self.release)
        self.workers = Workers(Limits(threads=1))
        self.watch = MemoryWatch(self.workers, threading.Event())

    def release(self) -> None:
        self.released += 1
        self.size = max(100 * MB, self.in_use)


def test_what_grew_is_released_after_two_quiet_looks(monkeypatch):
    process = Watched(monkeypatch)
    for _ in range(3):
        process.watch.look()
    assert process.released == 1  # what loading has freed
    process.size = 900 * MB
    process.workers.submit(bytes.upper, bytes(8 * MB)).result(10)
    process.watch.look()  # there was a large message: the next may need the memory
    process.watch.look()
    assert process.released == 1
    process.watch.look()
    assert process.released == 2
    for _ in range(5):
        process.watch.look()
    assert process.released == 2
    process.workers.close()


def test_a_look_while_a_message_arrives_does_not_hide_what_it_leaves(monkeypatch):
    process = Watched(monkeypatch)
    for _ in range(3):
        process.watch.look()
    process.in_use = process.size = 900 * MB  # half a message, not yet a call
    process.watch.look()
    assert process.size == 900 * MB
    process.workers.submit(bytes.upper, bytes(8 * MB)).result(10)
    process.in_use = 0
    for _ in range(3):
        process.watch.look()
    assert process.size == 100 * MB
    process.workers.close()


def test_unused_buffers_are_dropped():
    buffers = AlignedBuffers()
    buffers.aligned(np.zeros(MB, np.uint8)[1:])
    assert buffers._free
    buffers.clear()
    assert not buffers._free

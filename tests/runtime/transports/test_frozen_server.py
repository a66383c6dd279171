"""A machine that freezes: its kernel still takes what we send, but nobody answers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from optserve.runtime.transports.base import Call
from optserve.runtime.transports.connection import Keepalive, Retry
from optserve.runtime.transports.grpc_sync import GrpcTransport

CALL = Call("decode", {"x": np.ones((1, 2), np.float32)})
SERVER = """
import sys, grpc, numpy as np
from concurrent.futures import ThreadPoolExecutor
from optserve.runtime import codec
from optserve.runtime.transports.steps import PREDICT

reply = codec.encode_predict_response(codec.ModelSpec("opt", "", 1), {"y": np.ones(1)})
handler = grpc.unary_unary_rpc_method_handler(lambda data, context: reply)
service, method = PREDICT[1:].split("/")
server = grpc.server(ThreadPoolExecutor(4))
server.add_generic_rpc_handlers(
    (grpc.method_handlers_generic_handler(service, {method: handler}),)
)
server.add_insecure_port(sys.argv[1])
server.start()
server.wait_for_termination()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def freeze(process: subprocess.Popen) -> None:
    """Stop all its threads; the signal alone is sent before they are."""
    process.send_signal(signal.SIGSTOP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)


@pytest.fixture
def two():
    targets = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    started = [
        subprocess.Popen([sys.executable, "-c", SERVER, target]) for target in targets
    ]
    yield dict(zip(targets, started, strict=True))
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def interruptible():
    """Python's own handler, which a shell's background jobs start without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_a_frozen_server(two, interruptible) -> None:
    with GrpcTransport(
        list(two),
        model="opt",
        keepalive=Keepalive(interval=1, timeout=2),
        retry=Retry(connect=60),
    ) as transport:
        seen = set()
        while len(seen) < 2:  # both are up and connected
            seen.add(transport.call(CALL, timeout=60).target)
            time.sleep(0.01)  # both processors are theirs
        first, second = two
        freeze(two[first])
        start = time.monotonic()
        replies = [transport.call(CALL, timeout=30) for _ in range(2)]
        assert {reply.target for reply in replies} == {second}
        assert sum(reply.retries for reply in replies) == 1
        assert time.monotonic() - start < 15

        freeze(two[second])
        start = time.monotonic()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            transport.call(CALL, timeout=30)
        assert time.monotonic() - start < 5

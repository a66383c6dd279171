"""A gateway as a process: what SIGTERM ends, and what it lets end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from optserve.runtime.gateway.server import listen

PROGRAM = """
from optserve.runtime import AsyncClient
from optserve.runtime.gateway import create_app
from optserve.runtime.gateway.server import listen, make_server, run_server
from tests.runtime.numpy_model import AsyncNumpy

listener = listen("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
client = AsyncClient(transport=AsyncNumpy(0.2, generate=(1, 4)))
run_server(make_server(create_app({"opt": client})), listener)
"""


@pytest.fixture
def gateway():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process, f"http://127.0.0.1:{int(process.stdout.readline())}"
    process.kill()
    process.wait()


def test_events_are_sent_at_once():
    with (
        listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_sigterm_lets_streams_end_and_takes_no_more(gateway):
    process, address = gateway
    body = {"prompt": [2, 5], "max_tokens": 12, "stream": True, "ignore_eos": True}
    body["return_token_ids"] = True
    with httpx.stream(
        "POST", f"{address}/v1/completions", json=body, timeout=60
    ) as answer:
        lines = (line for line in answer.iter_lines() if line)
        seen = [next(lines)]
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")
        seen += lines
    assert seen[-1] == "data: [DONE]"
    events = [json.loads(line[6:]) for line in seen[:-1]]
    tokens = [t for event in events for t in event["choices"][0]["token_ids"]]
    assert len(tokens) == 12
    assert process.wait(timeout=30) == 0

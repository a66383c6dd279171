"""``optserve gateway --model``: its server ends with it, and it with its server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

import httpx
import pytest
from optserve.runtime import Client

from tests.export.exports import exported
from tests.runtime.numpy_model import NumpyTransport


@pytest.fixture
def start(start_command):
    """Starts a gateway of a small export, with these options."""
    model = str(exported("pre_ln").parent)
    return partial(start_command, "gateway", "--model", model)


def child(process: subprocess.Popen) -> int:
    """The process that it has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 30
    while not (words := children.read_text().split()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    return int(words[0])


def has_ended(pid: int, seconds: float) -> bool:
    """Whether a process that nobody here waits for ends in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_server_that_dies_ends_the_command_with_a_sentence(start):
    process = start("--port", "0", "--name", "mine")
    base = process.stdout.readline().removeprefix("listening at ").strip()
    server = child(process)
    body = {"model": "mine", "prompt": [2, 5, 9], "max_tokens": 4, "temperature": 0}
    body |= {"return_token_ids": True, "ignore_eos": True}
    answer = httpx.post(f"{base}/completions", json=body, timeout=60).json()
    with Client(transport=NumpyTransport()) as client:  # the same checkpoint
        options = {"max_new_tokens": 4, "stop_token_ids": []}
        (expected,) = client.generate([[2, 5, 9]], **options)
    assert answer["choices"][0]["token_ids"] == expected.tokens
    os.kill(server, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("optserve: the model's server was ended")
    assert "Traceback" not in errors


def test_nothing_stays_of_a_gateway_that_is_killed_while_it_loads(start):
    process = start("--port", "0")
    server = child(process)
    process.kill()
    assert has_ended(server, 60)


def test_what_is_wrong_with_the_port_is_said_before_the_model_is_loaded(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start("--port", str(taken.getsockname()[1]))
        shown, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and not shown
    assert "choose another --port" in errors and errors.count("\n") == 1

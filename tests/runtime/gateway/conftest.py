"""A gateway on a real port, in front of a numpy model, and a client to compare with."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from optserve.runtime import AsyncClient, Client
from optserve.runtime.gateway import GatewaySettings, create_app
from optserve.runtime.gateway.server import listen, make_server
from starlette.applications import Starlette

from tests.runtime.numpy_model import AsyncNumpy, NumpyTransport
from tests.runtime.small_tokenizer import SMALL_TOKENIZER

MODEL = {"generate": (1, 4), "tokenizer": SMALL_TOKENIZER}


@contextmanager
def running(
    settings: GatewaySettings | None = None, *, delay: float = 0.0, **files: Path
) -> Iterator[tuple[str, AsyncNumpy]]:
    """The address of a gateway, and the transport behind it."""
    transport = AsyncNumpy(delay, **MODEL)
    client = AsyncClient(transport=transport)
    with serving(create_app({"opt": client}, settings), **files) as address:
        yield address, transport


@contextmanager
def serving(app: Starlette, **files: Path) -> Iterator[str]:
    """The address of an application that runs in a thread; with ``files`` HTTPS."""
    listener = listen("127.0.0.1", 0)
    server = make_server(app, **files)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        scheme = "https" if files else "http"
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address():
    """A gateway that lets everybody in."""
    with running() as (address, _):
        yield address


@pytest.fixture(scope="module")
def http(address):
    """Calls it."""
    with httpx.Client(base_url=address, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def direct():
    """The same model without a gateway."""
    with Client(transport=NumpyTransport(**MODEL)) as client:
        yield client

"""The server under test: ``OPTSERVE_TARGET``, or an embedded one with a small export.

    OPTSERVE_TARGET=host:8500 OPTSERVE_MODEL=opt pytest -m serving

``OPTSERVE_TARGET`` may name several replicas, separated by commas.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from optserve.runtime import Client

MODEL = os.environ.get("OPTSERVE_MODEL", "opt")


@pytest.fixture(scope="session")
def target() -> Iterator[list[str]]:
    """Addresses of a server that serves one of our exports."""
    if given := os.environ.get("OPTSERVE_TARGET"):
        yield given.split(",")
        return
    pytest.importorskip("tensorflow")
    from optserve.runtime.server import EmbeddedServer

    from tests.export.exports import exported

    export = exported("pre_ln", sessions=3, session_slots=40, generate=(1, 8))
    with EmbeddedServer(export.parent, name=MODEL) as server:
        yield [server.target]


@pytest.fixture(scope="session")
def client(target) -> Iterator[Client]:
    """A client of it."""
    with Client(target, model=MODEL) as client:
        yield client

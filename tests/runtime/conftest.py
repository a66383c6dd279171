"""Transports of both kinds, a server and certificates for them.

The fake server needs the official message classes, hence the late imports.
"""

from __future__ import annotations

import pytest
from optserve.runtime.transports.grpc_sync import GrpcTransport


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request):
    """Makes a transport of either kind; closed at the end."""
    from .fake_tfs import Blocking

    kind = GrpcTransport if request.param == "blocking" else Blocking
    transports = []

    def make(targets, *, model: str = "opt", **options):
        transport = kind(targets, model=model, **options)
        transports.append(transport)
        return transport

    yield make
    for transport in transports:
        transport.__exit__(None, None, None)


@pytest.fixture
def server():
    """A server that doubles what it is given."""
    from .fake_tfs import FakeTfs

    with FakeTfs() as fake:
        yield fake


@pytest.fixture(scope="module")
def authority():
    """Issues certificates."""
    from .fake_tfs import Authority

    return Authority()

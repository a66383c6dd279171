"""Servers shared by the tests of this folder; each is started once."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import grpc
import pytest
from optserve.runtime.server import EmbeddedServer

from . import rec_model


@pytest.fixture(scope="session")
def rec_path(tmp_path_factory):
    base = tmp_path_factory.mktemp("rec")
    rec_model.save(base / "1")
    return base


@pytest.fixture(scope="session")
def typed_server(rec_path):
    with EmbeddedServer(rec_path, name="rec") as server:
        yield server


@pytest.fixture(scope="session")
def content_server(rec_path):
    with EmbeddedServer(rec_path, name="rec", tensor_content=True) as server:
        yield server


@pytest.fixture
def channel(typed_server):
    with grpc.insecure_channel(typed_server.target) as channel:
        yield channel

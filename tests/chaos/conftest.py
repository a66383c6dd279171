"""Three replicas of one model, and what it says in peace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tensorflow")
from tests.export.exports import exported

from .replicas import Replica, Versions


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> Versions:
    export = exported("pre_ln", sessions=4, session_slots=48)
    return Versions(export, tmp_path_factory.mktemp("chaos") / "opt")


@pytest.fixture
def replicas(versions: Versions, tmp_path: Path) -> Iterator[list[Replica]]:
    started = [Replica(versions.out, tmp_path / f"{i}.log") for i in range(3)]
    try:
        for replica in started:
            replica.wait_until_ready()
        yield started
    finally:
        for replica in started:
            replica.thaw()
            replica.kill()

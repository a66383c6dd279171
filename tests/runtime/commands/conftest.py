"""The servers of the server's own tests, for the commands that start or call one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.runtime.server.conftest import rec_path, typed_server  # noqa: F401


@pytest.fixture
def start_command():
    """Starts ``optserve`` with these words; what still runs at the end is killed."""
    processes = []

    def run(*words):
        process = subprocess.Popen(
            [sys.executable, "-m", "optserve.runtime.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()

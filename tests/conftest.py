"""Shared fixtures: the reference checkpoints and small data."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Fixed examples, so that a run passes or fails like the one before it.
settings.register_profile(
    "fixed", derandomize=True, database=None, deadline=None, max_examples=150
)
# `make explore`: new examples each time; failures are kept and tried again first.
settings.register_profile("explore", deadline=None, max_examples=3000)
settings.load_profile("fixed")

DATA = Path(__file__).parent / "data"
SHARED_FOLDER = "OPTSERVE_TESTS_FOLDER"
"""Environment variable with the folder of what the workers of a run share."""


def pytest_configure(config):
    """Make the folder, in the process that starts the workers.

    Ctrl-C reaches the tests and what they start, also in a shell's background job.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if SHARED_FOLDER not in os.environ:
        folder = tempfile.mkdtemp(prefix="optserve-tests-")
        os.environ[SHARED_FOLDER] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        config.add_cleanup(lambda: os.environ.pop(SHARED_FOLDER))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """``tests/data``."""
    return DATA

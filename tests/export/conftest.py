"""What the tests of exporting share."""

from __future__ import annotations

import contextlib

import pytest
from optserve.export import pipeline
from optserve.export.subprocesses import SubprocessFailed
from optserve.export.verify import process
from optserve.runtime.cli import error_sentence

from tests.export.exports import release_served


@pytest.fixture(scope="module", autouse=True)
def nothing_stays_loaded():
    """Each file loads what it needs, so that no worker holds what others left."""
    yield
    release_served()


@pytest.fixture
def in_this_process(monkeypatch):
    """Writes and verifies here, for tests that are not about the processes.

    Each of those takes seconds to import TensorFlow, which is here already.
    """

    class Here(contextlib.nullcontext):
        def __init__(self, prepare=None, *, environment=None, quiet=False):
            super().__init__(self)

        def call(self, function, **arguments):
            try:
                return function(**arguments)
            except Exception as error:
                raise SubprocessFailed(error_sentence(error)) from None

    monkeypatch.setattr(pipeline, "call_in_subprocess", Here().call)
    monkeypatch.setattr(process, "Subprocess", Here)

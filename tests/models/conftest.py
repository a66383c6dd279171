"""Where this folder's tests keep the checkpoints that they share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Where the checkpoints of the named configurations are written."""
    return tmp_path_factory.mktemp("checkpoints")

"""What this folder's tests share: where checkpoints are kept, a quick compiler."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Where the checkpoints of the named configurations are written."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def quick_compiler():
    """Let JAX's XLA optimise little, as ``make test`` does everywhere.

    Compiling is most of the conformance tests' time.
    """
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)

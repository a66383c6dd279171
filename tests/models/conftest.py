"""What this folder's tests share: where checkpoints are kept, a quick compiler."""

from __future__ import annotations

import os

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


@pytest.fixture(scope="module")
def transformers():
    """The transformers package with its TensorFlow classes (<5), which need torch."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    pytest.importorskip("torch")
    package = pytest.importorskip("transformers")
    if not hasattr(package, "TFOPTModel"):
        pytest.skip("this transformers package has no TensorFlow classes")
    package.logging.set_verbosity_error()
    return package

"""Every cell of the conformance table's Flax columns is a test."""

from __future__ import annotations

import pytest

from . import conformance


@pytest.fixture(scope="module", autouse=True)
def quick_compiler():
    """Let XLA optimise little: compiling is most of these tests' time.

    What XLA makes of the same functions with everything on is compared in the tests of
    the golden values, of fine-tuning and of the exports.
    """
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize(("check", "kind"), conformance.cells("flax"))
def test_cell(check, kind, base, tmp_path):
    conformance.run(check, kind, base, tmp_path)

"""Every cell of the conformance table's TensorFlow columns is a test."""

from __future__ import annotations

import pytest
import tensorflow as tf

from . import conformance

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module", autouse=True)
def unoptimized_graphs():
    """TensorFlow's passes over graphs are off, and nothing stays.

    They take a quarter of these checks' time; exports, servers and the fine-tuning
    tests go through them.
    """
    options = tf.config.optimizer
    options.set_experimental_options({"disable_meta_optimizer": True})
    yield
    options.set_experimental_options({"disable_meta_optimizer": False})
    conformance.release()


@pytest.mark.parametrize(("check", "kind"), conformance.cells("tf"))
def test_cell(check, kind, base, tmp_path):
    conformance.run(check, kind, base, tmp_path)

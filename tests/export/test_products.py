"""Products with stored weights, on processors with bfloat16 instructions and others."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from optserve.export.graph_tf import Matrix, native_bfloat16, widened


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_either_way_of_multiplying(dtype: str, native: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 96)).astype(np.float32)
    values = rng.integers(-127, 128, (40, 96))
    stored = values.astype({"int8": np.int8, "bfloat16": ml_dtypes.bfloat16}[dtype])
    wide = tf.cast(stored, tf.bfloat16) if native else tf.zeros([0, 0], tf.bfloat16)
    exact = x.astype(np.float64) @ values.T

    spec = [tf.TensorSpec([], tf.bool), tf.TensorSpec(None, tf.bfloat16)]

    @tf.function(input_signature=spec)
    def product(native, wide):
        return Matrix(tf.constant(stored), wide=wide, native=native).matmul(x)

    error = np.abs(product(tf.constant(native), wide).numpy() - exact).max()
    # bfloat16 keeps 8 bits of every factor and of the sum.
    assert error <= (2**-7 if native else 2**-20) * np.abs(exact).max()


def test_what_is_held_besides_int8() -> None:
    stored = tf.Variable(np.arange(-128, 128, dtype=np.int8).reshape(16, 16))
    held = widened(stored)
    if native_bfloat16():
        np.testing.assert_array_equal(tf.cast(held, tf.int8), stored)
    else:
        assert tf.size(held) == 0
    half = tf.Variable(np.float16([[0.1, 65504], [6e-8, -2]]))
    np.testing.assert_array_equal(widened(half), half.numpy().astype(np.float32))

"""Products with stored weights, on processors with bfloat16 instructions and others."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from optserve.export.products_tf import Matrix


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_either_way_of_multiplying(dtype: str, native: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 96)).astype(np.float32)
    values = rng.integers(-127, 128, (40, 96))
    stored = values.astype({"int8": np.int8, "bfloat16": ml_dtypes.bfloat16}[dtype])
    exact = x.astype(np.float64) @ values.T

    @tf.function(input_signature=[tf.TensorSpec([], tf.bool)])
    def product(native):
        return Matrix(tf.constant(stored), native=native).matmul(x)

    error = np.abs(product(tf.constant(native)).numpy() - exact).max()
    # bfloat16 keeps 8 bits of every factor and of the sum.
    assert error <= (2**-7 if native else 2**-20) * np.abs(exact).max()


def test_float16_is_multiplied_as_float32() -> None:
    half = np.float16([[0.1, 65504], [6e-8, -2]])
    x = np.float32([[1, 2]])
    product = tf.function(lambda: Matrix(tf.constant(half)).matmul(x))
    np.testing.assert_allclose(product(), x @ half.T.astype(np.float32), rtol=1e-6)

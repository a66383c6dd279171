"""Products with stored weights, on processors with bfloat16 instructions and others."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from optserve.export.savedmodel import matmul_jax
from optserve.export.savedmodel.matmul_tf import Kernels, Matrix

from tests.export.savedmodel.processors import has_kernels, sums_int8


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
        return Matrix(tf.constant(stored), kernels=Kernels(native)).matmul(x)

    error = np.abs(product(tf.constant(native)).numpy() - exact).max()
    # bfloat16 keeps 8 bits of every factor and of the sum.
    assert error <= (2**-7 if native else 2**-20) * np.abs(exact).max()


@pytest.mark.parametrize(
    ("dtype", "exact_int8", "bits"),
    [
        ("bfloat16", None, 16),
        ("int8", None, 16),
        pytest.param("int8", False, 16, marks=has_kernels),
        pytest.param("int8", True, 16, marks=sums_int8),
        pytest.param("int8", False, 7, marks=has_kernels),
        pytest.param("int8", True, 8, marks=sums_int8),
    ],
)
def test_a_stack_of_matrices_in_panels(dtype, exact_int8, bits):
    """Of 2 matrices [40,96], each in 3 panels; int8 as such, and converted."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 96)).astype(np.float32)
    values = rng.integers(-127, 128, (2, 40, 96))
    scale = rng.uniform(0.5, 2, (2, 40)).astype(np.float32)
    stored = values.astype({"int8": np.int8, "bfloat16": ml_dtypes.bfloat16}[dtype])
    panels = np.stack(np.split(stored, 3, axis=2), axis=1)
    answer = None if exact_int8 is None else tf.constant(exact_int8)
    kernels = Kernels(tf.constant(False), answer, int8_activations=bits < 16)
    exact = x.astype(np.float64) @ values[1].T * scale[1]

    @tf.function
    def products():
        stack = Matrix(tf.constant(panels), tf.constant(scale), kernels=kernels)
        return stack.one_of(1).matmul(x), stack.all_of(2)[1].matmul(x)

    for product in products():
        # 16 bits are rounded to 1/64770 of the largest, 7 to 1/126 or less.
        allowed = 2**-14 if bits == 16 else 2**-5
        np.testing.assert_allclose(product, exact, atol=allowed * np.abs(exact).max())


@sums_int8
def test_many_rows_are_not_multiplied_as_two_int8_numbers():
    """But converted, here to bfloat16, which keeps 8 bits of every factor."""
    rng = np.random.default_rng(4)
    values = rng.integers(-127, 128, (40, 96)).astype(np.int8)
    kernels = Kernels(tf.constant(True), tf.constant(True))
    product = tf.function(Matrix(tf.constant(values), kernels=kernels).matmul)

    def error(rows: int) -> float:
        x = rng.standard_normal((rows, 96)).astype(np.float32)
        exact = x.astype(np.float64) @ values.T
        return np.abs(product(x) - exact).max() / np.abs(exact).max()

    assert error(64) < 2**-13 < error(65)


@pytest.mark.parametrize(
    ("exact", "int8_activations", "most"),
    [(True, False, 64), (True, True, 1000), (False, False, 0), (False, True, 0)],
)
@pytest.mark.parametrize("pinned", [True, False])
def test_how_many_rows_int8_multiplies(exact, int8_activations, most, pinned):
    answer = exact if pinned else tf.constant(exact)
    kernels = Kernels(None, answer, int8_activations=int8_activations)
    for rows in (1, 64, 65, 1000):
        assert bool(kernels.multiply_int8(tf.constant(rows))) == (rows <= most)


def test_float16_is_multiplied_as_float32() -> None:
    half = np.float16([[0.1, 65504], [6e-8, -2]])
    x = np.float32([[1, 2]])
    product = tf.function(lambda: Matrix(tf.constant(half)).matmul(x))
    np.testing.assert_allclose(product(), x @ half.T.astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 32])
@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float16", "float32"])
def test_products_of_the_jax_graph(dtype, rows):
    x, values, exact = long_rows(rows, ml_dtypes.bfloat16 if "b" in dtype else dtype)
    product = jax.jit(lambda x, values: matmul_jax.Matrix(values).matmul(x))
    actual = product(x, values)
    np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def long_rows(rows, dtype):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((rows, 5000)).astype(np.float32)
    values = rng.integers(-127, 128, (24, 5000)).astype(dtype)
    return x, values, x.astype(np.float64) @ values.T.astype(np.float64)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("framework", ["tf", "jax"])
def test_a_row_without_numbers_leaves_its_neighbours_alone(framework, bad):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    values = rng.integers(-127, 128, (24, 64)).astype(np.int8)
    exact = x[1:].astype(np.float64) @ values.T
    x[0] = bad
    if framework == "tf":
        actual = tf.function(Matrix(tf.constant(values)).matmul)(x).numpy()
    else:
        actual = jax.jit(lambda x, values: matmul_jax.Matrix(values).matmul(x))(
            x, values
        )
    assert not np.isfinite(actual[0]).any()
    np.testing.assert_allclose(actual[1:], exact, rtol=0, atol=1e-3)

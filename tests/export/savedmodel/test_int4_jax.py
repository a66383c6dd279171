"""Products of int4 weights, against numpy's of the unpacked numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from optserve.export import int4
from optserve.export.savedmodel.int4_jax import Int4Matrix
from optserve.export.savedmodel.matmul_jax import stored_matrix


@pytest.mark.parametrize("count", [1, 3, 8, 20])
@pytest.mark.parametrize(("rows", "width"), [(40, 64), (70, 160), (96, 4096)])
def test_products_equal_numpys(rows, width, count):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, width), np.float32)
    packed = int4.pack(rng.standard_normal((rows, width), np.float32))
    exact = x.astype(np.float64) @ int4.unpack(*packed).T.astype(np.float64)
    matrix = stored_matrix(*map(jnp.asarray, packed))
    assert isinstance(matrix, Int4Matrix)
    actual = jax.jit(lambda matrix, x: matrix.matmul(x))(matrix, x)
    np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_a_row_without_numbers_leaves_its_neighbours_alone():
    x = np.random.default_rng(1).standard_normal((3, 64), np.float32)
    x[0] = np.nan
    packed = int4.pack(np.random.default_rng(2).standard_normal((8, 64), np.float32))
    actual = np.asarray(Int4Matrix(*map(jnp.asarray, packed)).matmul(x))
    assert np.isnan(actual[0]).all()
    np.testing.assert_allclose(actual[1:], x[1:] @ int4.unpack(*packed).T, atol=1e-4)


@pytest.mark.parametrize("count", [1, 4])
def test_a_few_rows_are_multiplied_with_the_packed_numbers(count):
    """In a loop over layers, where XLA would rather unpack everything once."""
    L, N, K = 3, 2048, 4096
    shapes = int4.packed_shapes(N, K)
    stack = Int4Matrix(
        jax.ShapeDtypeStruct((L, *shapes[0]), jnp.int32),
        jax.ShapeDtypeStruct((L, *shapes[1]), jnp.float16),
    )

    def layers(x, stack):
        def add(x, matrix):
            y = matrix.matmul(x)
            return x + jnp.concatenate([y, y], axis=1), None

        return lax.scan(add, x, stack)[0]

    row = jax.ShapeDtypeStruct((count, K), jnp.float32)
    program: Any = jax.jit(layers).lower(row, stack).compile()
    # In float32 they are 4 · N · K bytes.
    assert program.memory_analysis().temp_size_in_bytes < N * K

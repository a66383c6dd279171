"""What each workaround is for, seen in what XLA compiles: with it and without."""

from __future__ import annotations

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from optserve.models.flax import xla_workarounds
from optserve.models.flax.model import layer_norm
from optserve.models.flax.sampling import threefry2x32
from optserve.models.flax.xla_workarounds import barrier, matmul_transposed, sum_rows

N, K = 8192, 768
MATRIX = jax.ShapeDtypeStruct((N, K), jnp.int8)
IN_FLOAT32 = 4 * N * K
multiplied = jax.jit(matmul_transposed)


def compiled(function, *shapes) -> Any:
    """With everything on that ``make test`` leaves out."""
    lowered = jax.jit(function).lower(*shapes)
    return lowered.compile(
        {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    )


def temporary_bytes(function, *shapes) -> int:
    return compiled(function, *shapes).memory_analysis().temp_size_in_bytes


def rows(count: int, size: int = K):
    return jax.ShapeDtypeStruct((count, size), jnp.float32)


def plain(x, matrix):
    return x @ matrix.astype(jnp.float32).T


def in_a_loop(product):
    def loop(x, matrix):
        return lax.fori_loop(0, 4, lambda _, x: product(x, matrix)[:, :K], x)

    return loop


@pytest.mark.parametrize("count", [1, 8, 32])
def test_a_matrix_is_not_converted_as_a_whole(count):
    """Nor once before a loop, which then streams four times as much."""
    with_it = temporary_bytes(in_a_loop(matmul_transposed), rows(count), MATRIX)
    without = temporary_bytes(in_a_loop(plain), rows(count), MATRIX)
    assert with_it < IN_FLOAT32 / 2 <= without


def test_what_precedes_a_product_is_computed_once():
    """Not again for each of its outputs."""

    def after_norm(product):
        return lambda x, matrix: product(layer_norm(x), matrix)

    program = compiled(after_norm(matmul_transposed), rows(1), MATRIX)
    assert "subtract" not in fused_with_dot(program)
    program = compiled(after_norm(plain), rows(1), MATRIX)
    assert "subtract" in fused_with_dot(program)


def fused_with_dot(program) -> str:
    """The computations of a program that hold a product."""
    parts = re.split(r"\n(?=%|ENTRY)", program.as_text())
    return "\n".join(p for p in parts if " dot(" in p and p.startswith("%fused"))


@pytest.mark.parametrize("size", [1000, 5000])
@pytest.mark.parametrize(
    ("dtype", "count"),
    [
        *itertools.product(["int8", "float16"], [1, 3, 8, 9, 40]),
        *[("float32", 1), ("float32", 9)],
    ],
)
def test_products_equal_numpys(dtype, count, size):
    """Of matrices of one block, and of several that don't divide it."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((count, size)).astype(np.float32)
    matrix = rng.integers(-127, 128, (701, size)).astype(dtype)
    exact = x.astype(np.float64) @ matrix.T.astype(np.float64)
    bound = 1e-5 * np.abs(exact).max()
    np.testing.assert_allclose(multiplied(x, matrix), exact, atol=bound)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_products_of_panels_equal_numpys(count):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((count, 5000)).astype(np.float32)
    matrix = rng.integers(-127, 128, (701, 5000)).astype(np.int8)
    panels = np.stack(np.split(matrix, 4, axis=1))
    exact = x.astype(np.float64) @ matrix.T.astype(np.float64)
    bound = 1e-5 * np.abs(exact).max()
    np.testing.assert_allclose(multiplied(x, panels), exact, atol=bound)


def test_panels_of_a_stack_are_multiplied_where_they_are():
    """One row times each matrix of [L,P,N,K/P]: none is copied out of it."""

    def layers(x, stack):
        def add(x, panels):
            return x + matmul_transposed(x, panels), None

        return lax.scan(add, x, stack)[0]

    stack = jax.ShapeDtypeStruct((3, 2, 4096, 2048), jnp.int8)
    assert temporary_bytes(layers, rows(1, 4096), stack) < 4096 * 2048


def test_a_bias_stays_out_of_a_product():
    def with_bias(keep):
        return lambda x, matrix, bias: keep(plain(x, matrix)) + bias

    bias = jax.ShapeDtypeStruct((N,), jnp.float32)
    program = compiled(with_bias(barrier), rows(1), MATRIX, bias)
    assert " add(" not in fused_with_dot(program)
    program = compiled(with_bias(lambda y: y), rows(1), MATRIX, bias)
    assert " add(" in fused_with_dot(program)


def test_a_float32_matrix_is_not_copied_for_one_row():
    matrix = jax.ShapeDtypeStruct((N, K), jnp.float32)
    assert " copy(" not in compiled(matmul_transposed, rows(1), matrix).as_text()
    assert " copy(" in compiled(plain, rows(1), matrix).as_text()


def test_a_matrix_of_long_rows_is_not_converted_as_a_whole():
    """XLA does so for rows of 16 KiB; each piece of a row is shorter."""
    size = 8192
    matrix = jax.ShapeDtypeStruct((1024, size), jnp.int8)
    with_it = temporary_bytes(matmul_transposed, rows(1, size), matrix)
    without = temporary_bytes(plain, rows(1, size), matrix)
    assert with_it < 2 * 1024 * size <= without


def test_a_largest_number_is_searched_without_pairs():
    """XLA makes no vector code of a reduction of pairs, which an argmax is."""
    program = compiled(xla_workarounds.first_argmax, rows(4)).as_text()
    assert not re.search(r"= \(.*\) reduce\(", program)
    program = compiled(lambda x: jnp.argmax(x, axis=1), rows(4)).as_text()
    assert re.search(r"= \(.*\) reduce\(", program)


@pytest.mark.parametrize("size", [7, 8, 1003])
def test_sums_equal_numpys(size):
    x = np.random.default_rng(2).standard_normal((3, size)).astype(np.float32)
    actual = jax.jit(sum_rows, static_argnums=0)(jnp.square, x)
    np.testing.assert_allclose(actual, np.square(x).sum(axis=1), rtol=1e-5)


def test_a_row_is_summed_by_eight_numbers_at_a_time():
    """One by one are summed only those that vector code has added to one another."""

    def plain_sum(measure, x):
        return jnp.sum(measure(x), axis=1)

    def summed_one_by_one(add_up) -> int:
        text = compiled(lambda x: add_up(jnp.exp, x), rows(4, 50272)).as_text()
        (operand,) = re.findall(r" reduce\(%([\w.]+),", text)
        (size,) = re.findall(rf"%{re.escape(operand)} = f32\[4,(\d+)\]", text)
        return int(size)

    assert summed_one_by_one(sum_rows) == 50272 / 8
    assert summed_one_by_one(plain_sum) == 50272


def test_the_rounds_of_a_cipher_are_compiled_in_pieces():
    """In one piece they take XLA minutes."""
    word = jax.ShapeDtypeStruct((4, 1000), jnp.uint32)
    parts = compiled(threefry2x32, word, word, word, word).as_text().split("\n\n")
    assert max(part.count("\n") for part in parts) < 200

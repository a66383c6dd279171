"""Where XLA's compiler for processors needs help, each with what happens without.

Found with the XLA inside TensorFlow 2.21 and jaxlib 0.10.
``tests/models/flax/test_xla_workarounds.py`` looks at what jaxlib's compiler makes with
each of them and without.
"""

from __future__ import annotations

import functools
import operator

import jax.numpy as jnp
from jax import lax

_FEW_ROWS = 8
_BLOCK_BYTES = 2 << 20  # for each row and for the next it stays in a processor's cache
_LONG_ROW = 4096  # numbers: with 16 KiB XLA makes no one loop of a product any more
_PIECE = 2048  # of a long row
_SUMS = 8


def barrier(x):
    """``x``, computed before what follows: XLA fuses nothing across it.

    A bias added to a product of one row becomes part of the product's loop, which then
    is slower: by 16 % with jaxlib and 3 % with TensorFlow on an AMD EPYC (Zen 4) with 2
    vCPUs (``tests/benchmarks/claims.py jax-bias``), by far more in earlier versions.
    """
    return lax.optimization_barrier(x)


def matmul_transposed(x, matrix):
    """``x @ matrix.T`` in float32, ``x`` [R,K], ``matrix`` [N,K] of any dtype, or in
    panels [P,N,K/P], which are its columns.

    XLA makes one loop of the conversion of a matrix and its product with one row, which
    reads the matrix at the memory's speed. For more rows it converts the whole matrix
    first. So a few rows are multiplied one by one; and for many of them parts of the
    matrix are converted that stay in the processor's cache.
    """
    if matrix.ndim == 3:
        parts = jnp.split(x, len(matrix), axis=1)
        return sum(matmul_transposed(part, matrix[p]) for p, part in enumerate(parts))
    if matrix.dtype == jnp.float32:
        return barrier(_product(x, matrix))
    x = computed_once(x)
    # Tied to x, or XLA converts the matrix once before a loop that this is in, and the
    # loop streams four times as much.
    matrix, x = barrier((matrix, x))
    if len(x) == 1:
        return _one_row(x, matrix)
    few = len(x) <= _FEW_ROWS
    row_bytes = matrix.shape[1] * (matrix.dtype.itemsize if few else 4)
    blocks = -(-len(matrix) * row_bytes // _BLOCK_BYTES)
    size = -(-len(matrix) // blocks)  # alike, or the last two would overlap by much
    return _by_blocks(x, matrix, size, _row_by_row if few else _product)


def _product(x, matrix):
    """Not ``x @ matrix.T``, for which XLA may copy a float32 matrix for one row.

    In tests/models/flax/test_xla_workarounds.py it does. Where it doesn't both take the
    same time: 9 ms for 256 MB on an AMD EPYC (Zen 4) with 2 vCPUs
    (``tests/benchmarks/claims.py jax-row``).
    """
    matrix = matrix.astype(jnp.float32)
    return lax.dot_general(x, matrix, (((1,), (1,)), ((), ())))


def computed_once(x):
    """``x``, which is divided by 1 in a way that XLA doesn't see through.

    XLA moves what computes ``x`` into the product's loop, and so computes it again for
    each output; a division it leaves where it is.
    """
    never = jnp.isnan(x) & jnp.isinf(x)
    return x / jnp.where(never, 2.0, 1.0)


def _one_row(x, matrix):
    """In pieces of the row that XLA makes one loop of, with the conversion."""
    K = x.shape[1]
    size = K if K < _LONG_ROW else _PIECE
    pieces = (
        x[:, k : k + size] @ matrix[:, k : k + size].astype(jnp.float32).T
        for k in range(0, K, size)
    )
    return sum(map(barrier, pieces))


def _row_by_row(x, matrix):
    def add(i, y):
        tied, row = barrier((matrix, lax.dynamic_slice_in_dim(x, i, 1)))
        return lax.dynamic_update_slice_in_dim(y, _one_row(row, tied), i, 0)

    return lax.fori_loop(0, len(x), add, jnp.zeros((len(x), len(matrix)), jnp.float32))


def _by_blocks(x, matrix, size: int, product):
    """``product`` with ``size`` rows of the matrix at a time."""
    N = len(matrix)

    def add(i, y):
        start = jnp.minimum(i * size, N - size)  # the last two may overlap
        block = lax.dynamic_slice_in_dim(matrix, start, size)
        part = barrier(product(x, block))
        return lax.dynamic_update_slice_in_dim(y, part, start, 1)

    return lax.fori_loop(0, -(-N // size), add, jnp.zeros((len(x), N), jnp.float32))


def sum_rows(measure, *of):
    """Sums [B] of ``measure`` of the numbers in ``of``, each [B,V].

    XLA adds a row's numbers up one by one. Parts of a row it adds to one another in
    vector code, in the same loop that measures them.
    """
    size = of[0].shape[1] // _SUMS

    def measured(start, end=None):
        return measure(*(x[:, start:end] for x in of))

    parts = [measured(i * size, (i + 1) * size) for i in range(_SUMS)]
    sums = functools.reduce(operator.add, parts)
    return jnp.sum(jnp.concatenate([sums, measured(_SUMS * size)], axis=1), axis=1)


def first_argmax(x):
    """The largest value's index [B] int32 of ``x`` [B,V]; the lowest among equals.

    In two steps, of which XLA makes vector code; of an argmax it doesn't.
    """
    V = x.shape[1]
    largest = jnp.max(x, axis=1, keepdims=True)
    ids = jnp.arange(V, dtype=jnp.int32)
    index = jnp.min(jnp.where(x == largest, ids, V), axis=1)
    return jnp.minimum(index, V - 1)  # of NaNs none is the largest

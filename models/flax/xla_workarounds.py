"""Where XLA's compiler for processors needs help, each with what happens without.

Found with the XLA inside TensorFlow 2.21. ``tests/models/flax/test_xla_workarounds.py``
fails for each of them when XLA no longer needs it.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax


def apart(x):
    """``x``, which XLA computes before what follows.

    A bias that is added to a product of one row becomes part of the product's loop,
    which then isn't vector code any more: 84 instead of 10 ms for a step.
    """
    return lax.optimization_barrier(x)


def times_transposed(x, matrix):
    """``x @ matrix.T``, for which XLA would copy the matrix if ``x`` is one row: 96
    instead of 6 ms for 256 MB."""
    return lax.dot_general(x, matrix, (((1,), (1,)), ((), ())))


def row_by_row(x, matrix):
    """``x @ matrix.T`` for a few rows [R,K] and a matrix [N,K] of a small dtype.

    XLA makes one loop of the conversion to float32 and a product with one row, which
    reads the matrix at the memory's speed.
    """
    columns = matrix.astype(jnp.float32).T
    rows = [apart(x[i : i + 1] @ columns) for i in range(len(x))]
    return jnp.concatenate(rows, axis=0)

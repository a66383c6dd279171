"""Products with int4 weights in the JAX graph; ``export/int4.py`` has their layout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...models.flax.xla_workarounds import barrier, computed_once
from ...models.weights import PackedWeight

_FEW_ROWS = 8
_BLOCK_ROWS = 256  # of a panel: in float32 they stay in a processor's cache
_NIBBLES = (np.uint32(15) << np.arange(0, 32, 4, dtype=np.uint32)).view(np.int32)
_UNITS = np.float32(16) ** -np.arange(8)
"""What a word's eight numbers are multiplied with where they stand."""
_OFFSETS = np.array([8] * 7 + [0], np.float32)
"""What is stored of a number is so much more."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int4Matrix(PackedWeight):
    """A stored matrix [N,K] of four bits, or a stack of them, multiplied in float32.

    ``words`` [P,N,4·J] int32 and ``scale`` [P,N,J] float16, for J blocks in each row of
    one of P panels.
    """

    words: Any
    scale: Any

    def matmul(self, x):
        if len(x) > _FEW_ROWS:
            return sum(map(_unpacked_product, *self._panels(x)))
        x = computed_once(x)

        def add_row(i, y):
            # Tied to the row, or XLA unpacks all of the weights before the loop.
            tied, row = barrier((self, lax.dynamic_slice_in_dim(x, i, 1)))
            return lax.dynamic_update_slice_in_dim(y, tied.one_row(row), i, 0)

        y = jnp.zeros((len(x), self.scale.shape[1]), jnp.float32)
        return lax.fori_loop(0, len(x), add_row, y)

    def one_row(self, x):
        """``x`` [1,K] times the matrix: [1,N]."""
        return sum(map(barrier, map(_one_row, *self._panels(x))))

    def _panels(self, x):
        """The parts of ``x`` [R,K], and what each is multiplied with."""
        count = len(self.words)
        parts = jnp.split(x, count, axis=1)
        return parts, list(self.words), list(self.scale)


def _one_row(x, words, scale):
    """``x`` [1,K] times one panel: [1,N].

    Sums of a block's products are computed for J blocks at a time, and multiplied with
    their scales; a product with ones adds them up, since XLA makes of all that the one
    loop of vector code that it makes of a product of one row.
    """
    J = scale.shape[1]
    x = x.reshape(-1, 8, J)
    start = barrier(-jnp.sum(x * _OFFSETS[:, None], axis=(0, 1)))
    x = computed_once(x * _UNITS[:, None])
    products = (
        (_vector(words, i, J) & nibble).astype(jnp.float32) * x[i, k]
        for i in range(len(x))
        for k, nibble in enumerate(_NIBBLES)
    )
    sums = reduce(add, products, jnp.broadcast_to(start, scale.shape))
    ones = barrier(jnp.ones((1, J)))
    return ones @ (sums * scale.astype(jnp.float32)).T


def _vector(words, i: int, J: int):
    return lax.slice_in_dim(words, i * J, (i + 1) * J, axis=1)


def _unpacked_product(x, words, scale):
    """``x`` [R,K] times one panel, some rows of it in float32 at a time: [R,N]."""
    rows = math.gcd(len(words), _BLOCK_ROWS)

    def product(block):
        return barrier(x @ _unpacked(*block).T)

    blocks = [part.reshape(-1, rows, part.shape[1]) for part in (words, scale)]
    y = lax.map(product, tuple(blocks))  # [N/rows, R, rows]
    return y.swapaxes(0, 1).reshape(len(x), -1)


def _unpacked(words, scale):
    """A panel's numbers [N,K] in float32."""
    N, J = scale.shape
    values = (words.reshape(N, -1, 1, J) & _NIBBLES[:, None]).astype(jnp.float32)
    values = values * _UNITS[:, None] - _OFFSETS[:, None]
    values = values.reshape(N, -1, J) * scale.astype(jnp.float32)[:, None]
    return values.reshape(N, -1)

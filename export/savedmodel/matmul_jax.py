"""Products with stored weights in the JAX graph; reads side by side with
``matmul_tf.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ...models.flax import model as opt
from ...models.flax.xla_workarounds import matmul_transposed
from ...models.weights import PackedWeight
from .int4_jax import Int4Matrix


def stored_matrix(values, scale) -> PackedWeight:
    """What multiplies with a stored tensor and its scales, None without."""
    if values.dtype == jnp.int32:
        return Int4Matrix(values, scale)
    return Matrix(values, scale)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Matrix(PackedWeight):
    """A stored matrix [out, in], in panels [P, out, in/P] if its rows are long, or a
    stack of them, multiplied in float32.

    ``values`` are of any of the weight dtypes; ``scale`` [out] belongs to int8.
    """

    values: Any
    scale: Any = None

    def matmul(self, x):
        y = matmul_transposed(x, self.values)
        return y if self.scale is None else y * self.scale

    def take(self, rows):
        values = opt.take(self.values, rows).astype(jnp.float32)
        if self.scale is None:
            return values
        return values * opt.take(self.scale, rows)[..., None]

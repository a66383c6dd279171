"""Products with stored weights in the JAX graph. Reads side by side with ``matmul_tf``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ...models.flax import model as opt
from ...models.flax.xla_workarounds import apart, row_by_row, times_transposed
from ...models.weights import PackedWeight

_FEW_ROWS = 8
"""Up to so many rows are multiplied one by one: each reads the weights as they are
stored, and all but the first from the processor's cache."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Matrix(PackedWeight):
    """A stored matrix [out, in], or a stack of them, multiplied in float32.

    ``values`` are of any of the weight dtypes; ``scale`` [out] belongs to int8.
    """

    values: Any
    scale: Any = None

    def matmul(self, x):
        if len(x) <= _FEW_ROWS and self.values.dtype != jnp.float32:
            y = row_by_row(x, self.values)
        else:
            y = apart(times_transposed(x, self.values.astype(jnp.float32)))
        return y if self.scale is None else y * self.scale

    def take(self, rows):
        values = opt.take(self.values, rows).astype(jnp.float32)
        if self.scale is None:
            return values
        return values * opt.take(self.scale, rows)[..., None]

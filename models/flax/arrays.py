"""The functions of ``generation/arrays.py`` in JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


class JaxArrays:
    """See :class:`..generation.arrays.Arrays`."""

    shape = staticmethod(jnp.shape)
    where = staticmethod(jnp.where)
    reshape = staticmethod(jnp.reshape)
    stack = staticmethod(jnp.stack)
    exp = staticmethod(jnp.exp)
    log = staticmethod(jnp.log)
    sqrt = staticmethod(jnp.sqrt)
    any = staticmethod(jnp.any)
    all = staticmethod(jnp.all)
    sum = staticmethod(jnp.sum)
    max = staticmethod(jnp.max)
    min = staticmethod(jnp.min)
    concat = staticmethod(jnp.concatenate)
    top_k = staticmethod(jax.lax.top_k)
    map = staticmethod(jax.tree.map)
    while_loop = staticmethod(jax.lax.while_loop)

    @staticmethod
    def array(x: Any, dtype: str = "int32") -> Any:
        """A constant, or an array in another dtype."""
        return jnp.asarray(x, dtype)

    @staticmethod
    def full(shape: Sequence[Any], value: Any, dtype: str) -> Any:
        """All of one value."""
        return jnp.full(shape, value, dtype)

    @staticmethod
    def arange(n: Any) -> Any:
        """0 to n − 1, int32."""
        return jnp.arange(n, dtype=jnp.int32)

    @staticmethod
    def argmax(x: Any) -> Any:
        """The largest value's index [R] in rows [R,V]; the lowest among equals."""
        return jnp.argmax(x, axis=1).astype(jnp.int32)

    @staticmethod
    def cast(x: Any, dtype: str) -> Any:
        """``x`` in another dtype."""
        return jnp.asarray(x).astype(dtype)

    @staticmethod
    def repeat(x: Any, n: int) -> Any:
        """Each row n times."""
        return x if n == 1 else jnp.repeat(x, n, axis=0)

    @staticmethod
    def take(x: Any, rows: Any) -> Any:
        """Rows of ``x``."""
        return jnp.take(x, rows, axis=0, mode="clip")

    @staticmethod
    def take_along(x: Any, index: Any) -> Any:
        """Row b's entries ``index`` [B,K] of axis 1."""
        index = index.reshape(*index.shape, *[1] * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=1, mode="clip")

    @staticmethod
    def counted(ids: Any, which: Any, size: int) -> Any:
        """How often each of [R, ``size``] is among row r's ``ids`` [R,K], as far as
        ``which`` is true; int32."""
        ids = jnp.broadcast_to(ids, which.shape)
        rows = jnp.arange(len(which))[:, None]
        out = jnp.zeros((len(which), size), jnp.int32)
        return out.at[rows, ids].add(which.astype(jnp.int32), mode="drop")

    @classmethod
    def marked(cls, ids: Any, which: Any, size: int) -> Any:
        """Boolean [R, ``size``]: true at row r's ``ids`` [R,K] where ``which`` is."""
        return cls.counted(ids, which, size) > 0

    @staticmethod
    def write(x: Any, i: Any, value: Any) -> Any:
        """``x`` [N,…] with ``value`` at ``i``."""
        return jax.lax.dynamic_update_index_in_dim(x, value, i, 0)


ARRAYS = JaxArrays()

"""The functions of ``generation/arrays.py`` in TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from .model import shape as shape_of


class TensorFlowArrays:
    """See :class:`..generation.arrays.Arrays`."""

    shape = staticmethod(shape_of)
    where = staticmethod(tf.where)
    reshape = staticmethod(tf.reshape)
    stack = staticmethod(tf.stack)
    exp = staticmethod(tf.exp)
    log = staticmethod(tf.math.log)
    sqrt = staticmethod(tf.sqrt)
    any = staticmethod(tf.reduce_any)
    all = staticmethod(tf.reduce_all)
    sum = staticmethod(tf.reduce_sum)
    max = staticmethod(tf.reduce_max)
    min = staticmethod(tf.reduce_min)
    cast = staticmethod(tf.cast)
    concat = staticmethod(tf.concat)
    take = staticmethod(tf.gather)
    map = staticmethod(tf.nest.map_structure)

    @staticmethod
    def array(x: Any, dtype: str = "int32") -> Any:
        """A constant, or a tensor in another dtype."""
        return tf.cast(x, dtype)

    @staticmethod
    def full(shape: Sequence[Any], value: Any, dtype: str) -> Any:
        """All of one value."""
        return tf.fill(shape, tf.cast(value, dtype))

    @staticmethod
    def arange(n: Any) -> Any:
        """0 to n − 1, int32."""
        return tf.range(n)

    @staticmethod
    def argmax(x: Any) -> Any:
        """The largest value's index [R] in rows [R,V]; the lowest among equals."""
        return tf.argmax(x, axis=1, output_type=tf.int32)

    @staticmethod
    def repeat(x: Any, n: int) -> Any:
        """Each row n times."""
        return x if n == 1 else tf.repeat(x, n, axis=0)

    @staticmethod
    def top_k(x: Any, k: int) -> tuple[Any, Any]:
        """The k largest of each row and their indices; the lowest among equals."""
        return tuple(tf.math.top_k(x, k))

    @staticmethod
    def take_along(x: Any, index: Any) -> Any:
        """Row b's entries ``index`` [B,K] of axis 1."""
        return tf.gather(x, index, axis=1, batch_dims=1)

    @staticmethod
    def counted(ids: Any, which: Any, size: int) -> Any:
        """How often each of [R, ``size``] is among row r's ``ids`` [R,K], as far as
        ``which`` is true; int32."""
        R, K = shape_of(which)
        ids = tf.broadcast_to(tf.where(which, ids, 0), [R, K])
        rows = tf.broadcast_to(tf.range(R)[:, None], [R, K])
        at = tf.stack([rows, ids], -1)
        return tf.scatter_nd(at, tf.cast(which, tf.int32), [R, size])

    @classmethod
    def marked(cls, ids: Any, which: Any, size: int) -> Any:
        """Boolean [R, ``size``]: true at row r's ``ids`` [R,K] where ``which`` is."""
        return cls.counted(ids, which, size) > 0

    @staticmethod
    def write(x: Any, i: Any, value: Any) -> Any:
        """``x`` [N,…] with ``value`` at ``i``."""
        return tf.tensor_scatter_nd_update(x, [[i]], value[None])

    @staticmethod
    def while_loop(condition: Any, body: Any, state: Any) -> Any:
        """``body`` while ``condition``, of a named tuple."""
        kind = type(state)
        final: Any = tf.while_loop(
            lambda *fields: condition(kind(*fields)),
            lambda *fields: tuple(body(kind(*fields))),
            tuple(state),
            parallel_iterations=1,
        )
        return kind(*final)


ARRAYS = TensorFlowArrays()

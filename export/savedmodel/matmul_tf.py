"""Products with stored weights in TensorFlow, the quickest way a processor has.

What a processor has is found out when a version is loaded, once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from ...models.tf import model as opt
from ...models.weights import PackedWeight
from . import int8_matmul


def native_bfloat16():
    """Whether products of bfloat16 are fast here, as a boolean to be found out at load.

    Where processors have the instructions, oneDNN multiplies and rounds to the nearest.
    Elsewhere TensorFlow's own kernel, which cuts off, takes two or three times as long
    as a product of float32 and the conversion before it.
    """
    one = 1 + tf.floor(tf.random.uniform([]))  # nothing to be folded into a constant
    x = tf.reshape(tf.one_hot(0, 64) + 0.75 * tf.one_hot(1, 64), [1, 64]) * one
    y = tf.reshape(tf.one_hot(0, 64) + 2.0**-7 * tf.one_hot(1, 64), [64, 1])
    product = tf.matmul(tf.cast(x, tf.bfloat16), tf.cast(y, tf.bfloat16))
    return tf.cast(product[0, 0], tf.float32) > 1  # 1 + 0.75 * 2^-7, the last bit 2^-7


class MadeAtLoad(tf.saved_model.experimental.TrackableResource):
    """A tensor of ``dtype`` that ``make()`` gives when a model is loaded.

    ``name`` must say what it is made of: in one process it is one resource.
    """

    def __init__(self, make: Callable[[], Any], dtype: Any, name: str) -> None:
        super().__init__()
        self._make, self._dtype, self._name = make, dtype, name
        with tf.init_scope():  # not in the branch of a graph that asks first
            _ = self.resource_handle

    def _create_resource(self):
        unknown: Any = None
        return tf.raw_ops.VarHandleOp(
            dtype=self._dtype,
            shape=tf.TensorShape(unknown),
            shared_name=self._name,
        )

    def _initialize(self):
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=self._make())

    def read(self):
        """The value."""
        return tf.raw_ops.ReadVariableOp(
            resource=self.resource_handle, dtype=self._dtype
        )


_MOST_ROWS_OF_INT8 = 64  # from there on conversion weighs less than a second product
_MOST_ROWS_OF_FLOAT32 = 4  # one by one, without anything to convert
_BLOCK = 8192  # of a matrix's rows: stays in the processor's cache for the next row
_LONG_ROW = 4096  # numbers: with 16 KiB XLA makes no one loop of a product any more
_PIECE = 2048  # of a long row
_PLACES = 4  # of a matrix read in turns: some processors fetch ahead at each


class Matrix(PackedWeight):
    """A stored matrix [out, in] of any of the weight dtypes.

    ``native`` says whether to multiply bfloat16 (see :func:`native_bfloat16`) and
    ``exact`` whether to multiply int8 (see :func:`.int8_products.exact`). With ``step``
    instead XLA multiplies the values as they are stored, in float32 and row by row,
    a single row ``in_turns`` (see :func:`.trials.quicker_in_turns`);
    ``graph_jax.Matrix`` tells why that looks as it does.
    """

    def __init__(
        self,
        values: Any,
        scale: Any = None,
        *,
        native: Any = None,
        exact: Any = None,
        step: Any = None,
        in_turns: bool = False,
    ) -> None:
        self.values, self.scale, self.step = values, scale, step
        self.native, self.exact, self.in_turns = native, exact, in_turns

    def like(self, values: Any, scale: Any) -> Matrix:
        """Another matrix that is multiplied the same way."""
        how = {"native": self.native, "exact": self.exact}
        return Matrix(values, scale, **how, step=self.step, in_turns=self.in_turns)

    def __getitem__(self, i: Any) -> Matrix:
        """One of the matrices of a stack."""
        return self.like(self.values[i], None if self.scale is None else self.scale[i])

    def matmul(self, x):
        y = self._whole(x) if self.step is None else self._by_row(x)
        return y if self.scale is None else y * self.scale

    def _whole(self, x):
        if self.values.dtype == tf.float32:
            return tf.matmul(x, self.values, transpose_b=True)
        y = _product(x, self.values, self.native, self.exact)
        return tf.ensure_shape(y, [None, self.values.shape[0]])

    def _by_row(self, x):
        rows, size = opt.shape(x)
        values = xla.optimization_barrier(self.values, self.step)[0]
        if values.dtype == tf.float32:
            if rows > _MOST_ROWS_OF_FLOAT32:
                return barrier(tf.matmul(x, values, transpose_b=True))
            values = values * tf.where(self.step < -1, 2.0, 1.0)  # see `graph_jax`
        values = tf.cast(values, tf.float32)
        x = x / tf.where(tf.range(size) < -1 - self.step, 2.0, 1.0)
        if rows == 1 and self.in_turns:
            turns = [gcd(_PLACES, values.shape[0]), -1]
            y = _one_row(x, _swapped(tf.transpose(values), turns))
            return _swapped(y, turns[::-1])
        size = _BLOCK if rows > 1 else values.shape[0]
        columns = []
        for at in range(0, values.shape[0], size):
            block = tf.transpose(values[at : at + size])
            products = [_one_row(x[row : row + 1], block) for row in range(rows)]
            columns.append(tf.concat(products, axis=0))
        return tf.concat(columns, axis=1)

    def take(self, rows):
        found = tf.cast(tf.gather(self.values, rows), tf.float32)
        if self.scale is None:
            return found
        return found * tf.gather(self.scale, rows)[..., None]


def _one_row(x, matrix):
    """``x`` [1, K] times ``matrix`` [K, N], in pieces that XLA makes one loop of."""
    K = x.shape[1]
    size = K if K < _LONG_ROW else _PIECE
    starts = range(0, K, size)
    pieces = (tf.matmul(x[:, k : k + size], matrix[k : k + size]) for k in starts)
    return sum(map(barrier, pieces))


def _swapped(x, sizes):
    """Columns of ``x`` [N, a·b], for ``sizes`` (a, b), in the order of [N, b·a]."""
    split = tf.transpose(tf.reshape(x, [x.shape[0], *sizes]), [0, 2, 1])
    return tf.reshape(split, x.shape)


@partial(tf.function, autograph=False)
def _product(x, values, native, exact):
    """``x`` [N, in] times ``values`` of 8 or 16 bits, the quickest way there is here.

    A few rows times int8 as such if that is ``exact``; else the values are converted,
    for each product anew, to bfloat16 if that is ``native`` (a sixth of a prompt's
    time), or to float32. A function of its own, traced and written once for each shape.
    """
    with tf.control_dependencies([x]):  # else all are converted at once: gigabytes
        values = tf.identity(values)

    def in_bfloat16():
        y = tf.matmul(
            tf.cast(x, tf.bfloat16), tf.cast(values, tf.bfloat16), transpose_b=True
        )
        return tf.cast(y, tf.float32)

    def in_float32():
        return tf.matmul(x, tf.cast(values, tf.float32), transpose_b=True)

    def converted():
        return (
            in_float32() if native is None else tf.cond(native, in_bfloat16, in_float32)
        )

    if exact is None:
        return converted()
    few = tf.shape(x)[0] <= _MOST_ROWS_OF_INT8
    return tf.cond(exact & few, lambda: int8_matmul.product(x, values), converted)


def barrier(x):
    """``x``, which XLA computes on its own, apart from what uses it."""
    return xla.optimization_barrier(x)[0]

"""Products of int8 weights by oneDNN's int8 kernels, for numbers that are not int8.

Weights stay what they are, int8 by row. What they are multiplied with is written as two
int8 numbers, x ≈ scale · (256 · high + low), so that two products of integers, which
are exact, give the product of 16 bits: rounding is 1/65024 of a row's largest number,
finer than bfloat16's. A processor with VNNI multiplies four int8 numbers at once, which
makes the two products of a few rows twice as fast as float32 or bfloat16 ones.

The kernel is TensorFlow's ``_QuantizedMatMul``, which TensorFlow has on x86-64 alone.
XLA has one of its own, which brings the weights into order for each product anew but
needs no way into XLA and out of it (:func:`compiled_sums`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.compiler.xla import xla_data_pb2
from tensorflow.python.framework import kernels, op_def_library

_OP = "_QuantizedMatMul"
_LARGEST = 127 * 256  # high and low both fit into int8
_ONE_EACH = (-127.0, 127.0, -127.0, 127.0)
"""Ranges of both factors by which the kernel scales its sums: by nothing."""


class Halves(NamedTuple):
    """Numbers [N, K] as int8, all rows' high halves and then their low ones."""

    parts: Any  # [2N, K] int8
    scale: Any  # [N, 1]


def in_halves(x) -> Halves:
    """``x`` [N, K] float32 as two int8 numbers each."""
    largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
    scale = tf.where(largest > 0, largest / _LARGEST, 1.0)
    rounded = tf.round(x / scale)[None]
    high = tf.floor((rounded + 128.0) / 256.0)
    # Chosen by half rather than joined: a compiler makes vector code of that.
    parts = tf.where([[[True]], [[False]]], high, rounded - 256.0 * high)
    return Halves(tf.cast(tf.reshape(parts, [-1, x.shape[1]]), tf.int8), scale)


def integer_sums(parts, values, *, keep: bool = False):
    """int8 ``parts`` [M, K] times int8 ``values`` [N, K]: their sums [M, N] float32.

    oneDNN brings the values into an order of its own, for each product anew unless
    ``keep``: then this very node of a graph keeps them and must see no others. That
    takes as much memory as the values and spares half of the time of a few rows.
    """
    out = values.shape[0]
    quantized = [tf.bitcast(x, tf.qint8) for x in (parts, values)]
    sums = op_def_library.apply_op(
        _OP,
        name="integer_sums",
        device_inputs=[*quantized, tf.zeros([out])],
        host_inputs=[tf.constant(limit) for limit in _ONE_EACH],
        Tdevice_outputs=[tf.float32],
        Thost_outputs=[],
        T1=tf.qint8,
        T2=tf.qint8,
        Tbias=tf.float32,
        U=tf.float32,
        Tout=tf.float32,
        transpose_a=False,
        transpose_b=True,
        is_weight_const=keep,
        is_bias_const=True,
        fused_ops=["BiasAdd", "Dequantize"],
        input_quant_mode="SCALED",
        output_quant_mode="SCALED",
        leakyrelu_alpha=0.0,
    )
    (found,) = tf.nest.flatten(sums)
    return tf.ensure_shape(found, [None, out])


def compiled_sums(parts, values):
    """:func:`integer_sums` for XLA."""
    numbers = xla_data_pb2.DotDimensionNumbers(
        lhs_contracting_dimensions=[1], rhs_contracting_dimensions=[1]
    )
    (parts,) = xla.optimization_barrier(parts)
    sums = xla.dot_general(parts, values, numbers, preferred_element_type=tf.int32)
    return tf.cast(xla.optimization_barrier(sums)[0], tf.float32)


def joined(sums, scale):
    """``sums`` [2N, M] of :class:`Halves` with their ``scale`` [N, 1]: [N, M]."""
    high, low = tf.split(sums, 2)
    return (256.0 * high + low) * scale


def product(x, values, *, keep: bool = False):
    """``x`` [N, K] float32 times int8 ``values`` [M, K]: [N, M]."""
    halves = in_halves(x)
    return joined(integer_sums(halves.parts, values, keep=keep), halves.scale)


def available() -> bool:
    """Whether this TensorFlow has the kernel."""
    return bool(kernels.get_registered_kernels_for_op(_OP).kernel)


def exact():
    """Whether sums of int8 products are exact here, as a boolean to be found at load.

    On processors without VNNI oneDNN halves weights or lets sums of two products
    saturate, and is slower than with float32.
    """
    ones = tf.ones([4, 256], tf.int8) * 127
    signs = tf.where(tf.range(256) % 3 == 0, -1, 1)
    odd = tf.cast(tf.stack([127 * signs, tf.fill([256], 127), signs]), tf.int8)
    wanted = 127 * tf.reduce_sum(tf.cast(odd, tf.int32), axis=1)
    found = integer_sums(ones, odd)
    return tf.reduce_all(found == tf.cast(wanted, tf.float32))

"""Products of int8 weights by oneDNN's int8 kernels, for numbers that are not int8.

Weights stay what they are, int8 by row. What they are multiplied with is written as two
int8 numbers, x ≈ scale · (255 · high + low), so that two products of integers, which
are exact, give the product of 16 bits: rounding is 1/64770 of a row's largest number,
finer than bfloat16's. A processor with VNNI multiplies four int8 numbers at once: for
8 rows the two products took an AMD EPYC (Zen 4) with 2 vCPUs 3.0 ms, one of bfloat16
6.0, and one of float32 15 (``tests/benchmarks/claims.py int8-rows``).

The kernel is TensorFlow's ``_QuantizedMatMul``, which TensorFlow has on x86-64 alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.python.framework import kernels, op_def_library

from .panels_tf import by_panels
from .shared_constants import constant, once_a_graph

_OP = "_QuantizedMatMul"
_BASE = 255.0  # odd: no number is half-way between two high parts
_LARGEST = 127 * _BASE  # high and low both fit into int8 then
_SMALLEST = 1e-30  # of what a row's largest number is taken for: nothing overflows
_ONE_EACH = (-127.0, 127.0, -127.0, 127.0)
"""Ranges of both factors by which the kernel scales its sums: by nothing."""


class Int8Split(NamedTuple):
    """Numbers [N, K] as int8: all rows' high parts and then their low ones."""

    parts: Any  # [2N, K] int8
    scale: Any  # [N, 1]


def split_int8(x) -> Int8Split:
    """``x`` [N, K] float32 as two int8 numbers each."""
    first, base = constant(0), constant(_BASE)
    scale = _largest(x) * constant(1 / _LARGEST)
    rounded = tf.round(x / scale)
    high = tf.round(rounded * constant(1 / _BASE))
    parts = tf.concat([high, rounded - base * high], axis=first)
    return Int8Split(tf.cast(parts, tf.int8), scale)


def round_to_int8(x) -> Int8Split:
    """``x`` [N, K] float32 as one int8 number each: high parts alone, [N, K].

    Multiplied by the inverse of the scale, whose rounding is nothing to 8 bits: 48
    times 128 rows of 768 took an AMD EPYC (Zen 4) with 2 vCPUs 2.4 ms, and 5.0 to 5.8
    divided by the scale (``tests/benchmarks/claims.py int8-rounding``).
    """
    largest = _largest(x)
    rounded = tf.round(x * (constant(127.0) / largest))
    return Int8Split(tf.cast(rounded, tf.int8), largest * constant(1 / 127))


def _largest(x):
    """Each row's largest absolute value [N, 1]."""
    largest = tf.reduce_max(tf.abs(x), axis=constant([-1]), keepdims=True)
    return tf.maximum(largest, constant(_SMALLEST))


def accumulators(parts, values, scale: Any = None, *, keep: bool = False):
    """int8 ``parts`` [M, K] times int8 ``values`` [N, K]: their sums [M, N] float32,
    times ``scale`` [N] if there is one.

    oneDNN brings the values into an order of its own, for each product anew unless
    ``keep``: then this very node of a graph keeps them and must see no others. That
    takes as much memory as the values and spares half of the time of a few rows.
    """
    out = values.shape[0]
    quantized = [tf.bitcast(x, tf.qint8) for x in (parts, values)]
    no_bias = once_a_graph(("zeros", out), lambda: tf.zeros([out]))
    sums = op_def_library.apply_op(
        _OP,
        name="accumulators",
        device_inputs=[*quantized, no_bias],
        host_inputs=_ranges(scale),
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
    (accumulated,) = tf.nest.flatten(sums)
    accumulated.set_shape([None, out])
    return accumulated


def _ranges(scale) -> list[Any]:
    """Of both factors, by which the kernel scales its sums."""
    if scale is None:
        return [constant(limit) for limit in _ONE_EACH]
    return [constant(-127.0 * 127), constant(127.0 * 127), scale, scale]


def joined(sums, scale):
    """``sums`` [2N, M] of an :class:`Int8Split` with its ``scale`` [N, 1]: [N, M]."""
    high, low = tf.split(sums, 2, axis=constant(0))
    return (constant(_BASE) * high + low) * scale


def product(x, values, scale: Any = None, *, keep: bool = False, halves: bool = True):
    """``x`` [N, K] float32 times int8 ``values`` [M, K] or panels of them: [N, M],
    times ``scale`` [M].

    ``x`` as two int8 ``halves``, or rounded to one number each: half of the work.
    """

    def sums(parts):
        multiply = partial(accumulators, scale=scale, keep=keep)
        return by_panels(multiply, parts, values)

    if not halves:
        rounded = round_to_int8(x)
        return sums(rounded.parts) * rounded.scale
    split = split_int8(x)
    return joined(sums(split.parts), split.scale)


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
    expected = 127 * tf.reduce_sum(tf.cast(odd, tf.int32), axis=1)
    computed = accumulators(ones, odd)
    return tf.reduce_all(computed == tf.cast(expected, tf.float32))

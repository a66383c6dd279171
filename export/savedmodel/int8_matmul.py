"""Products of int8 weights by oneDNN's int8 kernels, for numbers that are not int8.

Weights stay what they are, int8 by row. What they are multiplied with is written as two
int8 numbers, x ≈ scale · (255 · high + low), so that two products of integers, which
are exact, give the product of 16 bits: rounding is 1/64770 of a row's largest number,
finer than bfloat16's. A processor with VNNI multiplies four int8 numbers at once: for
8 rows the two products took an AMD EPYC (Zen 4) with 2 vCPUs 3.0 ms, one of bfloat16
6.0, and one of float32 15 (``tests/benchmarks/claims.py int8-rows``).

A processor without VNNI adds two products in 16 bits, which two factors of 8 bits are
too large for. With 7 bits and no sign for one of them the sums are exact there, too:
on an AMD EPYC (Zen 3) with 2 vCPUs the same 8 rows took 9 ms so, and 40 in float32.

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
_SEVEN_BITS = 126  # 2 · 126 · 127 < 2^15


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


class Unsigned(NamedTuple):
    """Numbers [N, K] as ``scale · parts + lowest``, and a row of ones below them."""

    parts: Any  # [N+1, K] uint8, none above 126
    scale: Any  # [N, 1]
    lowest: Any  # [N, 1]


def round_to_seven_bits(x) -> Unsigned:
    """``x`` [N, K] float32 in 7 bits each, from a row's lowest number to its highest.

    What was cut off at zero, as by a ReLU, keeps the resolution of int8.
    """
    last = constant([-1])
    lowest = tf.reduce_min(x, axis=last, keepdims=True)
    extent = tf.reduce_max(x, axis=last, keepdims=True) - lowest
    extent = tf.maximum(extent, constant(_SMALLEST))
    steps = constant(float(_SEVEN_BITS)) / extent
    half = constant(0.5)  # a cast cuts off
    parts = tf.cast(x * steps + (half - lowest * steps), tf.uint8)
    one = once_a_graph("one byte", lambda: tf.constant(1, tf.uint8))
    parts = tf.pad(parts, constant([[0, 1], [0, 0]]), constant_values=one)
    return Unsigned(parts, extent * constant(1 / _SEVEN_BITS), lowest)


def _largest(x):
    """Each row's largest absolute value [N, 1]."""
    last = constant([-1])
    highest = tf.reduce_max(x, axis=last, keepdims=True)
    lowest = tf.reduce_min(x, axis=last, keepdims=True)  # |x| would be written first
    return tf.maximum(tf.maximum(highest, -lowest), constant(_SMALLEST))


def accumulators(parts, values, scale: Any = None, *, keep: bool = False):
    """int8 or uint8 ``parts`` [M, K] times int8 ``values`` [N, K]: their sums [M, N]
    float32, times ``scale`` [N] if there is one.

    oneDNN brings the values into an order of its own, for each product anew unless
    ``keep``: then this very node of a graph keeps them and must see no others. That
    takes as much memory as the values and spares half of the time of a few rows.
    """
    out = values.shape[0]
    kind = tf.qint8 if parts.dtype == tf.int8 else tf.quint8
    quantized = [tf.bitcast(parts, kind), tf.bitcast(values, tf.qint8)]
    no_bias = once_a_graph(("zeros", out), lambda: tf.zeros([out]))
    sums = op_def_library.apply_op(
        _OP,
        name="accumulators",
        device_inputs=[*quantized, no_bias],
        host_inputs=_ranges(parts.dtype, scale),
        Tdevice_outputs=[tf.float32],
        Thost_outputs=[],
        T1=kind,
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


def _ranges(dtype: tf.DType, scale: Any) -> list[Any]:
    """Of both factors, by which the kernel scales its sums: by ``scale``, or nothing.

    It divides them by the largest number that a factor's type has.
    """
    largest = 127.0 if dtype == tf.int8 else 255.0
    if scale is None:
        return [constant(limit) for limit in (-largest, largest, -127.0, 127.0)]
    return [constant(-largest * 127), constant(largest * 127), scale, scale]


def joined(sums, scale):
    """``sums`` [2N, M] of an :class:`Int8Split` with its ``scale`` [N, 1]: [N, M]."""
    high, low = tf.split(sums, 2, axis=constant(0))
    return (constant(_BASE) * high + low) * scale


def product(x, values, scale: Any = None, *, keep: bool = False, bits: int = 16):
    """``x`` [N, K] float32 times int8 ``values`` [M, K] or panels of them: [N, M],
    times ``scale`` [M].

    ``bits`` of each number of ``x`` are kept: 16, in two int8 numbers; 8, which is half
    of the work; or 7, whose sums are exact on every processor.
    """

    def sums(parts):
        multiply = partial(accumulators, scale=scale, keep=keep)
        return by_panels(multiply, parts, values)

    if bits == 16:
        split = split_int8(x)
        return joined(sums(split.parts), split.scale)
    if bits == 8:
        rounded = round_to_int8(x)
        return sums(rounded.parts) * rounded.scale
    parts, steps, lowest = round_to_seven_bits(x)
    rows = tf.stack([tf.shape(x)[0], constant(1)])
    products, of_ones = tf.split(sums(parts), rows, num=2)
    return products * steps + lowest * of_ones


def available() -> bool:
    """Whether this TensorFlow has the kernel."""
    return bool(kernels.get_registered_kernels_for_op(_OP).kernel)


def exact():
    """Whether sums of products of two int8 numbers are exact here, as a boolean to be
    found at load.

    On processors without VNNI oneDNN halves weights or lets sums of two products
    saturate.
    """
    ones = tf.ones([4, 256], tf.int8) * 127
    signs = tf.where(tf.range(256) % 3 == 0, -1, 1)
    odd = tf.cast(tf.stack([127 * signs, tf.fill([256], 127), signs]), tf.int8)
    expected = 127 * tf.reduce_sum(tf.cast(odd, tf.int32), axis=1)
    computed = accumulators(ones, odd)
    return tf.reduce_all(computed == tf.cast(expected, tf.float32))

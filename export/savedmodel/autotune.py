"""Which of two ways is quicker here: timed once, when a version is loaded.

That depends on the processor, and on the kernels in the TensorFlow that serves. Both
ways give the same numbers, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf

from .int8_matmul import compiled_sums, in_halves, integer_sums, joined
from .matmul_tf import Matrix

_compiled = partial(tf.function, autograph=False, jit_compile=True)

_INT8 = 8, 4, 1536  # rows, products one after the other, and the size of a matrix
_IN_A_LOOP = 1.2
"""How much more pieces lose than one program does where other work stands between them
and threads fall asleep. On one processor the program took 1.3 to 2.1 times as long in
this trial, and 1.25 times in a whole step; on another 14 ms of products alone against
13, and 37 against 51 in a step."""


def quicker_compiled():
    """Whether a loop of int8 products is quicker in one program of XLA's than in pieces
    with oneDNN's products between them, as a boolean to be found at load.

    XLA's take 50 times as long in some TensorFlows. The trial takes 50 ms, and about a
    second to compile.
    """
    rows, products, size = _INT8
    drawn = tf.random.uniform([products, size, size], -127, 128, tf.int32)
    matrices = tf.unstack(tf.cast(drawn, tf.int8))

    def step(x, values, sums: Callable[..., Any]):
        halves = in_halves(x)
        return joined(sums(halves.parts, values), halves.scale)

    @_compiled
    def whole(x):
        for values in matrices:
            x = step(x, values, compiled_sums)
        return x

    halve, join = _compiled(in_halves), _compiled(joined)

    def pieces(x):
        for values in matrices:
            halves = halve(x)
            sums = integer_sums(halves.parts, values, keep=True)
            x = join(sums, halves.scale)
        return x

    x = tf.random.uniform([rows, size])
    return _seconds(whole, x) < _IN_A_LOOP * _seconds(pieces, x)


_ONE_ROW = 1536, 96 * 1024**2  # size of a row, bytes of a matrix: more than caches hold


def quicker_in_turns(dtype: tf.DType):
    """Whether one row times a matrix of ``dtype`` is quicker if the matrix is read in
    several places in turns (:class:`.products_tf.Matrix`), as a boolean to be found at
    load.

    Some processors then fetch more of it ahead (15.6 → 13.0 ms a step of int8), others
    only have more to do (3.7 → 7.7 ms). 0.2 s, and half a second to compile.
    """
    size, bytes_ = _ONE_ROW
    out = bytes_ // dtype.size // size
    values = tf.cast(tf.random.uniform([out, 1], -9, 10, tf.int32), dtype)
    values = tf.tile(values, [1, size])

    def product(in_turns: bool):
        @_compiled
        def one_row(x, values, step):
            y = Matrix(values, step=step, in_turns=in_turns).matmul(x)
            return y[:, :size]

        return lambda x: one_row(x, values, tf.zeros([], tf.int32))

    x = tf.random.uniform([1, size])
    return _seconds(product(True), x) < 0.95 * _seconds(product(False), x)


_TIMES = 12  # the first of which compiles


def _seconds(run: Callable[[Any], Any], x):
    """The shortest of some calls of ``run(x)``, one after the other."""

    def once(i, shortest, x) -> Any:
        with tf.control_dependencies([shortest]):
            begin = tf.timestamp()
        # Tied by what is computed: of a function whose values nobody needs TensorFlow
        # leaves nothing to wait for.
        x = run(x + tf.cast(tf.minimum(begin, 0.0), x.dtype))
        x = x / tf.reduce_max(tf.abs(x))
        with tf.control_dependencies([x]):
            return i + 1, tf.minimum(shortest, tf.timestamp() - begin), x

    start = tf.constant(0), tf.constant(float("inf"), tf.float64), x
    _, shortest, x = tf.while_loop(lambda i, *_: i < _TIMES, once, start)
    return shortest + tf.cast(tf.minimum(tf.reduce_max(x), 0.0), shortest.dtype)

"""Any number of rows through functions that take some numbers of rows only.

In few operations, and each function once: a server copies all of them again for each
signature while it gets ready.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from .shared_constants import constant

Function = Callable[..., Sequence[Any]]
Specs = Sequence[tf.TensorSpec]


def fit(x, axis: int, size):
    """``x`` with zeros at the end of an axis, up to ``size``."""
    padding = [[0, 0]] * axis + [[0, size - tf.shape(x)[axis]]]
    return tf.pad(x, padding + [[0, 0]] * (x.shape.rank - axis - 1))


def by_rows(
    rows: Sequence[int],
    function: Callable[[int], Function],
    inputs: Sequence[Any],
    outputs: Specs,
    *,
    limits: Sequence[Any] = (),
    length: Any = 0,
) -> Sequence[Any]:
    """``function(size)(*inputs)`` of inputs [B,…] in groups of one of the sizes: of the
    smallest that holds them all, else of the largest.

    Args:
        rows: the sizes, ascending.
        function: gives what takes inputs of so many rows, and gives outputs [B,…].
        inputs: tensors.
        outputs: their types.
        limits: up to which ``length`` each of the sizes may be chosen; beyond it
            groups are of the first size, which has no limit.
        length: of the inputs, a scalar.
    """
    index = tf.minimum(position(rows, tf.shape(inputs[0])[0]), len(rows) - 1)
    if limits:
        index = tf.where(length > tf.gather(list(limits), index), 0, index)
    branches = [
        partial(in_groups, size, function(size), inputs, outputs) for size in rows
    ]
    return tf.switch_case(index, branches)


def position(sizes: Sequence[int], size):
    """How many of the ascending ``sizes`` are smaller than ``size``."""
    return tf.reduce_sum(tf.cast(tf.constant(sizes) < size, tf.int32))


def in_groups(size: int, function: Function, inputs: Sequence[Any], outputs: Specs):
    """``function`` of ``size`` rows of the inputs [B,…] at a time."""
    B = tf.shape(inputs[0])[0]
    groups = tf.maximum(-(-B // size), 1)
    inputs = _filled(inputs, groups * size - B)
    arrays = [tf.TensorArray(spec.dtype, groups) for spec in outputs]

    def run(g, *arrays: tf.TensorArray) -> Any:
        begin = tf.reshape(g * size, [1])
        group = [_rows(x, begin, begin + size, size) for x in inputs]
        written = zip(arrays, function(*group), strict=True)
        return g + 1, *(array.write(g, y) for array, y in written)

    _, *arrays = tf.while_loop(
        lambda g, *_: g < groups,
        run,
        (tf.constant(0), *arrays),
        parallel_iterations=1,
    )
    return tuple(
        _joined(array, spec, size)[:B]
        for array, spec in zip(arrays, outputs, strict=True)
    )


def _filled(inputs: Sequence[Any], count) -> list[Any]:
    """The inputs [B,…], each with ``count`` rows of zeros at its end."""
    ranks = sorted({x.shape.rank for x in inputs})
    count = tf.reshape(count, [1, 1])
    paddings = {rank: tf.pad(count, [[0, rank - 1], [1, 0]]) for rank in ranks}
    return [tf.pad(x, paddings[x.shape.rank]) for x in inputs]


def _rows(x, begin, end, size: int):
    rows = tf.raw_ops.StridedSlice(input=x, begin=begin, end=end, strides=constant([1]))
    rows.set_shape([size, *x.shape[1:]])
    return rows


def _joined(array: tf.TensorArray, spec: tf.TensorSpec, size: int):
    """What was written, [B,…] of ``size`` rows each."""
    stacked = tf.ensure_shape(array.stack(), [None, size, *spec.shape[1:]])
    return tf.reshape(stacked, tf.concat([[-1], tf.shape(stacked)[2:]], 0))

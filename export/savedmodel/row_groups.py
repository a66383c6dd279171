"""Any number of rows through functions that take some numbers of rows only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

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
) -> Sequence[Any]:
    """``function(size)(*inputs)`` of inputs [B,…] filled up to one of the sizes.

    Args:
        rows: the sizes, ascending. More than the last go through in groups of it.
        function: gives what takes inputs of so many rows, and gives outputs [B,…].
        inputs: tensors.
        outputs: their types.
    """
    B = tf.shape(inputs[0])[0]

    def filled(size: int):
        padded = [
            tf.ensure_shape(fit(x, 0, size), [size, *x.shape[1:]]) for x in inputs
        ]
        return tuple(y[:B] for y in function(size)(*padded))

    def many():
        return in_groups(rows[-1], function(rows[-1]), inputs, outputs)

    branches = [partial(filled, size) for size in rows]
    return tf.switch_case(position(rows, B), [*branches, many])


def position(sizes: Sequence[int], size):
    """How many of the ascending ``sizes`` are smaller than ``size``."""
    return tf.reduce_sum(tf.cast(tf.constant(sizes) < size, tf.int32))


def in_groups(size: int, function: Function, inputs: Sequence[Any], outputs: Specs):
    """``function`` of ``size`` rows of the inputs [B,…] at a time."""
    B = tf.shape(inputs[0])[0]
    groups = -(-B // size)

    def split(x):
        x = fit(x, 0, groups * size)
        split = tf.reshape(x, tf.concat([[groups, size], tf.shape(x)[1:]], 0))
        return tf.ensure_shape(split, [None, size, *x.shape[1:]])

    stacked = tf.map_fn(
        lambda inputs: tuple(function(*inputs)),
        tuple(map(split, inputs)),
        fn_output_signature=tuple(outputs),
        parallel_iterations=1,
    )
    return tuple(
        tf.reshape(y, tf.concat([[groups * size], tf.shape(y)[2:]], 0))[:B]
        for y in stacked
    )

"""Where XLA's compiler for processors needs help, each with what happens without.

Found with the XLA inside TensorFlow 2.21. ``compiled`` says that it compiles the graph:
outside of it there is no barrier, and sums need no help.
``tests/models/tf/test_xla_workarounds.py`` looks at what it makes of them.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

_SUMS = 8


def barrier(*tensors: Any, compiled: bool) -> tuple[Any, ...]:
    """The tensors, computed before what follows.

    XLA takes minutes to compile some hundred dependent operations, as the rounds of a
    cipher are, in one piece.
    """
    return tuple(xla.optimization_barrier(*tensors)) if compiled else tensors


def sum_rows(measure: Callable[..., Any], *of: Any, compiled: bool) -> Any:
    """Sums [B] of ``measure`` of the numbers in ``of``, each [B,V].

    XLA adds a row's numbers up one by one. Parts of a row it adds to one another in
    vector code, in the same loop that measures them.
    """
    if not compiled:
        return tf.reduce_sum(measure(*of), axis=1)
    size = of[0].shape[1] // _SUMS

    def measured(start, end=None):
        return measure(*(x[:, start:end] for x in of))

    parts = [measured(i * size, (i + 1) * size) for i in range(_SUMS)]
    sums = functools.reduce(operator.add, parts)
    return tf.reduce_sum(tf.concat([sums, measured(_SUMS * size)], axis=1), axis=1)


def first_argmax(x: Any) -> Any:
    """The largest value's index [B] int32 of ``x`` [B,V]; the lowest among equals.

    In two steps, of which XLA makes vector code; of an argmax it doesn't.
    """
    V = tf.shape(x)[1]
    largest = tf.reduce_max(x, axis=1, keepdims=True)
    index = tf.reduce_min(tf.where(x == largest, tf.range(V), V), axis=1)
    return tf.minimum(index, V - 1)  # of NaNs none is the largest

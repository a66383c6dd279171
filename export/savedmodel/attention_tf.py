"""Attention of the serving graph: one new token of each row, or many in blocks."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ...models.tf import model as opt

_BLOCK = 256
"""Queries at a time. Each block looks at keys up to its own end only, and no scores of
all queries with all keys are there at once."""


def visible(slots, T):
    """What is added to scores: bias [B,1,S,T] of queries at ``slots`` [B,S]."""
    return tf.where(tf.range(T) <= slots[:, None, :, None], 0.0, tf.float32.min)


def attend_token(q, keys, values, bias):
    """Context [B,H,1,D] of one query in each row over ``keys`` [B,H,T,D].

    In TensorFlow's own kernels: oneDNN's, which TensorFlow takes for these operations
    elsewhere, take two to three times as long for one row of a matrix
    (``tests/benchmarks/claims.py tf-attention``).
    """
    scores = _matmul(q, keys, transpose_b=True) + bias
    weights = tf.exp(scores - tf.reduce_max(scores, axis=-1, keepdims=True))
    total = tf.reduce_sum(weights, axis=-1, keepdims=True)
    return _matmul(weights, values) / total


def _matmul(x, y, *, transpose_b: bool = False):
    return tf.raw_ops.BatchMatMulV3(
        x=x, y=y, Tout=tf.float32, adj_x=False, adj_y=transpose_b
    )


def attend_blocks(q, keys, values, start):
    """Context [B,H,S,D] of queries at slots ``start`` [B] and following, a block of
    them after the other."""
    S, T = opt.shape(q)[2], opt.shape(keys)[2]
    last = tf.reduce_max(start)
    blocks = -(-S // _BLOCK)

    def body(i, done) -> Any:
        begin, end = i * _BLOCK, tf.minimum((i + 1) * _BLOCK, S)
        # One block takes all keys as they are: a part of them would be a copy.
        seen = tf.where(blocks > 1, tf.minimum(last + end, T), T)
        bias = visible(start[:, None] + tf.range(begin, end), seen)
        scores = tf.matmul(q[:, :, begin:end], keys[:, :, :seen], transpose_b=True)
        block = tf.matmul(tf.nn.softmax(scores + bias), values[:, :, :seen])
        return i + 1, tf.concat([done, block], axis=2)

    shape = tf.TensorShape([None, q.shape[1], None, q.shape[3]])
    _, context = tf.while_loop(
        lambda i, done: i < blocks,
        body,
        (tf.constant(0), q[:, :, :0]),
        shape_invariants=(tf.TensorShape([]), shape),
        parallel_iterations=1,
    )
    return context

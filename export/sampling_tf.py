"""Choosing tokens inside the TensorFlow graph, for all rows at once.

The order of the steps, and what they mean, is that of the numpy reference,
``runtime/sampling.py``. Reads side by side with ``sampling_jax.py``. Nothing is
sorted: thresholds come from a binary search over the bits of float32.

    B rows   V vocabulary
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_LOWEST = -(2**31)


class Wanted(NamedTuple):
    """How each row's tokens are chosen; the contract's inputs, [B] (``seed`` [B,2])."""

    seed: Any
    temperature: Any
    top_k: Any
    top_p: Any
    repetition_penalty: Any


def choose(logits, wanted: Wanted, position, seen, hold=tf.identity):
    """Tokens [B] int32 and their log-probabilities [B] from raw ``logits`` [B,V].

    ``position`` [B] is the new tokens' slot; ``seen`` [B,V] boolean are the ids that
    the repetition penalty looks at. ``hold(x)`` keeps a compiler from computing ``x``
    inside of what follows: logarithms are slow inside of an argmax.
    """
    x = tf.cond(
        tf.reduce_any(wanted.repetition_penalty != 1),
        lambda: penalize(logits, wanted.repetition_penalty[:, None], seen),
        lambda: logits,
    )
    best = first_argmax(x)
    token = tf.cond(
        tf.reduce_any(wanted.temperature != 0),
        lambda: tf.where(
            wanted.temperature == 0, best, draw(x, wanted, position, hold)
        ),
        lambda: best,
    )
    chosen = tf.gather(logits, token, axis=1, batch_dims=1)
    return token, chosen - tf.reduce_logsumexp(logits, axis=1)


def penalize(x, penalty, seen):
    """The repetition penalty over the ids ``seen``."""
    return tf.where(seen, tf.where(x > 0, x / penalty, x * penalty), x)


def first_argmax(x):
    """The largest value's index [B] int32; the lowest one among equals.

    In two steps, which a compiler makes vector code of; of an argmax it doesn't.
    """
    V = tf.shape(x)[1]
    largest = tf.reduce_max(x, axis=1, keepdims=True)
    index = tf.reduce_min(tf.where(x == largest, tf.range(V), V), axis=1)
    return tf.minimum(index, V - 1)  # of NaNs none is the largest


def draw(x, wanted: Wanted, position, hold):
    """One token of each row [B], as if its temperature were not 0."""
    x = x / tf.where(wanted.temperature == 0, 1.0, wanted.temperature)[:, None]
    keys = ordered_bits(x)
    lowest = tf.fill([tf.shape(x)[0]], tf.constant(_LOWEST))
    least = tf.cond(
        tf.reduce_any(wanted.top_k > 0),
        lambda: top_k_threshold(keys, wanted.top_k),
        lambda: lowest,
    )
    least = tf.cond(
        tf.reduce_any(wanted.top_p < 1),
        lambda: top_p_threshold(x, keys, least, wanted.top_p),
        lambda: least,
    )
    noise = gumbel(wanted.seed, position, tf.shape(x)[1])
    return first_argmax(hold(tf.where(keys >= least[:, None], x + noise, x.dtype.min)))


def ordered_bits(x):
    """int32 in the same order as the float32 ``x`` (−0 made 0 first)."""
    bits = tf.bitcast(x + 0.0, tf.int32)
    return tf.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def top_k_threshold(keys, k):
    """The k-th largest of each row's ``keys`` [B]; the least number where k is off."""
    k = tf.where(k > 0, k, tf.shape(keys)[1])

    def enough(least):
        kept = tf.cast(keys >= least[:, None], tf.int32)
        return tf.reduce_sum(kept, axis=1) >= k

    return _largest(enough, tf.shape(keys)[0])


def top_p_threshold(x, keys, least, p):
    """The smallest key [B], at least ``least``, above which a mass below p lies."""
    top = tf.reduce_max(x, axis=1, keepdims=True)
    weights = tf.where(keys >= least[:, None], tf.exp(x - top), 0.0)
    limit = p * tf.reduce_sum(weights, axis=1)

    def too_low(at):
        above = tf.reduce_sum(tf.where(keys > at[:, None], weights, 0.0), axis=1)
        return above >= limit

    found = _largest(too_low, tf.shape(keys)[0])
    # `found` is the last key that still has p above it: the next one is kept.
    found = tf.where(too_low(found), found + 1, found)
    return tf.where(p < 1, tf.maximum(found, least), least)


def _largest(holds, B):
    """For each row the largest int32 for which ``holds``, true up to some number.

    The number's bits are settled from the highest, which is the sign.
    """

    def settle(bit, least):
        higher = least + tf.bitwise.left_shift(1, 31 - bit)
        return bit + 1, tf.where(holds(higher), higher, least)

    start = tf.fill([B], tf.constant(_LOWEST))
    return tf.while_loop(lambda bit, _: bit < 32, settle, (0, start))[1]


def gumbel(seed, position, V):
    """Noise [B,V]: −log(−log u), u from Threefry with counter (position, token id)."""
    ids = tf.bitcast(tf.range(V), tf.uint32)[None, :]
    key = tf.bitcast(seed, tf.uint32)
    at = tf.bitcast(position, tf.uint32)[:, None]
    zeros = tf.zeros([tf.shape(seed)[0], V], tf.uint32)
    word = threefry2x32(key[:, :1], key[:, 1:], at + zeros, ids + zeros)
    high = tf.bitcast(tf.bitwise.right_shift(word, tf.constant(9, tf.uint32)), tf.int32)
    u = (tf.cast(high, tf.float32) + 0.5) * 2.0**-23
    return -tf.math.log(-tf.math.log(u))


def threefry2x32(k0, k1, x0, x1):
    """First word of Threefry-2x32 with 20 rounds (Random123), uint32."""
    schedule = tf.stack([k0, k1, k0 ^ k1 ^ tf.constant(_PARITY, tf.uint32)])
    rotations = tf.constant(_ROTATIONS, tf.uint32)

    def four_rounds(group, x0, x1):
        for turn in tf.unstack(tf.gather(rotations, group % 2)):
            x0 = x0 + x1
            right = tf.constant(32, tf.uint32) - turn
            x1 = tf.bitwise.left_shift(x1, turn) | tf.bitwise.right_shift(x1, right)
            x1 = x1 ^ x0
        x0 = x0 + tf.gather(schedule, (group + 1) % 3)
        last = tf.cast(group + 1, tf.uint32)
        return group + 1, x0, x1 + tf.gather(schedule, (group + 2) % 3) + last

    # A loop, since XLA takes minutes to compile the rounds in one piece.
    start = (0, x0 + k0, x1 + k1)
    return tf.while_loop(lambda group, *_: group < 5, four_rounds, start)[1]

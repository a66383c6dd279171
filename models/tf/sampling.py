"""Choosing tokens inside the TensorFlow graph, for all rows at once.

The order of the steps, and what they mean, is that of the numpy reference: what
modifies logits is shared with it (``generation/modifiers.py``), what filters and draws
equals ``generation/sampling.py``. Reads side by side with ``flax/sampling.py``.
Nothing is sorted: thresholds come from a binary search over the bits of float32.

    B rows   V vocabulary
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.ops import control_flow_util

from ..generation.modifiers import Marks, min_p_threshold, modify
from ..generation.sampling import (
    PARITY,
    ROTATIONS,
    TOP_LOGPROBS,
    SampledTokens,
)
from ..generation.sampling_params import SamplingParams
from .arrays import ARRAYS

_LOWEST = -(2**31)
LARGEST_NOISE = 16.64  # of the largest u, 1 − 2⁻²⁴: −log(−log u) = 16.6355
_FEW = 4  # a token by itself takes two to three times as long as one of all


def choose(
    logits, params: SamplingParams, marks: Marks, position, new
) -> SampledTokens:
    """Tokens from raw ``logits`` [B,V].

    ``position`` [B] is the new tokens' slot, ``new`` how many the call has generated so
    far.
    """
    x = tf.cond(
        tf.reduce_any(marks.modified),
        lambda: modify(ARRAYS, logits, params, marks, new),
        lambda: logits,
    )
    best = first_argmax(x)
    token = tf.cond(
        tf.reduce_any(params.temperature != 0),
        lambda: tf.where(params.temperature == 0, best, draw(x, params, position)),
        lambda: best,
    )
    chosen = tf.gather(logits, token, axis=1, batch_dims=1)
    top = tf.reduce_max(logits, axis=1)
    mass = tf.reduce_sum(tf.exp(logits - top[:, None]), axis=1)
    normalizer = top + tf.math.log(mass)
    asked = params.top_logprobs
    reported = tf.cond(
        tf.reduce_any(asked > 0),
        lambda: likeliest(logits, normalizer, asked),
        lambda: nothing_reported(tf.shape(logits)[0]),
    )
    return SampledTokens(token, chosen - normalizer, *reported)


def likeliest(logits, normalizer, asked):
    """Ids and log-probabilities [B,5] of the ``asked`` [B] likeliest tokens.

    ``normalizer`` [B] is the logarithm of the sum of the exponentials.
    """
    k = min(TOP_LOGPROBS, logits.shape[1])
    values, ids = tf.math.top_k(logits, k)
    there, rest = tf.range(k) < asked[:, None], [[0, 0], [0, TOP_LOGPROBS - k]]
    values = tf.where(there, values - normalizer[:, None], 0.0)
    ids = tf.pad(tf.where(there, ids, -1), rest, constant_values=-1)
    return ids, tf.pad(values, rest)


def nothing_reported(B):
    """:func:`likeliest` where none is asked for."""
    return tf.fill([B, TOP_LOGPROBS], -1), tf.zeros([B, TOP_LOGPROBS])


def first_argmax(x):
    """The largest value's index [B] int32; the lowest one among equals."""
    return tf.argmax(x, axis=1, output_type=tf.int32)


def draw(x, params: SamplingParams, position):
    """One token of each row [B], as if its temperature were not 0."""
    x, kept = warp(x, params)

    def from_all():
        noise = gumbel(params.seed, position, tf.shape(x)[1])
        return first_argmax(tf.where(kept, x + noise, x.dtype.min))

    if control_flow_util.GraphOrParentsInXlaContext(ops.get_default_graph()):
        return from_all()
    likely = likely_to_win(x, kept, params.seed, position)
    few = tf.math.count_nonzero(likely, dtype=tf.int32) < tf.size(x) // _FEW
    return tf.cond(few, lambda: draw_from(likely, x, params.seed, position), from_all)


def likely_to_win(x, kept, seed, position):
    """Which tokens [B,V] may have the most with their noise.

    Not those to which the largest noise could be added, and which still had less than
    the row's likeliest token has with its own.
    """
    likeliest_id = first_argmax(x)
    to_beat = tf.gather(x, likeliest_id, axis=1, batch_dims=1)
    to_beat += noise_of(seed, position, likeliest_id)
    return kept & (x + LARGEST_NOISE >= to_beat[:, None])


def draw_from(likely, x, seed, position):
    """:func:`draw`'s token, by the noise of the ``likely`` [B,V] alone.

    How many those are is known when they are counted, which XLA doesn't allow.
    """
    B, V = tf.unstack(tf.shape(x))
    at = tf.where(likely)
    rows, ids = tf.unstack(tf.cast(at, tf.int32), axis=1)
    noise = noise_of(tf.gather(seed, rows), tf.gather(position, rows), ids)
    x = tf.gather_nd(x, at) + noise
    largest = tf.gather(tf.math.unsorted_segment_max(x, rows, B), rows)
    index = tf.where(x == largest, ids, V)
    return tf.minimum(tf.math.unsorted_segment_min(index, rows, B), V - 1)


def warp(x, params: SamplingParams):
    """Logits by the temperature, and which of them min-p, top-k and top-p keep."""
    x = x / tf.where(params.temperature == 0, 1.0, params.temperature)[:, None]
    keys = ordered_bits(x)
    likely = ordered_bits(min_p_threshold(ARRAYS, x, params.min_p))
    least = tf.cond(
        tf.reduce_any(params.top_k > 0),
        lambda: tf.maximum(top_k_threshold(keys, params.top_k), likely),
        lambda: likely,
    )
    least = tf.cond(
        tf.reduce_any(params.top_p < 1),
        lambda: top_p_threshold(x, keys, least, params.top_p),
        lambda: least,
    )
    return x, keys >= least[:, None]


def ordered_bits(x):
    """int32 in the same order as the float32 ``x`` (−0 made 0 first)."""
    bits = tf.bitcast(x + 0.0, tf.int32)
    return tf.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def from_ordered_bits(keys):
    """The inverse of :func:`ordered_bits`."""
    return tf.bitcast(tf.where(keys < 0, keys ^ 0x7FFFFFFF, keys), tf.float32)


def top_k_threshold(keys, k):
    """A number [B] that k of a row's ``keys`` [B,V] reach; more if some are equal."""
    k = tf.where(k > 0, k, tf.shape(keys)[1])

    def reaching(at):
        return tf.reduce_sum(tf.cast(keys >= at[:, None], tf.int32), axis=1)

    return _largest(reaching, k, lambda key: tf.ones_like(key, tf.float32))


def top_p_threshold(x, keys, least, p):
    """The smallest key [B], at least ``least``, above which a mass below p lies."""
    top = tf.reduce_max(x, axis=1)
    weights = tf.where(keys >= least[:, None], tf.exp(x - top[:, None]), 0.0)

    def above(at):
        return tf.reduce_sum(tf.where(keys > at[:, None], weights, 0.0), axis=1)

    def weight(key):
        return tf.exp(from_ordered_bits(key) - top)

    limit = p * tf.reduce_sum(weights, axis=1)
    # The last number that still has p above it: what is above it is kept, the likeliest
    # in any case, even if p is so small that there is nothing left of the limit.
    threshold = tf.minimum(_largest(above, limit, weight), ordered_bits(top) - 1) + 1
    return tf.where(p < 1, tf.maximum(threshold, least), least)


def _largest(measure, target, weight):
    """The largest int32 [B] at which a falling ``measure`` is at least ``target`` [B].

    Its bits are settled from the highest, which is the sign, until they are all known.
    Or until larger numbers would keep the same tokens: because every row measures what
    is wanted, or has at most one token left between the number and the lowest that is
    too large. A token there measures at least ``weight(number)``.
    """

    def open_at(bit, least, measured, beyond):
        between = tf.cast(measured - beyond, tf.float32)
        alone = between < 1.5 * weight(least)  # two would measure 2, or a little less
        return (bit < 32) & ~tf.reduce_all((measured == target) | alone)

    def settle(bit, least, measured, beyond):
        higher = least + tf.bitwise.left_shift(1, 31 - bit)
        there = measure(higher)
        holds = there >= target
        return (
            bit + 1,
            tf.where(holds, higher, least),
            tf.where(holds, there, measured),
            tf.where(holds, beyond, there),
        )

    lowest = tf.fill(tf.shape(target), tf.constant(_LOWEST))
    start = 0, lowest, measure(lowest), tf.zeros_like(target)
    return tf.while_loop(open_at, settle, start)[1]


def gumbel(seed, position, V):
    """Noise [B,V]: −log(−log u), u from Threefry with counter (position, token id)."""
    zeros = tf.zeros([tf.shape(seed)[0], V], tf.int32)
    ids = tf.range(V)[None, :] + zeros
    return noise_of(seed[:, None], position[:, None] + zeros, ids)


def noise_of(seed, position, ids):
    """:func:`gumbel` of tokens ``ids`` [N] at ``position`` [N], by ``seed`` [N,2]."""
    k0, k1 = tf.unstack(tf.bitcast(seed, tf.uint32), axis=-1)
    at, ids = (tf.bitcast(x, tf.uint32) for x in (position, ids))
    return noise_from(threefry2x32(k0, k1, at, ids))


def noise_from(word):
    """−log(−log u) of random 32 bits."""
    high = tf.bitcast(tf.bitwise.right_shift(word, tf.constant(9, tf.uint32)), tf.int32)
    u = (tf.cast(high, tf.float32) + 0.5) * 2.0**-23
    return -tf.math.log(-tf.math.log(u))


def threefry2x32(k0, k1, x0, x1):
    """First word of Threefry-2x32 with 20 rounds (Random123), uint32."""
    keys = (k0, k1, k0 ^ k1 ^ tf.constant(PARITY, tf.uint32))
    x0, x1 = x0 + k0, x1 + k1
    for group in range(5):
        for turn in ROTATIONS[group % 2]:
            x0 = x0 + x1
            left = tf.bitwise.left_shift(x1, tf.constant(turn, tf.uint32))
            right = tf.bitwise.right_shift(x1, tf.constant(32 - turn, tf.uint32))
            x1 = (left | right) ^ x0
        last = tf.constant(group + 1, tf.uint32)
        x0, x1 = x0 + keys[(group + 1) % 3], x1 + keys[(group + 2) % 3] + last
    return x0

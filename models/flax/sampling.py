"""Choosing tokens inside the JAX graph, for all rows at once.

The order of the steps, and what they mean, is that of the numpy reference: what
modifies logits is shared with it (``generation/modifiers.py``), what filters and draws
equals ``generation/sampling.py``. Reads side by side with ``tf/sampling.py``.
Nothing is sorted: thresholds come from a binary search over the bits of float32.

    B rows   V vocabulary
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from ..generation.modifiers import Marks, min_p_threshold, modify
from ..generation.sampling import (
    PARITY,
    ROTATIONS,
    TOP_LOGPROBS,
    SampledTokens,
)
from ..generation.sampling_params import SamplingParams
from .arrays import ARRAYS
from .xla_workarounds import barrier, first_argmax, sum_rows

_LOWEST = -(2**31)


def choose(
    logits, params: SamplingParams, marks: Marks, position, new
) -> SampledTokens:
    """Tokens from raw ``logits`` [B,V].

    ``position`` [B] is the new tokens' slot, ``new`` how many the call has generated so
    far.
    """
    x = lax.cond(
        jnp.any(marks.modified),
        lambda: modify(ARRAYS, logits, params, marks, new),
        lambda: logits,
    )
    best = first_argmax(x)
    token = lax.cond(
        jnp.any(params.temperature != 0),
        lambda: jnp.where(params.temperature == 0, best, draw(x, params, position)),
        lambda: best,
    )
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1, mode="clip")[:, 0]
    top = jnp.max(logits, axis=1)

    def mass(x):
        return jnp.exp(x - top[:, None])

    normalizer = top + jnp.log(sum_rows(mass, logits))
    asked = params.top_logprobs
    reported = lax.cond(
        jnp.any(asked > 0),
        lambda: likeliest(logits, normalizer, asked),
        lambda: nothing_reported(len(logits)),
    )
    return SampledTokens(token, chosen - normalizer, *reported)


def likeliest(logits, normalizer, asked):
    """Ids and log-probabilities [B,5] of the ``asked`` [B] likeliest tokens.

    ``normalizer`` [B] is the logarithm of the sum of the exponentials.
    """
    all_ids = jnp.arange(logits.shape[1], dtype=jnp.int32)

    def take(x, _):
        ids, values = first_argmax(x), jnp.max(x, axis=1)
        return jnp.where(all_ids == ids[:, None], -jnp.inf, x), (ids, values)

    _, (ids, values) = lax.scan(take, logits, None, TOP_LOGPROBS)
    there = jnp.arange(TOP_LOGPROBS) < jnp.minimum(asked, len(all_ids))[:, None]
    values = jnp.where(there, values.T - normalizer[:, None], 0.0)
    return jnp.where(there, ids.T, -1), values


def nothing_reported(B: int):
    """:func:`likeliest` where none is asked for."""
    return jnp.full((B, TOP_LOGPROBS), -1, jnp.int32), jnp.zeros((B, TOP_LOGPROBS))


def draw(x, params: SamplingParams, position):
    """One token of each row [B], as if its temperature were not 0."""
    x, kept = warp(x, params)
    noise = gumbel(params.seed, position, x.shape[1])
    return first_argmax(jnp.where(kept, x + noise, -jnp.inf))


def warp(x, params: SamplingParams):
    """Logits by the temperature, and which of them min-p, top-k and top-p keep."""
    x = x / jnp.where(params.temperature == 0, 1.0, params.temperature)[:, None]
    keys = ordered_bits(x)
    likely = ordered_bits(min_p_threshold(ARRAYS, x, params.min_p))
    least = lax.cond(
        jnp.any(params.top_k > 0),
        lambda: jnp.maximum(top_k_threshold(keys, params.top_k), likely),
        lambda: likely,
    )
    least = lax.cond(
        jnp.any(params.top_p < 1),
        lambda: top_p_threshold(x, keys, least, params.top_p),
        lambda: least,
    )
    return x, keys >= least[:, None]


def ordered_bits(x):
    """int32 in the same order as the float32 ``x`` (−0 made 0 first)."""
    bits = lax.bitcast_convert_type(x + 0.0, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def from_ordered_bits(keys):
    """The inverse of :func:`ordered_bits`."""
    bits = jnp.where(keys < 0, keys ^ 0x7FFFFFFF, keys)
    return lax.bitcast_convert_type(bits, jnp.float32)


def top_k_threshold(keys, k):
    """A number [B] that k of a row's ``keys`` [B,V] reach; more if some are equal."""
    k = jnp.where(k > 0, k, keys.shape[1])

    def reaching(at):
        return sum_rows(lambda keys: (keys >= at[:, None]).astype(jnp.int32), keys)

    return _largest(reaching, k, lambda key: jnp.ones_like(key, jnp.float32))


def top_p_threshold(x, keys, least, p):
    """The smallest key [B], at least ``least``, above which a mass below p lies."""
    top = jnp.max(x, axis=1)
    weights = jnp.where(keys >= least[:, None], jnp.exp(x - top[:, None]), 0.0)

    def above(at):
        def counted(keys, weights):
            return jnp.where(keys > at[:, None], weights, 0.0)

        return sum_rows(counted, keys, weights)

    def weight(key):
        return jnp.exp(from_ordered_bits(key) - top)

    limit = p * sum_rows(lambda weights: weights, weights)
    # The last number that still has p above it: what is above it is kept, the likeliest
    # in any case, even if p is so small that there is nothing left of the limit.
    threshold = jnp.minimum(_largest(above, limit, weight), ordered_bits(top) - 1) + 1
    return jnp.where(p < 1, jnp.maximum(threshold, least), least)


def _largest(measure, target, weight):
    """The largest int32 [B] at which a falling ``measure`` is at least ``target`` [B].

    Its bits are settled from the highest, which is the sign, until they are all known.
    Or until larger numbers would keep the same tokens: because every row measures what
    is wanted, or has at most one token left between the number and the lowest that is
    too large. A token there measures at least ``weight(number)``.
    """

    def open_at(state):
        bit, least, measured, beyond = state
        between = (measured - beyond).astype(jnp.float32)
        alone = between < 1.5 * weight(least)  # two would measure 2, or a little less
        return (bit < 32) & ~jnp.all((measured == target) | alone)

    def settle(state):
        bit, least, measured, beyond = state
        higher = least + jnp.left_shift(jnp.int32(1), 31 - bit)
        there = measure(higher)
        holds = there >= target
        return (
            bit + 1,
            jnp.where(holds, higher, least),
            jnp.where(holds, there, measured),
            jnp.where(holds, beyond, there),
        )

    lowest = jnp.full(target.shape, _LOWEST, jnp.int32)
    start = jnp.int32(0), lowest, measure(lowest), jnp.zeros_like(target)
    return lax.while_loop(open_at, settle, start)[1]


def gumbel(seed, position, V):
    """Noise [B,V]: −log(−log u), u from Threefry with counter (position, token id)."""
    ids = jnp.arange(V, dtype=jnp.uint32)[None, :]
    key = lax.bitcast_convert_type(seed, jnp.uint32)
    at = position.astype(jnp.uint32)[:, None]
    zeros = jnp.zeros((seed.shape[0], V), jnp.uint32)
    word = threefry2x32(key[:, :1], key[:, 1:], at + zeros, ids + zeros)
    u = ((word >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-23)
    return -jnp.log(-jnp.log(u))


def threefry2x32(k0, k1, x0, x1):
    """First word of Threefry-2x32 with 20 rounds (Random123), uint32."""
    keys = (k0, k1, k0 ^ k1 ^ jnp.uint32(PARITY))
    x0, x1 = x0 + k0, x1 + k1
    for group in range(5):
        for turn in ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = ((x1 << turn) | (x1 >> (32 - turn))) ^ x0
        last = jnp.uint32(group + 1)
        x0, x1 = x0 + keys[(group + 1) % 3], x1 + keys[(group + 2) % 3] + last
        # XLA takes minutes to compile the rounds in one piece.
        x0, x1 = barrier((x0, x1))
    return x0

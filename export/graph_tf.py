"""The serving graph in TensorFlow: the shared math with a cache that comes in and goes
out explicitly. Reads side by side with ``graph_jax.py``.

``past`` is [L,2,B,H,C,D] float32, rows packed from slot 0, zero where it is unused.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ..models import tf_opt as opt
from ..models.config import OPTConfig
from ..models.weights import PackedWeight


class Matrix(PackedWeight):
    """A stored matrix [out, in] of any of the weight dtypes, multiplied as bfloat16
    where it is that or int8 (whose integers bfloat16 holds exactly)."""

    def __init__(self, values: Any, scale: Any = None) -> None:
        self.values, self.scale = values, scale

    def matmul(self, x):
        dtype = self.values.dtype
        run = tf.bfloat16 if dtype in (tf.int8, tf.bfloat16) else tf.float32
        values = tf.cast(self.values, run)
        y = tf.matmul(tf.cast(x, run), values, transpose_b=True)
        y = tf.cast(y, tf.float32)
        return y if self.scale is None else y * self.scale

    def take(self, rows):
        found = tf.cast(tf.gather(self.values, rows), tf.float32)
        if self.scale is None:
            return found
        return found * tf.gather(self.scale, rows)[..., None]


def pack(x, dtype: str):
    """Vectors [..., D] float32 as the wire carries them; see ``CacheLayout``."""
    if dtype == "float32":
        return x
    *lead, D = opt.shape(x)
    if dtype == "bfloat16":
        pairs = tf.reshape(tf.cast(x, tf.bfloat16), [*lead, D // 2, 2])
        return tf.bitcast(pairs, tf.float32)
    largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
    scale = tf.where(largest > 0, largest / 127.0, 1.0)
    fours = tf.reshape(tf.cast(tf.round(x / scale), tf.int8), [*lead, D // 4, 4])
    return tf.concat([tf.bitcast(fours, tf.float32), scale], axis=-1)


def unpack(wire, dtype: str):
    """The inverse of :func:`pack`, as far as the dtype allows."""
    if dtype == "float32":
        return wire
    *lead, width = opt.shape(wire)
    if dtype == "bfloat16":
        pairs = tf.bitcast(wire, tf.bfloat16)
        return tf.cast(tf.reshape(pairs, [*lead, 2 * width]), tf.float32)
    integers = tf.bitcast(wire[..., :-1], tf.int8)
    values = tf.cast(tf.reshape(integers, [*lead, 4 * (width - 1)]), tf.float32)
    return values * wire[..., -1:]


def positions(config: OPTConfig, start, S):
    """Positions [B,S] from ``start`` [B] on; padding stays inside the table."""
    last = config.max_position_embeddings - 1
    return tf.minimum(start[:, None] + tf.range(S), last)


def extend(config: OPTConfig, params, cache_dtype: str, ids, past, cache_length):
    """Feed ``ids`` [B,S] behind the cache: hidden [B,S,W] and wire rows [L,2,B,H,S,·]."""
    B, S = opt.shape(ids)
    C = opt.shape(past)[4]
    at = positions(config, cache_length, S)
    hidden = opt.embed(config, params, opt.take(params["embed_tokens"], ids), at)
    cached = tf.broadcast_to(
        (tf.range(C) < cache_length[:, None])[:, None, None, :], [B, 1, S, C]
    )
    causal = tf.range(S)[None, :] <= tf.range(S)[:, None]
    mask = tf.concat([cached, tf.broadcast_to(causal, [B, 1, S, S])], axis=-1)

    def store(old, k, v):
        wire = pack(k, cache_dtype), pack(v, cache_dtype)
        k, v = (unpack(x, cache_dtype) for x in wire)
        return tf.concat([old[0], k], axis=2), tf.concat([old[1], v], axis=2), wire

    layers = [tf.unstack(layer) for layer in tf.unstack(past)]
    done = opt.decoder(config, params, hidden, mask, past=layers, store=store)
    return done.last_hidden_state, tf.stack([tf.stack(wire) for wire in done.cache])


def full_logits(config: OPTConfig, params, ids, mask):
    """Logits [B,S,V] of whole rows; ``mask`` [B,S] as Hugging Face has it."""
    mask = tf.cast(mask, tf.int32)
    at = tf.minimum(opt.positions_from_mask(mask), config.max_position_embeddings - 1)
    done = opt.base_model(config, params, ids, mask, position_ids=at)
    return opt.lm_logits(config, params, done.last_hidden_state)


def token_logprobs(config: OPTConfig, params, ids, hidden):
    """Log-probability [B,S] of each token given those before it; 0 for the first."""
    logits = opt.lm_logits(config, params, hidden[:, :-1])
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(ids[:, 1:], logits)
    return tf.pad(-losses, [[0, 0], [1, 0]])

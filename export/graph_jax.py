"""The serving graph in JAX: the shared math with a cache that comes in and goes out
explicitly. Reads side by side with ``graph_tf.py``.

``past`` is [L,2,B,H,C,D] float32, rows packed from slot 0, zero where it is unused.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..models import flax_opt as opt
from ..models.config import OPTConfig
from ..models.weights import PackedWeight


class Matrix(PackedWeight):
    """A stored matrix [out, in] of any of the weight dtypes, multiplied in float32."""

    def __init__(self, values: Any, scale: Any = None) -> None:
        self.values, self.scale = values, scale

    def matmul(self, x):
        y = x @ self.values.astype(jnp.float32).T
        return y if self.scale is None else y * self.scale

    def take(self, rows):
        found = opt.take(self.values, rows).astype(jnp.float32)
        if self.scale is None:
            return found
        return found * opt.take(self.scale, rows)[..., None]


def pack(x, dtype: str):
    """Vectors [..., D] float32 as the wire carries them; see ``CacheLayout``."""
    if dtype == "float32":
        return x
    *lead, D = x.shape
    if dtype == "bfloat16":
        pairs = x.astype(jnp.bfloat16).reshape(*lead, D // 2, 2)
        return lax.bitcast_convert_type(pairs, jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    scale = jnp.where(largest > 0, largest / 127.0, 1.0)
    fours = jnp.round(x / scale).astype(jnp.int8).reshape(*lead, D // 4, 4)
    wire = lax.bitcast_convert_type(fours, jnp.float32)
    return jnp.concatenate([wire, scale], axis=-1)


def unpack(wire, dtype: str):
    """The inverse of :func:`pack`, as far as the dtype allows."""
    if dtype == "float32":
        return wire
    *lead, width = wire.shape
    if dtype == "bfloat16":
        pairs = lax.bitcast_convert_type(wire, jnp.bfloat16)
        return pairs.reshape(*lead, 2 * width).astype(jnp.float32)
    integers = lax.bitcast_convert_type(wire[..., :-1], jnp.int8)
    values = integers.reshape(*lead, 4 * (width - 1)).astype(jnp.float32)
    return values * wire[..., -1:]


def positions(config: OPTConfig, start, S):
    """Positions [B,S] from ``start`` [B] on; padding stays inside the table."""
    last = config.max_position_embeddings - 1
    return jnp.minimum(start[:, None] + jnp.arange(S, dtype=jnp.int32), last)


def extend(config: OPTConfig, params, cache_dtype: str, ids, past, cache_length):
    """Feed ``ids`` [B,S] behind the cache: hidden [B,S,W] and wire rows [L,2,B,H,S,·]."""
    B, S = ids.shape
    C = past.shape[4]
    at = positions(config, cache_length, S)
    hidden = opt.embed(config, params, opt.take(params["embed_tokens"], ids), at)
    cached = jnp.broadcast_to(
        (jnp.arange(C) < cache_length[:, None])[:, None, None, :], (B, 1, S, C)
    )
    causal = jnp.arange(S)[None, :] <= jnp.arange(S)[:, None]
    mask = jnp.concatenate([cached, jnp.broadcast_to(causal, (B, 1, S, S))], axis=-1)

    def store(old, k, v):
        wire = pack(k, cache_dtype), pack(v, cache_dtype)
        k, v = (unpack(x, cache_dtype) for x in wire)
        keys = jnp.concatenate([old[0], k], axis=2)
        return keys, jnp.concatenate([old[1], v], axis=2), wire

    done = opt.decoder(config, params, hidden, mask, past=list(past), store=store)
    return done.last_hidden_state, jnp.stack([jnp.stack(wire) for wire in done.cache])


def full_logits(config: OPTConfig, params, ids, mask):
    """Logits [B,S,V] of whole rows; ``mask`` [B,S] as Hugging Face has it."""
    at = jnp.minimum(opt.positions_from_mask(mask), config.max_position_embeddings - 1)
    done = opt.base_model(config, params, ids, mask, position_ids=at)
    return opt.lm_logits(config, params, done.last_hidden_state)


def token_logprobs(config: OPTConfig, params, ids, hidden):
    """Log-probability [B,S] of each token given those before it; 0 for the first."""
    logits = opt.lm_logits(config, params, hidden)
    following = jnp.roll(ids, -1, axis=1)[..., None]
    chosen = jnp.take_along_axis(
        jax.nn.log_softmax(logits), following, axis=-1, mode="clip"
    )
    shifted = jnp.roll(chosen[..., 0], 1, axis=1)
    return jnp.where(jnp.arange(ids.shape[1]) == 0, 0.0, shifted)

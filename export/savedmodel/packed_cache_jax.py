"""A cache's vectors as the wire carries them, in JAX: float32, or pairs of bfloat16 or
four int8 numbers in each. Reads side by side with ``packed_cache_tf.py``.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax


def pack(x, dtype: str):
    """Vectors [..., D] float32 as the wire carries them; see ``CacheLayout``.

    By shifts: XLA has no bitcast between types of different size for symbolic shapes.
    """
    if dtype == "float32":
        return x
    if dtype == "bfloat16":
        wide = x.astype(jnp.bfloat16).astype(jnp.float32)
        return _words(lax.bitcast_convert_type(wide, jnp.uint32) >> 16, 2)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    scale = jnp.where(largest > 0, _coarse(largest / 127.0), 1.0)
    integers = jnp.round(x / scale).astype(jnp.int32)
    wire = _words(lax.bitcast_convert_type(integers, jnp.uint32) & 0xFF, 4)
    return jnp.concatenate([wire, scale], axis=-1)


def _words(parts, count: int):
    """``count`` neighbours [..., D] uint32 in one float32, the first one lowest."""
    bits = 32 // count
    groups = parts.reshape(*parts.shape[:-1], parts.shape[-1] // count, count)
    words = groups[..., 0]
    for i in range(1, count):
        words = words | (groups[..., i] << (bits * i))
    return lax.bitcast_convert_type(words, jnp.float32)


def _coarse(scale):
    """``scale`` with 16 significant bits, rounded up: 127 · scale is then exact, so
    that packing what was unpacked changes nothing."""
    bits = lax.bitcast_convert_type(scale, jnp.int32)
    return lax.bitcast_convert_type((bits + 0xFF) & ~0xFF, jnp.float32)


def unpack(wire, dtype: str):
    """The inverse of :func:`pack`, as far as the dtype allows."""
    if dtype == "float32":
        return wire
    *lead, width = wire.shape
    if dtype == "bfloat16":
        words = lax.bitcast_convert_type(wire, jnp.uint32)
        pairs = jnp.stack([words << 16, (words >> 16) << 16], axis=-1)
        pairs = lax.bitcast_convert_type(pairs, jnp.float32)
        return pairs.reshape(*lead, 2 * width)
    words = lax.bitcast_convert_type(wire[..., :-1], jnp.int32)
    fours = jnp.stack([(words << left) >> 24 for left in (24, 16, 8, 0)], axis=-1)
    values = fours.astype(jnp.float32).reshape(*lead, 4 * (width - 1))
    return values * wire[..., -1:]

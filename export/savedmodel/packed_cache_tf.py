"""A cache's vectors as the wire carries them, in TensorFlow: float32, or pairs of
bfloat16 or four int8 numbers in each. Reads side by side with ``packed_cache_jax.py``.
"""

from __future__ import annotations

import tensorflow as tf

from ...models.tf import model as opt


def pack(x, dtype: str):
    """Vectors [..., D] float32 as the wire carries them; see ``CacheLayout``."""
    if dtype == "float32":
        return x
    *lead, D = opt.shape(x)
    if dtype == "bfloat16":
        pairs = tf.reshape(tf.cast(x, tf.bfloat16), [*lead, D // 2, 2])
        return tf.bitcast(pairs, tf.float32)
    integers, scale = _integers(x)
    fours = tf.reshape(tf.cast(integers, tf.int8), [*lead, D // 4, 4])
    return tf.concat([tf.bitcast(fours, tf.float32), scale], axis=-1)


def rounded(x, dtype: str):
    """``unpack(pack(x, dtype), dtype)``, in fewer operations."""
    if dtype == "float32":
        return x
    if dtype == "bfloat16":
        return tf.cast(tf.cast(x, tf.bfloat16), tf.float32)
    integers, scale = _integers(x)
    return integers * scale


def _integers(x):
    """``x`` [..., D] as whole numbers from -127 to 127 times a scale [..., 1]."""
    largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
    scale = tf.where(largest > 0, _coarse(largest / 127.0), 1.0)
    return tf.round(x / scale), scale


def _coarse(scale):
    """``scale`` with 16 significant bits, rounded up: 127 · scale is then exact, so
    that packing what was unpacked changes nothing."""
    bits = tf.bitcast(scale, tf.int32)
    return tf.bitcast((bits + 0xFF) & ~0xFF, tf.float32)


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

"""A client's cache in pages, as compiled programs read it; in plain TensorFlow.

A compiler makes a program for each shape that it sees. Pages for all of a model's
positions have one shape whatever the size of a cache, and those that are not in use
are never touched: their memory is never more than reserved.

    B rows   C slots given   L layers   H heads   D head size
    P pages   T slots of a page   S new tokens
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from ...runtime.contract import CacheLayout
from .packed_cache_tf import unpack
from .row_groups import fit


class Pages(NamedTuple):
    """What the programs read of a cache."""

    kv: Any  # [P,L,2,B,H,T,D] float32
    filled: Any  # [P,B] int32: how many slots of a page a row uses, from the first on
    used: Any  # int32: how many pages are in use


def empty(layout: CacheLayout, B: int, *, pages: int, slots: int) -> Pages:
    """No page in use."""
    L, H, D = layout.layers, layout.heads, layout.head_dim
    kv = tf.raw_ops.Empty(shape=[pages, L, 2, B, H, slots, D], dtype=tf.float32)
    return Pages(kv, tf.zeros([pages, B], tf.int32), tf.constant(0))


def append(pages: Pages, rows, length, dtype: str) -> Pages:
    """With ``rows`` of the wire [B,C,L,2,H,·] on pages of their own.

    Of which each row of the batch uses ``length`` [B], from the first slot on.
    """
    T = pages.kv.shape[5]
    count = -(-tf.reduce_max(length) // T)

    def write(i, kv) -> Any:
        page = _page(rows[:, T * i : T * (i + 1)], T, dtype)
        # In place, which is allowed: nobody else holds the array.
        kv = tf.raw_ops.InplaceUpdate(x=kv, i=pages.used + i[None], v=page[None])
        return i + 1, tf.ensure_shape(kv, pages.kv.shape)

    _, kv = tf.while_loop(
        lambda i, _: i < count, write, (tf.constant(0), pages.kv), parallel_iterations=1
    )
    new = tf.range(count)
    filled = tf.clip_by_value(length - T * new[:, None], 0, T)
    at = (pages.used + new)[:, None]
    filled = tf.tensor_scatter_nd_update(pages.filled, at, filled)
    return Pages(kv, filled, pages.used + count)


def _page(rows, T: int, dtype: str):
    """At most T rows of the wire as a page [L,2,B,H,T,D]."""
    return tf.transpose(unpack(fit(rows, 1, T), dtype), [2, 3, 0, 4, 1, 5])

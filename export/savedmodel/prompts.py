"""A prompt before a loop that takes one token of each row at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from .requests import Generated, GenerateRequest


def after_prompt(
    request: GenerateRequest,
    N: int,
    extend: Callable[..., Any],
    loop: Callable[[GenerateRequest], Generated],
) -> Generated:
    """``loop`` on the last token of each row, the others fed before if there are any.

    Args:
        request: of any prompts.
        N: the most tokens that the loop gives.
        extend: gives hidden states and new rows [B,S,L,2,H,·].
        loop: takes a request with ``input_ids`` [B,1].
    """
    ids, length = request.input_ids, request.cache_length
    B, S = tf.unstack(tf.shape(ids))
    last = tf.maximum(request.input_length - 1, 0)

    def feed():
        new = extend(ids, request.cache, length)[1]
        return new, joined(request.cache, new, length)

    def nothing():
        return tf.zeros([B, S, *request.cache.shape[2:]]), request.cache

    new, cache = tf.cond(S > 1, feed, nothing)
    token = tf.gather(ids, last, axis=1, batch_dims=1)
    generated = loop(
        request._replace(
            input_ids=token[:, None],
            input_length=tf.ones_like(token),
            cache=cache,
            cache_length=length + last,
        )
    )
    rows = generated.new_cache[:, :N]
    new_cache = tf.cond(
        S > 1, lambda: joined(new, rows, last)[:, :-1], lambda: tf.identity(rows)
    )
    return Generated(
        tokens=generated.tokens[:, :N],
        logprobs=generated.logprobs[:, :N],
        count=generated.count,
        new_cache=new_cache,
        top_ids=generated.top_ids[:, :N],
        top_logprobs=generated.top_logprobs[:, :N],
    )


def joined(rows, more, length):
    """Each row's first ``length`` slots of ``rows`` [B,C,…], then ``more`` [B,S,…]."""
    C, S = tf.shape(rows)[1], tf.shape(more)[1]
    slot, end = tf.range(C + S), length[:, None]
    source = tf.where(slot < end, slot, tf.minimum(C + slot - end, C + S - 1))
    return tf.gather(tf.concat([rows, more], axis=1), source, axis=1, batch_dims=1)

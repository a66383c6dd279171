"""The signatures of sessions: a cache in the server instead of one in each call.

They compute what the explicit signatures do, by the same functions: rows of a slot are
gathered to a cache, and new rows are scattered to the slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from ...runtime.contract import (
    MESSAGE_LIMIT,
    session_generate_name,
    session_tokens_per_call,
)
from .session_slots import SessionSlots

Body = Callable[..., dict[str, Any]]


class Sessions:
    """Bodies of the signatures, over the explicit ones.

    Args:
        slots: where the caches are.
        decode: the body of ``decode``.
        generate: the body of ``generate_{N}``, which takes N first.
        most_tokens: that a call may have in all of its rows' caches.
    """

    def __init__(
        self, slots: SessionSlots, decode: Body, generate: Body, *, most_tokens: int
    ) -> None:
        self._slots, self._explicit = slots, (decode, generate)
        self._most_tokens = most_tokens

    def bodies(self, tokens_per_call: Sequence[int]) -> dict[str, Body]:
        """By the contract's names."""
        return {
            "session_open": self._open,
            "session_decode": self._decode,
            "session_write": self._write,
            "session_read": self._read,
            "session_copy": self._copy,
            **{
                session_generate_name(n): partial(self._generate, n)
                for n in tokens_per_call
            },
        }

    def rules(self, name: str, inputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """What must hold of a call's values, so that all of it is inside a slot."""
        keys = ("start", "size", "cache_length", "input_length")
        lengths = [inputs[key] for key in keys if key in inputs]
        if N := session_tokens_per_call(name):
            most_generated = tf.clip_by_value(inputs["max_new_tokens"], 1, N)
            lengths.append(most_generated - 1)  # the last one isn't fed
        most = self._slots.positions
        inside = [(length >= 0) & (length <= most) for length in lengths]
        yield (
            f"a call should stay within the {most} positions of a slot",
            tf.reduce_all(inside) & (tf.add_n(lengths) <= most),
        )
        if "cache" in inputs:
            yield (
                "cache_length should be at most the cache's size",
                inputs["cache_length"] <= tf.shape(inputs["cache"])[1],
            )
            return
        key = "size" if "size" in inputs else "cache_length"
        longest = tf.reduce_max(inputs[key])
        rows = tf.cast(longest, tf.int64) * tf.size(inputs["slot"], tf.int64)
        limit = self._most_tokens
        if "size" in inputs:
            limit = min(limit, MESSAGE_LIMIT // self._slots.layout.row_bytes)
        yield f"a call's rows should have at most {limit} slots in all", rows <= limit

    def _open(self, row):
        slot, ticket = self._slots.open(row)
        return {"slot": slot, "ticket": ticket}

    def _generate(
        self,
        N: int,
        *,
        slot,
        ticket,
        cache_length,
        max_new_tokens,
        input_length,
        **rest,
    ):
        held = self._slots.held(slot, ticket, cache_length)
        generated = self._explicit[1](
            N,
            input_length=input_length,
            max_new_tokens=tf.where(held, max_new_tokens, 0),
            **self._cache(held, slot, cache_length),
            **rest,
        )
        rows, fed = generated.pop("new_cache"), input_length + generated["count"] - 1
        held = self._put(held, slot, ticket, rows, cache_length, fed)
        generated["tokens"] = tf.where(held[:, None], generated["tokens"], -1)
        generated["count"] = tf.where(held, generated["count"], 0)
        return {**generated, **_alive(held)}

    def _decode(self, *, slot, ticket, cache_length, input_ids, input_length):
        held = self._slots.held(slot, ticket, cache_length)
        cache = self._cache(held, slot, cache_length)
        generated = self._explicit[0](input_ids, input_length, **cache)
        rows = generated["new_cache"]
        held = self._put(held, slot, ticket, rows, cache_length, input_length)
        return {
            "logits": tf.where(held[:, None], generated["logits"], 0.0),
            **_alive(held),
        }

    def _write(self, slot, ticket, cache, start, cache_length):
        held = self._slots.held(slot, ticket, start)
        return _alive(self._put(held, slot, ticket, cache, start, cache_length))

    def _read(self, slot, ticket, start, size):
        held = self._slots.held(slot, ticket, start + size)
        rows = self._slots.read(slot, start, tf.where(held, size, 0))
        held &= self._still_held(rows, slot, ticket)
        mine = held[:, None] & (tf.range(tf.shape(rows)[1]) < size[:, None])
        rows = tf.where(mine[:, :, None, None, None, None], rows, 0.0)
        return {"cache": rows, **_alive(held)}

    def _copy(self, slot, ticket, to_slot, to_ticket, cache_length):
        held = self._slots.held(slot, ticket, cache_length)
        held &= self._slots.held(to_slot, to_ticket, tf.zeros_like(to_slot))
        rows = self._cache(held, slot, cache_length)["cache"]
        held &= self._still_held(rows, slot, ticket)
        start = tf.zeros_like(cache_length)
        return _alive(self._put(held, to_slot, to_ticket, rows, start, cache_length))

    def _still_held(self, rows, slot, ticket):
        """Whether ``rows`` were the caller's when they were read."""
        with tf.control_dependencies([rows]):
            return self._slots.is_held(slot, ticket)

    def _cache(self, held, slot, length) -> dict[str, Any]:
        """What a call builds on, as an explicit cache; nothing if it is not held."""
        length = tf.where(held, length, 0)
        rows = self._slots.read(slot, tf.zeros_like(length), length)
        return {"cache": rows, "cache_length": length}

    def _put(self, held, slot, ticket, rows, start, count):
        ticket = tf.where(held, ticket, 0)
        return self._slots.write(slot, ticket, rows, start, count)


def _alive(held) -> dict[str, Any]:
    return {"alive": tf.cast(held, tf.int32)}

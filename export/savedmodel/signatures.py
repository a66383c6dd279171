"""The contract's signatures as one TensorFlow module, over either backend.

Here requests become what the backends take, of sizes that they are compiled for, and
replies become token-major rows again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from ...models.config import OPTConfig
from ...runtime.contract import CacheLayout, generate_name, signature
from . import graph_tf
from .buckets import Sizes
from .requests import GenerateRequest, SamplingParams

Backend = Any


class Signatures(tf.Module):
    """Functions named as the contract names them; ``stored`` are the weights."""

    def __init__(
        self,
        config: OPTConfig,
        backend: Backend,
        stored: Mapping[str, tf.Variable],
        layout: CacheLayout,
        texts: Mapping[str, str],
        generate: Sequence[int],
    ) -> None:
        super().__init__(name="optserve")
        self._config, self._backend, self._layout = config, backend, layout
        self._sizes = getattr(backend, "sizes", Sizes())
        self._loop_sizes = getattr(backend, "loop_sizes", Sizes())
        self.stored, self.resources = dict(stored), dict(backend.resources)
        self._texts = tuple(texts.items())
        self._tokens_per_call = tuple(generate)

    def concrete(self) -> dict[str, Any]:
        """Signature names and traced functions, ready for ``tf.saved_model.save``.

        They are not kept here, where the saver would find them, trace each once more
        and store it twice.
        """
        bodies: dict[str, Callable[..., dict[str, Any]]] = {
            "serving_default": self._serving_default,
            "prefill": self._prefill,
            "decode": self._decode,
            "score": self._score,
            "embed": self._embed,
        }
        for n in self._tokens_per_call:
            bodies[generate_name(n)] = partial(self._generate, n)
        for name, text in self._texts:
            bodies[name] = _constant(name, text)
        return {
            name: self._function(name, body).get_concrete_function()
            for name, body in bodies.items()
        }

    def _function(self, name: str, body: Callable[..., dict[str, Any]]):
        spec = signature(name, self._layout)
        inputs = [
            tf.TensorSpec(
                [d if isinstance(d, int) else None for d in tensor.shape],
                tensor.dtype,
                tensor.name,
            )
            for tensor in spec.inputs
        ]
        names = [tensor.name for tensor in spec.inputs]
        outputs = [tensor.name for tensor in spec.outputs]

        def run(*tensors):
            checks = self._checks(dict(zip(names, tensors, strict=True)))
            with tf.control_dependencies(checks):
                found = body(tf.identity(tensors[0]), *tensors[1:])
            return {key: tf.identity(found[key], name=key) for key in outputs}

        run.__name__ = name
        return tf.function(run, input_signature=inputs, autograph=False)

    def _checks(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Ids and lengths beyond the model are an error, never a wrong answer."""
        if "input_ids" not in inputs:
            return []
        V, most = self._config.vocab_size, self._config.max_position_embeddings
        ids = inputs["input_ids"]
        rules = {f"input_ids should be from 0 to {V - 1}": (ids >= 0) & (ids < V)}
        if "input_length" in inputs:
            length, cached = inputs["input_length"], inputs.get("cache_length", 0)
            slots = tf.shape(inputs["cache"])[1] if "cache" in inputs else 0
            rules |= {
                "input_length should be from 0 to input_ids' size": (length >= 0)
                & (length <= tf.shape(ids)[1]),
                "cache_length should be from 0 to the cache's size": (cached >= 0)
                & (cached <= slots),
                f"cache_length + input_length should be at most {most} positions": (
                    cached + length <= most
                ),
            }
        return [
            tf.debugging.Assert(tf.reduce_all(holds), [rule])
            for rule, holds in rules.items()
        ]

    # --- bodies ---------------------------------------------------------------------

    def _prefill(self, input_ids, input_length):
        return self._decode(input_ids, input_length, *self._no_cache(input_ids))

    def _decode(self, input_ids, input_length, cache, cache_length):
        B, S = _sizes(input_ids)
        hidden, new_cache = self._extend(input_ids, cache, cache_length)
        length = _fit(input_length, [_sizes(hidden)[0]])
        last = tf.gather(hidden, tf.maximum(length - 1, 0), axis=1, batch_dims=1)
        logits = self._backend.logits(last)
        return {"logits": logits[:B], "new_cache": new_cache[:B, :S]}

    def _score(self, input_ids, input_length):
        B, S = _sizes(input_ids)
        hidden, _ = self._extend(input_ids, *self._no_cache(input_ids))
        ids = _fit(input_ids, _sizes(hidden)[:2])
        return {"logprobs": self._backend.token_logprobs(ids, hidden)[:B, :S]}

    def _embed(self, input_ids, input_length):
        B, S = _sizes(input_ids)
        hidden, _ = self._extend(input_ids, *self._no_cache(input_ids))
        return {"last_hidden_state": hidden[:B, :S]}

    def _serving_default(self, input_ids, attention_mask):
        B, S = _sizes(input_ids)
        size = [_round_up(B, self._sizes.rows), _round_up(S, self._sizes.prompt)]
        ids, mask = _fit(input_ids, size), _fit(attention_mask, size)
        return {"logits": self._backend.full_logits(ids, mask)[:B, :S]}

    def _generate(
        self,
        N,
        input_ids,
        input_length,
        cache,
        cache_length,
        max_new_tokens,
        history,
        stop_ids,
        *sampling,
    ):
        """The prompt but its last token is fed at once; the loop starts there."""
        B, S = _sizes(input_ids)
        before = tf.maximum(input_length - 1, 0)

        def feed():
            new = self._extend(input_ids, cache, cache_length)[1][:B, :S]
            return new, _joined(cache, new, cache_length)

        new, cached = tf.cond(
            S > 1,
            feed,
            lambda: (tf.zeros([B, S, *self._layout.row_shape]), cache),
        )
        last = tf.gather(input_ids, before, axis=1, batch_dims=1)
        length = cache_length + before
        rows = _round_up(B, self._loop_sizes.rows)
        vectors = [last, length, tf.minimum(max_new_tokens, N)]
        flags = [_marked(ids, self._config.vocab_size) for ids in (stop_ids, history)]
        last, length, limit, *rest = (
            _fit(x, [rows, *_sizes(x)[1:]]) for x in (*vectors, *flags, *sampling)
        )
        cached = self._fit_cache(cached, rows, self._loop_sizes)
        stops, seen, *sampling = rest
        made = self._backend.generate(
            GenerateRequest(
                input_ids=last[:, None],
                input_length=tf.ones_like(last),
                cache=cached,
                cache_length=length,
                max_new_tokens=limit,
                stops=stops,
                seen=seen,
                sampling=SamplingParams(*sampling),
            ),
            often=max(self._tokens_per_call) == N,
        )
        rows = made.new_cache[:B, :N]
        return {
            "tokens": made.tokens[:B, :N],
            "logprobs": made.logprobs[:B, :N],
            "count": made.count[:B],
            "new_cache": tf.cond(
                S > 1, lambda: _joined(new, rows, before)[:, :-1], lambda: rows
            ),
        }

    # --- pieces ---------------------------------------------------------------------

    def _no_cache(self, input_ids):
        B = tf.shape(input_ids)[0]
        return tf.zeros([B, 0, *self._layout.row_shape]), tf.zeros([B], tf.int32)

    def _extend(self, input_ids, cache, cache_length):
        """Hidden states [B,S,W] and wire rows [L,2,B,H,S,·], both of rounded sizes."""
        B, S = _sizes(input_ids)
        rows = _round_up(B, self._sizes.rows)
        ids = _fit(input_ids, [rows, _round_up(S, self._sizes.prompt)])
        cache_length = _fit(cache_length, [rows])
        cache = self._fit_cache(cache, rows, self._sizes)
        return self._backend.extend(ids, cache, cache_length)

    def _fit_cache(self, cache, rows, sizes):
        """The wire's cache of rounded sizes, with at least one slot."""
        slots = _round_up(tf.maximum(tf.shape(cache)[1], 1), sizes.cache)
        return _fit(cache, [rows, slots, *self._layout.row_shape])


def _sizes(tensor) -> list[Any]:
    return graph_tf.opt.shape(tensor)


def _round_up(size, steps: tuple[int, ...]):
    """The first of ``steps`` that is at least ``size``; ``size`` if there is none."""
    if not steps:
        return size
    larger = tf.boolean_mask(tf.constant(steps), tf.constant(steps) >= size)
    return tf.concat([larger, tf.reshape(size, [1])], axis=0)[0]


def _fit(tensor, sizes):
    """``tensor`` with zeros behind, up to ``sizes``."""
    missing = [want - have for want, have in zip(sizes, _sizes(tensor), strict=True)]
    return tf.pad(tensor, [[0, more] for more in missing])


def _joined(rows, more, length):
    """Each row's first ``length`` slots of ``rows`` [B,C,…], then ``more`` [B,S,…]."""
    C, S = _sizes(rows)[1], _sizes(more)[1]
    slot, end = tf.range(C + S), length[:, None]
    source = tf.where(slot < end, slot, tf.minimum(C + slot - end, C + S - 1))
    return tf.gather(tf.concat([rows, more], axis=1), source, axis=1, batch_dims=1)


def _marked(ids, V: int):
    """Which of the vocabulary's ids stand in each row of ``ids`` [B,K]: boolean [B,V].

    Negative ids, and those that are none, mark nothing.
    """
    B, K = _sizes(ids)
    column = tf.reshape(tf.where((ids < 0) | (ids >= V), V, ids), [-1])
    at = tf.stack([tf.repeat(tf.range(B), K), column], axis=1)
    nothing = tf.zeros([B, V + 1], tf.bool)
    marks = tf.tensor_scatter_nd_update(nothing, at, tf.fill([B * K], True))
    return tf.ensure_shape(marks[:, :V], [None, V])


def _constant(output: str, text: str):
    def body(row):
        return {key: tf.fill(tf.shape(row), text)}

    key = {"describe": "manifest"}.get(output, output)
    return body

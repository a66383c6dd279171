"""The contract's signatures as one TensorFlow module, over either backend.

Here requests become what the backends take: caches are transposed once and cleared
where they are unused (whatever a client left there is never read), and replies become
token-major rows again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from ..models.config import OPTConfig
from . import graph_tf
from .contract import CacheLayout, signature
from .sizing import Sizes

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
        sizes: Sizes,
    ) -> None:
        super().__init__(name="optserve")
        self._config, self._backend, self._layout = config, backend, layout
        self._sizes = sizes
        self.stored = dict(stored)
        bodies: dict[str, Callable[..., dict[str, Any]]] = {
            "serving_default": self._serving_default,
            "prefill": self._prefill,
            "decode": self._decode,
            "score": self._score,
            "embed": self._embed,
        }
        for name, text in texts.items():
            bodies[name] = _constant(name, text)
        self.functions = {
            name: self._function(name, body) for name, body in bodies.items()
        }

    def concrete(self) -> dict[str, Any]:
        """Signature names and traced functions, ready for ``tf.saved_model.save``."""
        return {
            name: function.get_concrete_function()
            for name, function in self.functions.items()
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
        outputs = [tensor.name for tensor in spec.outputs]

        def run(*tensors):
            found = body(*tensors)
            return {key: tf.identity(found[key], name=key) for key in outputs}

        run.__name__ = name
        return tf.function(run, input_signature=inputs, autograph=False)

    # --- bodies ---------------------------------------------------------------------

    def _prefill(self, input_ids, input_length):
        return self._decode(input_ids, input_length, *self._no_cache(input_ids))

    def _decode(self, input_ids, input_length, cache, cache_length):
        B, S = _sizes(input_ids)
        hidden, wire = self._extend(input_ids, cache, cache_length)
        length = _fit(input_length, [_sizes(hidden)[0]])
        last = tf.gather(hidden, tf.maximum(length - 1, 0), axis=1, batch_dims=1)
        logits = self._backend.logits(last)
        new_cache = tf.transpose(wire[:, :, :B, :, :S], [2, 4, 0, 1, 3, 5])
        return {"logits": logits[:B], "new_cache": new_cache}

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
        past = self._past(cache, cache_length, rows)
        return self._backend.extend(ids, past, cache_length)

    def _past(self, cache, cache_length, rows):
        """The wire's cache as [L,2,B,H,C,D], at least one slot, zero where unused."""
        slots = tf.maximum(tf.shape(cache)[1], 1)
        slots = _round_up(slots, self._sizes.cache)
        wire = tf.transpose(cache, [2, 3, 0, 4, 1, 5])
        L, two, _, H, _, width = wire.shape
        wire = _fit(wire, [L, two, rows, H, slots, width])
        used = tf.range(slots) < cache_length[:, None]  # [B,C]
        past = graph_tf.unpack(wire, self._layout.dtype)
        return tf.where(used[None, None, :, None, :, None], past, 0.0)


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


def _constant(output: str, text: str):
    def body(row):
        return {key: tf.fill(tf.shape(row), text)}

    key = {"describe": "manifest"}.get(output, output)
    return body

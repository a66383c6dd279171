"""The contract's signatures as one TensorFlow module, over any backend.

Here requests are checked and become what the backends take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from ...models.config import OPTConfig
from ...models.generation.sampling import SamplingParams
from ...runtime.contract import CacheLayout, generate_name, signature
from .backends import Backend
from .requests import GenerateRequest

MOST_ROWS = 1024
"""Of one call: a text for each of them is still a small reply."""


class Signatures(tf.Module):
    """Functions named as the contract names them.

    Args:
        config: the architecture.
        backend: computes.
        stored: the weights.
        layout: the cache's.
        texts: what ``describe`` and ``tokenizer`` reply.
        generate: the N of ``generate_{N}``.
        most_tokens: that a call may bring, in prompts and in caches.
    """

    def __init__(
        self,
        config: OPTConfig,
        backend: Backend,
        stored: Mapping[str, tf.Variable],
        layout: CacheLayout,
        texts: Mapping[str, str],
        generate: Sequence[int],
        *,
        most_tokens: int,
    ) -> None:
        super().__init__(name="optserve")
        self._config, self._backend, self._layout = config, backend, layout
        self.stored, self.resources = dict(stored), dict(backend.resources)
        self._texts = tuple(texts.items())
        self._tokens_per_call = tuple(generate)
        self._most_tokens = most_tokens

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
            given = self._checked(dict(zip(names, tensors, strict=True)))
            results = body(**given)
            return {key: tf.identity(results[key], name=key) for key in outputs}

        run.__name__ = name
        return tf.function(run, input_signature=inputs, autograph=False)

    # --- checks ---------------------------------------------------------------------

    def _checked(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Sizes, ids and lengths beyond the model are an error, never a wrong answer.

        Sizes come first: nothing is computed for a request that is too large.
        """
        first = next(iter(inputs))
        for rules in (self._sizes, self._values):
            checks = [
                tf.debugging.Assert(tf.reduce_all(holds), [rule])
                for rule, holds in rules(inputs)
            ]
            with tf.control_dependencies(checks):
                inputs = {**inputs, first: tf.identity(inputs[first])}
        return inputs

    def _sizes(self, inputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        if "row" in inputs:
            rows = tf.shape(inputs["row"])[0]
            yield f"a call should have at most {MOST_ROWS} rows", rows <= MOST_ROWS
        positions, most = self._config.max_position_embeddings, self._most_tokens
        for name, what in (("input_ids", "tokens"), ("cache", "slots")):
            if name in inputs:
                B, size = tf.unstack(tf.shape(inputs[name], tf.int64)[:2])
                yield (
                    f"{name} should have at most {positions} {what} a row, and "
                    f"{most} in all",
                    (size <= positions) & (B * size <= most) & (most >= B),
                )
        for name, limit in (
            ("attention_mask", positions),
            ("history", positions),
            ("stop_ids", self._config.vocab_size),
        ):
            if name in inputs:
                size = tf.shape(inputs[name], tf.int64)[1]
                yield f"{name} should have at most {limit} a row", size <= limit

    def _values(self, inputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        if "input_ids" not in inputs:
            return
        V, most = self._config.vocab_size, self._config.max_position_embeddings
        ids = inputs["input_ids"]
        yield f"input_ids should be from 0 to {V - 1}", (ids >= 0) & (ids < V)
        if "input_length" not in inputs:
            return
        length, cached = inputs["input_length"], inputs.get("cache_length", 0)
        slots = tf.shape(inputs["cache"])[1] if "cache" in inputs else 0
        yield (
            "input_length should be from 0 to input_ids' size",
            (length >= 0) & (length <= tf.shape(ids)[1]),
        )
        yield (
            "cache_length should be from 0 to the cache's size",
            (cached >= 0) & (cached <= slots),
        )
        yield (
            f"cache_length + input_length should be at most {most} positions",
            cached + length <= most,
        )

    # --- bodies ---------------------------------------------------------------------

    def _prefill(self, input_ids, input_length):
        return self._decode(input_ids, input_length, *self._no_cache(input_ids))

    def _decode(self, input_ids, input_length, cache, cache_length):
        hidden, new_cache = self._backend.extend(input_ids, cache, cache_length)
        last = tf.maximum(input_length - 1, 0)
        hidden = tf.gather(hidden, last, axis=1, batch_dims=1)
        return {"logits": self._backend.logits(hidden), "new_cache": new_cache}

    def _score(self, input_ids, input_length):
        hidden, _ = self._backend.extend(input_ids, *self._no_cache(input_ids))
        return {"logprobs": self._backend.token_logprobs(input_ids, hidden)}

    def _embed(self, input_ids, input_length):
        hidden, _ = self._backend.extend(input_ids, *self._no_cache(input_ids))
        return {"last_hidden_state": hidden}

    def _serving_default(self, input_ids, attention_mask):
        return {"logits": self._backend.full_logits(input_ids, attention_mask)}

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
        **sampling,
    ):
        V = self._config.vocab_size
        request = GenerateRequest(
            input_ids=input_ids,
            input_length=input_length,
            cache=cache,
            cache_length=cache_length,
            max_new_tokens=tf.minimum(max_new_tokens, N),
            stops=_marked(stop_ids, V),
            seen=_marked(history, V),
            sampling=SamplingParams(**sampling),
        )
        often = max(self._tokens_per_call) == N
        return self._backend.generate(request, N, often=often)._asdict()

    def _no_cache(self, input_ids):
        B = tf.shape(input_ids)[0]
        return tf.zeros([B, 0, *self._layout.row_shape]), tf.zeros([B], tf.int32)


def _marked(ids, V: int):
    """Which of the vocabulary's ids stand in each row of ``ids`` [B,K]: boolean [B,V].

    Negative ids, and ids beyond the vocabulary, mark nothing.
    """
    B, K = tf.unstack(tf.shape(ids))
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

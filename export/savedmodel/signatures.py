"""The contract's signatures as one TensorFlow module, over any backend.

Here requests are checked and become what the backends take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from ...models.config import OPTConfig
from ...models.generation.sampling import TOP_LOGPROBS
from ...models.generation.sampling_params import SamplingParams
from ...models.tf.sampling import likeliest
from ...runtime.contract import CacheLayout, generate_name, signature
from .backends import Backend
from .marks import MarkMaker
from .requests import GenerateRequest
from .session_slots import SessionSlots
from .sessions import Sessions

MOST_ROWS = 1024
"""Of a call for a text, which each row gets; fewer where it is a long one."""

_TEXTS_BYTES = 64 << 20


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
        slots: where the server keeps caches; None for no signatures of sessions.
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
        slots: SessionSlots | None = None,
    ) -> None:
        super().__init__(name="optserve")
        self._config, self._backend, self._layout = config, backend, layout
        self._marks = MarkMaker(config.vocab_size)
        self.stored, self.resources = dict(stored), dict(backend.resources)
        self._texts = tuple(texts.items())
        self._tokens_per_call = tuple(generate)
        self._most_tokens = most_tokens
        self.session_resources = {} if slots is None else slots.resources
        in_slots = partial(self._generate, in_session=True)
        self._sessions = slots and Sessions(
            slots, self._decode, in_slots, most_tokens=most_tokens
        )

    def concrete(self) -> dict[str, Any]:
        """Signature names and traced functions, ready for ``tf.saved_model.save``.

        They are not kept here, where the saver would find them, trace each once more
        and store it twice.
        """
        return {
            name: self._function(name, body).get_concrete_function()
            for name, body in self.bodies().items()
        }

    def bodies(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """What computes each signature, by its name."""
        bodies: dict[str, Callable[..., dict[str, Any]]] = {
            "serving_default": self._serving_default,
            "prefill": self._prefill,
            "decode": self._decode,
            "score": self._score,
            "embed": self._embed,
        }
        for n in self._tokens_per_call:
            bodies[generate_name(n)] = partial(self._generate, n)
        if self._sessions is not None:
            bodies.update(self._sessions.bodies(self._tokens_per_call))
        for name, text in self._texts:
            bodies[name] = _constant(name, text)
        return bodies

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
            given = self._checked(name, dict(zip(names, tensors, strict=True)))
            results = body(**given)
            return {key: tf.identity(results[key], name=key) for key in outputs}

        run.__name__ = name
        return tf.function(run, input_signature=inputs, autograph=False)

    # --- checks ---------------------------------------------------------------------

    def _checked(self, name: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Sizes, ids and lengths beyond the model are an error, never a wrong answer.

        Sizes come first: nothing is computed for a request that is too large.
        """
        first = next(iter(inputs))
        stages = [partial(self._sizes, name), self._values]
        if self._sessions is not None and "slot" in inputs:
            stages.append(partial(self._sessions.rules, name))
        for rules in stages:
            checks = [
                tf.debugging.Assert(tf.reduce_all(holds), [rule])
                for rule, holds in rules(inputs)
            ]
            with tf.control_dependencies(checks):
                inputs = {**inputs, first: tf.identity(inputs[first])}
        return inputs

    def _sizes(
        self, signature_name: str, inputs: Mapping[str, Any]
    ) -> Iterator[tuple[str, Any]]:
        if "row" in inputs:
            most = self._rows_of_text(signature_name)
            rows = tf.shape(inputs["row"])[0]
            yield f"{signature_name} takes at most {most} rows", rows <= most
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
            ("bias_ids", self._config.vocab_size),
        ):
            if name in inputs:
                size = tf.shape(inputs[name], tf.int64)[1]
                yield f"{name} should have at most {limit} a row", size <= limit

    def _rows_of_text(self, name: str) -> int:
        """As many as a batch may have, and more of a short text."""
        full_rows = self._most_tokens // self._config.max_position_embeddings
        fits = _TEXTS_BYTES // max(len(dict(self._texts).get(name, "").encode()), 1)
        return max(full_rows, min(fits, MOST_ROWS))

    def _values(self, inputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        if "input_ids" not in inputs:
            return
        V, most = self._config.vocab_size, self._config.max_position_embeddings
        ids = inputs["input_ids"]
        yield f"input_ids should be from 0 to {V - 1}", (ids >= 0) & (ids < V)
        if "input_length" not in inputs:
            return
        length, cached = inputs["input_length"], inputs.get("cache_length", 0)
        yield (
            "input_length should be from 0 to input_ids' size",
            (length >= 0) & (length <= tf.shape(ids)[1]),
        )
        if "cache" in inputs:
            slots = tf.shape(inputs["cache"])[1]
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

    def _score(self, input_ids, input_length, cache, cache_length):
        hidden, new_cache = self._backend.extend(input_ids, cache, cache_length)
        logits, logprobs = self._backend.scores(input_ids, hidden)
        top_ids, top_logprobs = _likeliest(logits)
        return {
            "logprobs": _given_before(logprobs, 0.0),
            "top_ids": _given_before(top_ids, -1),
            "top_logprobs": _given_before(top_logprobs, 0.0),
            "new_cache": new_cache,
        }

    def _embed(self, input_ids, input_length):
        hidden, _ = self._backend.extend(input_ids, *self._no_cache(input_ids))
        real = tf.sequence_mask(input_length, tf.shape(input_ids)[1])
        total = tf.reduce_sum(tf.where(real[:, :, None], hidden, 0.0), axis=1)
        count = tf.cast(tf.maximum(input_length, 1), tf.float32)
        return {"last_hidden_state": hidden, "pooled": total / count[:, None]}

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
        bias_ids,
        bias,
        *,
        in_session=False,
        **sampling,
    ):
        params = SamplingParams(**sampling)
        request = GenerateRequest(
            input_ids=input_ids,
            input_length=input_length,
            cache=cache,
            cache_length=cache_length,
            max_new_tokens=tf.minimum(max_new_tokens, N),
            marks=self._marks(history, stop_ids, bias_ids, bias, params),
            sampling=params,
        )
        # Clients use sessions where there are some. Memory is spent once: a server has
        # kernels, and what they keep, of its own for each signature.
        often = max(self._tokens_per_call) == N and in_session == bool(self._sessions)
        return self._backend.generate(request, N, often=often)._asdict()

    def _no_cache(self, input_ids):
        B = tf.shape(input_ids)[0]
        return tf.zeros([B, 0, *self._layout.row_shape]), tf.zeros([B], tf.int32)


def _likeliest(logits):
    """Ids and log-probabilities [B,S,5] of the likeliest tokens of ``logits`` [B,S,V].

    Nobody else uses what they are computed from, so a server leaves it out where they
    aren't fetched.
    """
    shape = tf.concat([tf.shape(logits)[:2], [TOP_LOGPROBS]], 0)
    logits = tf.reshape(logits, [-1, logits.shape[-1]])
    asked = tf.fill(tf.shape(logits)[:1], TOP_LOGPROBS)
    ids, logprobs = likeliest(logits, tf.reduce_logsumexp(logits, 1), asked)
    return tf.reshape(ids, shape), tf.reshape(logprobs, shape)


def _given_before(x, first):
    """``x`` [B,S,…] of what follows each token, moved to the tokens that follow."""
    paddings = [[0, 0], [1, 0], *[[0, 0]] * (x.shape.rank - 2)]
    return tf.pad(x[:, :-1], paddings, constant_values=first)


def _constant(output: str, text: str):
    def body(row):
        return {key: tf.fill(tf.shape(row), text)}

    key = {"describe": "manifest"}.get(output, output)
    return body

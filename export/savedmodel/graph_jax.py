"""The serving graph in JAX: the shared math with a cache that comes in and goes out
explicitly. Reads side by side with ``graph_tf.py``.

Programs that differ only in sizes are compiled once for each, so the sizes are few:
layers are one body, scanned over their stacked weights, and the cache comes in pages,
of which a program reads as many as are in use. How many, and how many tokens to make,
are values.

``cache`` is the wire's [B,C,L,2,H,·]; inside, a layer's keys and values are [B,H,·,D].

    P pages   T slots of a page
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...models.config import OPTConfig
from ...models.flax import model as opt
from ...models.flax.sampling import choose
from ...models.generation.sampling import TOP_LOGPROBS
from ...models.layer_context import LayerContext
from .packed_cache_jax import pack, unpack
from .requests import DecodeState, Generated, GenerateRequest


def positions(config: OPTConfig, start, S: int):
    """Positions [B,S] from ``start`` [B] on; padding stays inside the table."""
    last = config.max_position_embeddings - 1
    return jnp.minimum(start[:, None] + jnp.arange(S, dtype=jnp.int32), last)


# --- attention over pages -----------------------------------------------------------


class Pages(NamedTuple):
    """A cache as the programs read it. What comes after the pages in use is never
    touched, and so takes no memory."""

    kv: Any  # [P,L,2,B,H,T,D] float32
    filled: Any  # [P,B]: how many slots of a page a row uses, from the first on
    used: Any  # how many pages are in use


class Past(NamedTuple):
    """What a layer's new tokens attend to beside themselves."""

    pages: Pages
    new_kv: Any  # [L,2,B,H,N,D]: rows of this call's earlier steps, or None
    step: Any  # how many of the N there are
    layer: Any = None


def store(cache_dtype: str):
    """The cache policy: old rows stay where they are, new ones are returned.

    The new ones are attended to as a later call will see them.
    """

    def policy(past: Past, k, v):
        k, v = (unpack(pack(x, cache_dtype), cache_dtype) for x in (k, v))
        return (k, past), v, jnp.stack([k, v])

    return policy


def attend(q, keys, values):
    """Softmax attention of ``q`` [B,H,S,D] to the past and, causally, to one another.

    ``keys`` and ``values`` are what :func:`store` gives. The softmax is built up part
    by part (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"),
    so that pages that are not in use cost nothing.
    """
    own, past = keys
    S = q.shape[2]
    causal = jnp.arange(S) <= jnp.arange(S)[:, None]
    softmax = _Softmax.start(q).add(q, own, values, causal)
    if past.new_kv is not None:
        k, v = _at(past.new_kv, past.layer)
        softmax = softmax.add(q, k, v, jnp.arange(k.shape[2]) < past.step)

    def add_page(i, softmax: _Softmax):
        k, v = _at(past.pages.kv, i, past.layer)
        used = jnp.arange(k.shape[2]) < _at(past.pages.filled, i)[:, None]
        v = jnp.where(used[:, None, :, None], v, 0.0)  # NaN times nothing is NaN
        return softmax.add(q, k, v, used[:, None, None, :])

    return lax.fori_loop(0, past.pages.used, add_page, softmax).result()


def _at(x, *indices):
    """``x[indices]`` in one slice."""
    count = len(indices)
    start = (*indices, *[0] * (x.ndim - count))
    return lax.dynamic_slice(x, start, (*[1] * count, *x.shape[count:])).reshape(
        x.shape[count:]
    )


class _Softmax(NamedTuple):
    largest: Any  # [B,H,S,1]
    weight: Any  # [B,H,S,1]: sum of exp(score − largest)
    weighted: Any  # [B,H,S,D]: sum of exp(score − largest) · value

    @classmethod
    def start(cls, q) -> _Softmax:
        nothing = jnp.zeros((*q.shape[:3], 1), q.dtype)
        return cls(jnp.full_like(nothing, -jnp.inf), nothing, jnp.zeros_like(q))

    def add(self, q, keys, values, mask) -> _Softmax:
        """With some more ``keys`` and ``values`` [B,H,T,D]; ``mask`` says which."""
        scores = jnp.where(mask, jnp.einsum("bhsd,bhtd->bhst", q, keys), -jnp.inf)
        largest = jnp.maximum(self.largest, jnp.max(scores, -1, keepdims=True))
        before, now = jnp.exp(self.largest - largest), jnp.exp(scores - largest)
        return _Softmax(
            largest,
            before * self.weight + jnp.sum(now, -1, keepdims=True),
            before * self.weighted + jnp.einsum("bhst,bhtd->bhsd", now, values),
        )

    def result(self):
        return self.weighted / self.weight


# --- programs -----------------------------------------------------------------------


def run_layers(config: OPTConfig, cache_dtype: str, layers, x, B: int, past: Past):
    """``x`` [B·S,E] through all layers, and their new rows [L,2,B,H,S,D]."""
    context = LayerContext(config, B, None, store(cache_dtype), attend=attend)

    def body(x, given):
        p, i = given
        return opt.layer(context, p, x, past._replace(layer=i))[:2]

    return lax.scan(body, x, (layers, jnp.arange(config.num_hidden_layers)))


def as_cache(kv, dtype: str):
    """New rows [L,2,B,H,S,D] as the wire carries them: [B,S,L,2,H,·]."""
    return pack(kv, dtype).transpose(2, 4, 0, 1, 3, 5)


def extend(config: OPTConfig, params, cache_dtype: str, ids, start, pages: Pages):
    """Feed ``ids`` [B,S] from positions ``start`` [B] on: hidden states [B,S,W], and
    new rows of the cache [B,S,L,2,H,·]."""
    B, S = ids.shape
    embeds = opt.take(params["embed_tokens"], ids)
    x = opt.embed(config, params, embeds, positions(config, start, S))
    past = Past(pages, None, 0)
    x, kv = run_layers(
        config, cache_dtype, params["layers"], x.reshape(B * S, -1), B, past
    )
    hidden = opt.final_projection(config, params, x).reshape(B, S, config.embed_dim)
    return hidden, as_cache(kv, cache_dtype)


def generate(
    config: OPTConfig, params, cache_dtype: str, N: int, request: GenerateRequest
) -> Generated:
    """Feed a token, choose the next, up to N times, while a row goes on.

    ``request.input_ids`` are [B,1] and ``request.cache`` are :class:`Pages`.
    """
    B, limit = len(request.input_ids), jnp.max(request.max_new_tokens)
    heads = config.num_attention_heads
    shape = (config.num_hidden_layers, 2, B, heads, N, config.head_dim)
    start = DecodeState(
        step=jnp.int32(0),
        token=request.input_ids[:, 0],
        alive=request.max_new_tokens > 0,
        tokens=jnp.full((B, N), -1, jnp.int32),
        logprobs=jnp.zeros((B, N)),
        top_ids=jnp.full((B, N, TOP_LOGPROBS), -1, jnp.int32),
        top_logprobs=jnp.zeros((B, N, TOP_LOGPROBS)),
        counts=request.marks.counts,
        new_kv=jnp.zeros(shape),
    )

    def body(state: DecodeState) -> DecodeState:
        x = embed_token(config, params, state.token, request.cache_length + state.step)
        past = Past(request.cache, state.new_kv, state.step)
        x, kv = run_layers(config, cache_dtype, params["layers"], x, B, past)
        at = (0, 0, 0, 0, state.step, 0)
        new_kv = lax.dynamic_update_slice(state.new_kv, kv, at)
        hidden = opt.final_projection(config, params, x)
        logits = opt.lm_logits(config, params, hidden)
        return advance(request, state, logits)._replace(new_kv=new_kv)

    def going_on(state: DecodeState):
        return (state.step < jnp.minimum(limit, N)) & jnp.any(state.alive)

    end = lax.while_loop(going_on, body, start)
    count = jnp.sum(end.tokens >= 0, axis=1, dtype=jnp.int32)
    new_cache = as_cache(end.new_kv, cache_dtype)
    top = end.top_ids, end.top_logprobs
    return Generated(end.tokens, end.logprobs, count, new_cache, *top)


def advance(request: GenerateRequest, state: DecodeState, logits) -> DecodeState:
    """Choose each row's next token from ``logits`` [B,V]; the cache isn't looked at."""
    step, alive = state.step, state.alive
    position = request.cache_length + step + 1
    marks = request.marks._replace(counts=state.counts)
    chosen = choose(logits, request.sampling, marks, position, step)
    token, going = chosen.token, alive[:, None]
    stop = jnp.take_along_axis(marks.stops, token[:, None], 1, mode="clip")[:, 0]

    def written(buffer, value, rest):
        """``buffer`` [B,N,…] with a living row's ``value`` [B,…] at this step."""
        value = value.reshape(len(token), -1)
        value = jnp.where(going, value, rest).reshape(-1, 1, *buffer.shape[2:])
        return lax.dynamic_update_slice_in_dim(buffer, value, step, 1)

    return state._replace(
        step=step + 1,
        token=jnp.where(alive, token, state.token),
        alive=alive & ~stop & (step + 1 < request.max_new_tokens),
        tokens=written(state.tokens, token, -1),
        logprobs=written(state.logprobs, chosen.logprob, 0.0),
        top_ids=written(state.top_ids, chosen.top_ids, -1),
        top_logprobs=written(state.top_logprobs, chosen.top_logprobs, 0.0),
        counts=state.counts.at[jnp.arange(len(token)), token].add(1),
    )


def embed_token(config: OPTConfig, params, token, at):
    """The decoder's input [B,E] for a token of each row, at positions ``at`` [B]."""
    embeds = opt.take(params["embed_tokens"], token)[:, None]
    return opt.embed(config, params, embeds, positions(config, at, 1))[:, 0]


def score(config: OPTConfig, params, hidden, ids):
    """Logits [R,V] of ``hidden`` [R,W], and log-probabilities [R] of ``ids`` [R]."""
    logits = opt.lm_logits(config, params, hidden)
    logprobs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logprobs, ids[:, None], axis=1, mode="clip")
    return logits, chosen[:, 0]

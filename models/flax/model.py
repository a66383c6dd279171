"""OPT in JAX, as pure functions of (config, params, inputs, cache).

Reads side by side with ``tf/model.py``: same order, same names. ``params`` is what
:func:`.weights.params_from_weights` makes; the computation runs in its dtype, norms and
softmax in float32. The Flax classes over these functions are in ``flax/classes.py``.

    B rows   S new tokens   T keys attended to   N = B·S   L layers   H heads
    D head size   E = H·D   V vocabulary   W width of the token embedding
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..config import POSITION_OFFSET, OPTConfig
from ..layer_context import Cache, LayerContext, Store
from ..weights import PackedWeight

NORM_EPSILON = 1e-5
IGNORED_LABEL = -100


def linear(x, weight, bias=None):
    """``x`` [N, in] → [N, out]; ``weight`` [out, in] or a :class:`PackedWeight`."""
    y = weight.matmul(x) if isinstance(weight, PackedWeight) else x @ weight.T
    return y if bias is None else y + bias


def layer_norm(x, weight: Any = None, bias: Any = None):
    """Over the last axis, in float32; without ``weight`` and ``bias`` affine-free."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, -1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + NORM_EPSILON)
    if weight is not None:
        y = y * weight.astype(jnp.float32) + bias.astype(jnp.float32)
    return y.astype(x.dtype)


def activation(config: OPTConfig, x):
    """relu, or the exact gelu."""
    if config.activation_function == "relu":
        return jax.nn.relu(x)
    return jax.nn.gelu(x, approximate=False)


def fold_in(rng, data):
    """Another key, for the number ``data``."""
    return jax.random.fold_in(rng, data)


def dropout(x, rate: float, rng, site: int):
    """Inverted dropout; none where ``rng`` (a PRNG key) is None."""
    if rng is None or not rate:
        return x
    keep = jax.random.bernoulli(fold_in(rng, site), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros([], x.dtype))


# --- embeddings ---------------------------------------------------------------------


def take(table, rows):
    """Rows of an embedding table."""
    if isinstance(table, PackedWeight):
        return table.take(rows)
    return jnp.take(table, rows, axis=0, mode="clip")  # the default gives NaN rows


def positions_from_mask(mask, past: Any = 0):
    """Positions [B,S] of the new tokens; ``mask`` [B, past+S] covers old ones too.

    Counts real tokens only, so that padding anywhere shifts nothing; padding gets −1.
    """
    mask = mask.astype(jnp.int32)
    return (mask.cumsum(axis=1, dtype=jnp.int32) * mask - 1)[:, past:]


def embed(config: OPTConfig, params, token_embeds, position_ids):
    """Token embeddings [B,S,W] and positions [B,S] → the decoder's input [B,S,E]."""
    if config.has_projections:
        B, S = token_embeds.shape[:2]
        flat = token_embeds.reshape(B * S, config.embed_dim)
        flat = linear(flat, **params["project_in"])
        token_embeds = flat.reshape(B, S, config.hidden_size)
    return token_embeds + take(
        params["embed_positions"], position_ids + POSITION_OFFSET
    )


# --- attention ----------------------------------------------------------------------


def causal_mask(mask, S, start):
    """Who attends to whom: boolean [B,1,S,T] from the padding mask [B,T].

    The new tokens are at slots ``start`` to ``start + S − 1`` of the T.
    """
    T = mask.shape[1]
    seen = jnp.arange(T)[None, :] <= start + jnp.arange(S)[:, None]  # [S,T]
    return mask.astype(bool)[:, None, None, :] & seen


def append(past: Cache, k, v):
    """The plain cache: a pair (keys, values) [B,H,T,D] that grows at the end."""
    if past is not None:
        k = jnp.concatenate([past[0], k], axis=2)
        v = jnp.concatenate([past[1], v], axis=2)
    return k, v, (k, v)


def project_qkv(config: OPTConfig, p, x, B):
    """``x`` [N,E] → q (scaled), k, v, each [B,H,S,D]."""
    heads = (B, -1, config.num_attention_heads, config.head_dim)

    def split(y):
        return y.reshape(heads).transpose(0, 2, 1, 3)

    if "qkv_proj" in p:  # one matrix, q's scale folded in
        return split_qkv(config, linear(x, **p["qkv_proj"]), B)
    q = linear(x, **p["q_proj"]) * jnp.asarray(config.head_dim**-0.5, x.dtype)
    return (
        split(q),
        split(linear(x, **p["k_proj"])),
        split(linear(x, **p["v_proj"])),
    )


def split_qkv(config: OPTConfig, fused, B):
    """``fused`` [N,3E] → q, k, v, each [B,H,S,D]."""
    fused = fused.reshape(B, -1, 3, config.num_attention_heads, config.head_dim)
    return tuple(fused.transpose(2, 0, 3, 1, 4))


def attend(config: OPTConfig, q, keys, values, bias, *, head_mask=None, rng=None):
    """Softmax attention: context [B,H,S,D] and probabilities [B,H,S,T].

    ``bias`` [B,1,S,T] float32 or None is added to the scores; ``head_mask`` [H]
    scales the probabilities. ``keys`` and ``values`` may be tuples of parts [B,H,Tᵢ,D]:
    joining them would copy a whole cache at each step, joining scores does not.
    """

    def score(k):
        return jnp.einsum("bhsd,bhtd->bhst", q, k, preferred_element_type=jnp.float32)

    if isinstance(keys, tuple):
        scores = jnp.concatenate([score(k) for k in keys], -1)
    else:
        scores = score(keys)
    if bias is not None:
        scores += bias
    probs = jax.nn.softmax(scores).astype(q.dtype)
    if head_mask is not None:
        probs *= head_mask.astype(q.dtype)[:, None, None]
    kept = dropout(probs, config.attention_dropout, rng, 0)
    if isinstance(values, tuple):
        ends = np.cumsum([v.shape[2] for v in values])[:-1]
        parts = zip(jnp.split(kept, ends, -1), values, strict=True)
        context: Any = sum(jnp.einsum("bhst,bhtd->bhsd", p, v) for p, v in parts)
        return context, probs
    return jnp.einsum("bhst,bhtd->bhsd", kept, values), probs


def attention(context: LayerContext, p, x, past: Cache):
    """Self-attention of ``x`` [N,E]: output [N,E], cache after it, probabilities."""
    config = context.config
    q, k, v = project_qkv(config, p, x, context.batch_size)
    keys, values, present = context.store(past, k, v)
    if context.attend is not None:
        y, probs = context.attend(q, keys, values), None
    else:
        y, probs = attend(
            config,
            q,
            keys,
            values,
            context.bias,
            head_mask=context.head_mask,
            rng=context.rng,
        )
    y = y.transpose(0, 2, 1, 3).reshape(-1, config.hidden_size)
    return linear(y, **p["out_proj"]), present, probs


# --- layer --------------------------------------------------------------------------


def feed_forward(config: OPTConfig, p, x):
    """fc1, activation, fc2 on [N,E]."""
    return linear(activation(config, linear(x, **p["fc1"])), **p["fc2"])


def layer(context: LayerContext, p, x, past: Cache):
    """One layer on ``x`` [N,E]: its output, the cache after it, probabilities."""
    config, rng = context.config, context.rng
    pre = config.do_layer_norm_before
    y = layer_norm(x, **p["self_attn_layer_norm"]) if pre else x
    y, present, probs = attention(context, p, y, past)
    h = x + dropout(y, config.dropout, rng, 1)
    if not pre:
        h = layer_norm(h, **p["self_attn_layer_norm"])

    y = layer_norm(h, **p["final_layer_norm"]) if pre else h
    y = feed_forward(config, p, y)
    h = h + dropout(y, config.dropout, rng, 2)
    if not pre:
        h = layer_norm(h, **p["final_layer_norm"])

    if rng is not None and config.layerdrop:
        drawn = jax.random.uniform(fold_in(rng, 3))
        h = jnp.where(drawn < config.layerdrop, x, h)
    return h, present, probs


# --- decoder ------------------------------------------------------------------------


class Decoded(NamedTuple):
    """What :func:`decoder` returns; the two tuples are None unless asked for."""

    last_hidden_state: Any  # [B,S,W]
    cache: list[Cache]  # L, as ``store`` made them
    hidden_states: tuple[Any, ...] | None  # L+1 of [B,S,E], the last one [B,S,W]
    attentions: tuple[Any, ...] | None  # L of [B,H,S,T]


def run_layers(context: LayerContext, layers, x, past: Sequence[Cache] | None):
    """``layers`` one after the other: yields what :func:`layer` gave, L times."""
    for i, p in enumerate(layers):
        old = past[i] if past is not None else None
        x, present, probs = layer(context.of_layer(i, fold_in), p, x, old)
        yield x, present, probs


def scan_layers(context: LayerContext, layers, x, past: Sequence[Cache] | None):
    """As :func:`run_layers`, as one ``lax.scan`` that rematerialises each layer.

    The backward pass keeps the layers' inputs alone and computes the rest again.
    """

    def stack(trees):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    @jax.checkpoint
    def body(x, given):
        p, old, head_mask, i = given
        out = layer(context.of_layer(i, fold_in, head_mask), p, x, old)
        return out[0], out

    old = stack(past) if past is not None else None
    steps = (stack(layers), old, context.head_mask, jnp.arange(len(layers)))
    _, stacked = jax.lax.scan(body, x, steps)
    return [jax.tree.map(lambda y, i=i: y[i], stacked) for i in range(len(layers))]


def final_projection(config: OPTConfig, params, x):
    """What the last layer gave [N,E] → hidden states [N,W]."""
    if config.has_final_norm:
        x = layer_norm(x, **params["final_layer_norm"])
    if config.has_projections:
        x = linear(x, **params["project_out"])
    return x


def decoder(
    config: OPTConfig,
    params,
    hidden,
    mask,
    *,
    past: Sequence[Cache] | None = None,
    store: Store = append,
    head_mask=None,
    rng=None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    run: Callable[..., Any] = run_layers,
) -> Decoded:
    """All layers, which ``run`` goes through, and the final norm and projection.

    ``hidden`` [B,S,E] comes from :func:`embed`, ``mask`` [B,1,S,T] boolean from
    :func:`causal_mask` (None: everyone attends to everything). ``past`` and ``store``
    are the cache policy; ``head_mask`` [L,H]; ``rng`` switches dropout on.
    """
    B, S, E = hidden.shape
    bias = None
    if mask is not None:  # finite, so that rows that are fully masked stay so
        bias = jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)
    x = hidden.reshape(B * S, E)
    cache, hidden_states, attentions = [], [], []  # the last two if asked for
    context = LayerContext(config, B, bias, store, head_mask, rng)
    for y, present, probs in run(context, params["layers"], x, past):
        cache.append(present)
        if output_hidden_states:
            hidden_states.append(x.reshape(B, S, E))
        if output_attentions:
            attentions.append(probs)
        x = y
    last = final_projection(config, params, x).reshape(B, S, config.embed_dim)
    return Decoded(
        last,
        cache,
        (*hidden_states, last) if output_hidden_states else None,
        tuple(attentions) if output_attentions else None,
    )


# --- base model ---------------------------------------------------------------------


def base_model(
    config: OPTConfig,
    params,
    input_ids=None,
    mask=None,
    *,
    past: Sequence[Cache] | None = None,
    position_ids=None,
    inputs_embeds=None,
    **options,
) -> Decoded:
    """Ids (or embeddings) to hidden states, with the plain growing cache.

    ``mask`` [B, past+S] marks padding with 0; ``options`` go to :func:`decoder`.
    """
    if inputs_embeds is None:
        inputs_embeds = take(params["embed_tokens"], input_ids)
    B, S = inputs_embeds.shape[:2]
    start = past[0][0].shape[2] if past is not None else 0
    if mask is None:
        mask = jnp.ones([B, start + S], jnp.int32)
    if position_ids is None:
        position_ids = positions_from_mask(mask, start)
    hidden = embed(config, params, inputs_embeds, position_ids)
    return decoder(
        config, params, hidden, causal_mask(mask, S, start), past=past, **options
    )


# --- causal LM ----------------------------------------------------------------------


def head(config: OPTConfig, params):
    """The head's matrix [V,W]: the token table, unless it is not tied."""
    tied = config.tie_word_embeddings
    return params["embed_tokens"] if tied else params["lm_head"]["weight"]


def lm_logits(config: OPTConfig, params, hidden):
    """Hidden states [..., W] → logits [..., V] over the tied or the own head."""
    *lead, W = hidden.shape
    flat = linear(hidden.reshape(-1, W), head(config, params))
    return flat.reshape(*lead, config.vocab_size)


def token_losses(logits, labels):
    """Next-token cross entropy [B,S−1] (float32), and which of them count (boolean).

    Logits at one position are compared with the label of the next.
    """
    labels = labels[:, 1:]
    counts = labels != IGNORED_LABEL
    logprobs = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    chosen = jnp.where(counts, labels, 0)[..., None]
    return -jnp.take_along_axis(logprobs, chosen, axis=-1)[..., 0], counts

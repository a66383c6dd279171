"""OPT in TensorFlow, as pure functions of (config, params, inputs, cache).

Reads side by side with ``flax/model.py``: same order, same names. ``params`` is what
:func:`.weights.params_from_weights` makes; the computation runs in its dtype, norms and
softmax in float32. The Keras classes over these functions are in ``tf/classes.py``.

    B rows   S new tokens   T keys attended to   N = B·S   L layers   H heads
    D head size   E = H·D   V vocabulary   W width of the token embedding
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from ..config import POSITION_OFFSET, OPTConfig
from ..layer_context import Cache, LayerContext, Store
from ..weights import PackedNorm, PackedWeight

NORM_EPSILON = 1e-5
IGNORED_LABEL = -100


def upcast_on_cpu(*tensors):
    """16-bit tensors as float32, for a product whose result is cast back.

    TensorFlow's CPU kernels (2.21) make such copies too, but truncate bfloat16 sums
    instead of rounding them, which doubles the error, and would round before the bias
    is added. GPUs round once and are faster with 16 bits: nothing changes there.
    """
    narrow = tensors[0].dtype in (tf.bfloat16, tf.float16)
    if not narrow or tf.config.list_physical_devices("GPU"):
        return tensors
    with tf.control_dependencies(tensors[:1]):  # else all are converted at the start
        return [tf.cast(tensor, tf.float32) for tensor in tensors]


def matmul(x, y, transpose_b: bool = False):
    """``tf.matmul``, in float32 where :func:`upcast_on_cpu` says so."""
    return tf.cast(tf.matmul(*upcast_on_cpu(x, y), transpose_b=transpose_b), x.dtype)


def linear(x, weight, bias=None):
    """``x`` [N, in] → [N, out]; ``weight`` [out, in] or a :class:`PackedWeight`."""
    if isinstance(weight, PackedWeight):
        y = weight.matmul(x)
        return y if bias is None else tf.nn.bias_add(y, bias)
    if bias is None:
        return matmul(x, weight, transpose_b=True)
    x_up, weight, bias = upcast_on_cpu(x, weight, bias)
    y = tf.nn.bias_add(tf.matmul(x_up, weight, transpose_b=True), bias)
    return tf.cast(y, x.dtype)


def layer_norm(x, weight: Any = None, bias: Any = None):
    """Over the last axis, in float32; without ``weight`` and ``bias`` affine-free."""
    if isinstance(weight, PackedNorm):
        return weight(x)
    x32 = tf.cast(x, tf.float32)
    mean, variance = tf.nn.moments(x32, [-1], keepdims=True)
    scale: Any = None if weight is None else tf.cast(weight, tf.float32)
    offset: Any = None if bias is None else tf.cast(bias, tf.float32)
    y = tf.nn.batch_normalization(x32, mean, variance, offset, scale, NORM_EPSILON)
    return tf.cast(y, x.dtype)


def activation(config: OPTConfig, x):
    """relu, or the exact gelu."""
    if config.activation_function == "relu":
        return tf.nn.relu(x)
    return tf.nn.gelu(x, approximate=False)


def fold_in(rng, data):
    """Another seed, for the number ``data``."""
    return rng + tf.stack([data, 0])


def dropout(x, rate: float, rng, site: int):
    """Inverted dropout; none where ``rng`` (a stateless seed, [2] int32) is None."""
    if rng is None or not rate:
        return x
    full_range: Any = None  # all 2**32 integers
    bits = tf.random.stateless_uniform(
        tf.shape(x), fold_in(rng, site), full_range, full_range, tf.int32
    )
    keep = bits >= int(rate * 2**32) - 2**31
    return tf.where(keep, x / (1 - rate), tf.zeros([], x.dtype))


# --- embeddings ---------------------------------------------------------------------


def take(table, rows):
    """Rows of an embedding table."""
    if isinstance(table, PackedWeight):
        return table.take(rows)
    return tf.gather(table, rows)


def positions_from_mask(mask, past: Any = 0):
    """Positions [B,S] of the new tokens; ``mask`` [B, past+S] covers old ones too.

    Counts real tokens only, so that padding anywhere shifts nothing; padding gets −1.
    """
    mask = tf.cast(mask, tf.int32)
    return (tf.cumsum(mask, axis=1) * mask - 1)[:, past:]


def embed(config: OPTConfig, params, token_embeds, position_ids):
    """Token embeddings [B,S,W] and positions [B,S] → the decoder's input [B,S,E]."""
    if config.has_projections:
        B, S = shape(token_embeds)[:2]
        flat = tf.reshape(token_embeds, [B * S, config.embed_dim])
        flat = linear(flat, **params["project_in"])
        token_embeds = tf.reshape(flat, [B, S, config.hidden_size])
    return token_embeds + take(
        params["embed_positions"], position_ids + POSITION_OFFSET
    )


# --- attention ----------------------------------------------------------------------


def causal_mask(mask, S, start):
    """Who attends to whom: boolean [B,1,S,T] from the padding mask [B,T].

    The new tokens are at slots ``start`` to ``start + S − 1`` of the T.
    """
    T = shape(mask)[1]
    seen = tf.range(T)[None, :] <= start + tf.range(S)[:, None]  # [S,T]
    return tf.cast(mask, tf.bool)[:, None, None, :] & seen


def append(past: Cache, k, v):
    """The plain cache: a pair (keys, values) [B,H,T,D] that grows at the end."""
    if past is not None:
        k = tf.concat([past[0], k], axis=2)
        v = tf.concat([past[1], v], axis=2)
    return k, v, (k, v)


def project_qkv(config: OPTConfig, p, x, B):
    """``x`` [N,E] → q (scaled), k, v, each [B,H,S,D]."""
    heads = [B, -1, config.num_attention_heads, config.head_dim]

    def split(y):
        return tf.transpose(tf.reshape(y, heads), [0, 2, 1, 3])

    if "qkv_proj" in p:  # one matrix, q's scale folded in
        return split_qkv(config, linear(x, **p["qkv_proj"]), B)
    q = linear(x, **p["q_proj"]) * tf.cast(config.head_dim**-0.5, x.dtype)
    return (
        split(q),
        split(linear(x, **p["k_proj"])),
        split(linear(x, **p["v_proj"])),
    )


def split_qkv(config: OPTConfig, fused, B):
    """``fused`` [N,3E] → q, k, v, each [B,H,S,D]."""
    fused = tf.reshape(fused, [B, -1, 3, config.num_attention_heads, config.head_dim])
    return tf.unstack(tf.transpose(fused, [2, 0, 3, 1, 4]))


def attend(config: OPTConfig, q, keys, values, bias, *, head_mask=None, rng=None):
    """Softmax attention: context [B,H,S,D] and probabilities [B,H,S,T].

    ``bias`` [B,1,S,T] float32 or None is added to the scores; ``head_mask`` [H]
    scales the probabilities. ``keys`` and ``values`` may be tuples of parts [B,H,Tᵢ,D]:
    joining them would copy a whole cache at each step, joining scores does not.
    """
    if isinstance(keys, tuple):
        scores = tf.concat([matmul(q, k, transpose_b=True) for k in keys], -1)
    else:
        scores = matmul(q, keys, transpose_b=True)
    scores = tf.cast(scores, tf.float32)
    if bias is not None:
        scores += bias
    probs = tf.cast(tf.nn.softmax(scores), q.dtype)
    if head_mask is not None:
        probs *= tf.cast(head_mask, q.dtype)[:, None, None]
    kept: Any = dropout(probs, config.attention_dropout, rng, 0)
    if isinstance(values, tuple):
        context: Any = 0.0
        start: Any = 0
        for part in values:
            end = start + shape(part)[2]
            context += matmul(kept[..., start:end], part)
            start = end
        return context, probs
    return matmul(kept, values), probs


def attention(context: LayerContext, p, x, past: Cache):
    """Self-attention of ``x`` [N,E]: output [N,E], cache after it, probabilities (None
    where a kernel of the caller's own attends)."""
    config = context.config
    if context.attend_fused is not None:
        y, present = context.attend_fused(linear(x, **p["qkv_proj"]), past)
        return linear(y, **p["out_proj"]), present, None
    q, k, v = project_qkv(config, p, x, context.batch_size)
    keys, values, present = context.store(past, k, v)
    y, probs = attend(
        config,
        q,
        keys,
        values,
        context.bias,
        head_mask=context.head_mask,
        rng=context.rng,
    )
    y = tf.reshape(tf.transpose(y, [0, 2, 1, 3]), [-1, config.hidden_size])
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
        drawn = tf.random.stateless_uniform([], fold_in(rng, 3))
        h = tf.where(drawn < config.layerdrop, x, h)
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
    B, S = shape(hidden)[:2]
    E = config.hidden_size
    bias = None
    if mask is not None:  # finite, so that rows that are fully masked stay so
        bias = tf.where(mask, 0.0, tf.float32.min)
    x = tf.reshape(hidden, [B * S, E])
    cache, hidden_states, attentions = [], [], []  # the last two if asked for
    context = LayerContext(config, B, bias, store, head_mask, rng)
    for y, present, probs in run(context, params["layers"], x, past):
        cache.append(present)
        if output_hidden_states:
            hidden_states.append(tf.reshape(x, [B, S, E]))
        if output_attentions:
            attentions.append(probs)
        x = y
    last = tf.reshape(final_projection(config, params, x), [B, S, config.embed_dim])
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
    B, S = shape(inputs_embeds)[:2]
    start = shape(past[0][0])[2] if past is not None else 0
    if mask is None:
        mask = tf.ones([B, start + S], tf.int32)
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
    *lead, W = shape(hidden)
    flat = linear(tf.reshape(hidden, [-1, W]), head(config, params))
    return tf.reshape(flat, [*lead, config.vocab_size])


def token_losses(logits, labels):
    """Next-token cross entropy [B,S−1] (float32), and which of them count (boolean).

    Logits at one position are compared with the label of the next.
    """
    labels = tf.cast(labels[:, 1:], tf.int32)
    counts = labels != IGNORED_LABEL
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        tf.where(counts, labels, 0), tf.cast(logits[:, :-1], tf.float32)
    )
    return losses, counts


def shape(x) -> list[Any]:
    """Sizes of ``x``: numbers where they are known, scalar tensors elsewhere."""
    known = tuple(x.shape)
    if None not in known:
        return list(known)
    dynamic = tf.shape(x)
    return [dynamic[i] if size is None else size for i, size in enumerate(known)]

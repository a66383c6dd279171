"""The serving graph in TensorFlow: the shared math with a cache that comes in and goes
out explicitly. Reads side by side with ``graph_jax.py``.

``cache`` is the wire's [B,C,L,2,H,·]. Inside, the keys and values of all layers, old
slots and new ones, are one buffer that rows are written into in place: ``kv``
[2·L·B·H·T, D], in the order [L,2,B,H,T,D], where T is C and room for what is fed.
One body computes all layers, so that a graph is small whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from ...models.config import OPTConfig
from ...models.generation.sampling import TOP_LOGPROBS
from ...models.layer_context import FusedAttention, LayerContext
from ...models.tf import model as opt
from ...models.tf.sampling import choose
from .attention_tf import attend_blocks, attend_token, visible
from .matmul_tf import Unrolled, one_of, place
from .packed_cache_tf import pack, rounded, unpack
from .requests import DecodeState, Generated, GenerateRequest


def positions(config: OPTConfig, start, S):
    """Positions [B,S] from ``start`` [B] on; padding stays inside the table."""
    last = config.max_position_embeddings - 1
    return tf.minimum(start[:, None] + tf.range(S), last)


# --- cache --------------------------------------------------------------------------


class KVCache(NamedTuple):
    """Keys and values of all layers: old slots, then new ones, then room for more."""

    kv: Any  # [2·L·B·H·T, D] float32
    T: Any  # slots


def unpack_cache(cache, length, dtype: str, *, room) -> KVCache:
    """The wire's cache in the buffer's order, and ``room`` ≥ 1 more slots.

    Zero at ``length`` [B] and beyond, whatever a client left there: a weight of
    nothing doesn't make a NaN go away. One gather of vectors as they are packed does
    it all, with rows that aren't there for what should be zero; zeros unpack to zeros.
    What it makes is nobody else's and may be written into.
    """
    B, C, L, _, H, width = opt.shape(cache)
    slots = tf.range(C + room)
    used = slots < tf.minimum(length, C)[:, None]
    each = 2 * L * H  # vectors of a token
    first = tf.where(used, (tf.range(B)[:, None] * C + slots) * each, -each)
    at = first[:, None] + tf.reshape(tf.range(each), [L, 2, 1, H, 1])

    def gathered():
        vectors, index = tf.reshape(cache, [-1, width]), tf.expand_dims(at, -1)
        return tf.gather_nd(vectors, index, bad_indices_policy="IGNORE")

    # Of no vectors at all none can be gathered.
    wire = tf.cond(C > 0, gathered, lambda: tf.zeros([*opt.shape(at), width]))
    kv = unpack(wire, dtype)
    return KVCache(tf.reshape(kv, [-1, kv.shape[-1]]), C + room)


def attend_at(config: OPTConfig, dtype: str, start, B, S, T) -> FusedAttention:
    """The cache policy and attention: new rows go to slots ``start`` [B] and following,
    in place, and are attended to together with the old ones.

    One way is for a new token of each row, one for several. The latter stays a function
    of its own, or each step for one token would pass through its operations as well,
    though they compute nothing then.
    """
    one = _attend_token_at(config, dtype, start, B, T)
    several = tf.function(
        _attend_blocks_at(config, dtype, start, B, S, T),
        autograph=False,
        experimental_attributes={"_noinline": True},
    )

    @partial(tf.function, autograph=False)  # that all layers call
    def attend(qkv, past):
        return tf.cond(S == 1, lambda: one(qkv, past), lambda: several(qkv, past))

    return attend


def _attend_token_at(config: OPTConfig, dtype: str, start, B, T) -> FusedAttention:
    """Nothing is moved around: queries, keys and values of a token are in order."""
    H, D = config.num_attention_heads, config.head_dim
    kinds = tf.range(2)[:, None] * B + tf.range(B)[:, None, None]
    heads = (kinds * H + tf.range(H)) * T
    rows = tf.reshape(heads + start[:, None, None], [-1])  # [B,2,H]
    write = _writer(config, dtype, rows, B, T)
    bias = visible(start[:, None], T)

    def attend(qkv, past):
        q, new = tf.split(tf.reshape(qkv, [B, 3, H, D]), [1, 2], axis=1)
        keys, values, kv = write(past, new)
        y = attend_token(tf.reshape(q, [B, H, 1, D]), keys, values, bias)
        return tf.reshape(y, [B, config.hidden_size]), kv

    return attend


def _attend_blocks_at(config: OPTConfig, dtype: str, start, B, S, T) -> FusedAttention:
    slots = start[:, None] + tf.range(S)
    heads = tf.range(2 * B * config.num_attention_heads) * T
    heads = tf.reshape(heads, [2, B, config.num_attention_heads, 1])
    rows = tf.reshape(heads + slots[:, None], [-1])
    write = _writer(config, dtype, rows, B, T)

    def attend(qkv, past):
        q, k, v = opt.split_qkv(config, qkv, B)
        keys, values, kv = write(past, tf.stack([k, v]))
        y = tf.transpose(attend_blocks(q, keys, values, start), [0, 2, 1, 3])
        return tf.reshape(y, [-1, config.hidden_size]), kv

    return attend


def _writer(config: OPTConfig, dtype: str, rows, B, T):
    """``write(past, new)``: ``new`` vectors [..., D] to ``rows`` [N] of a layer, in
    place; gives the layer's keys and values [B,H,T,D], and the buffer."""
    H, D = config.num_attention_heads, config.head_dim
    by_layer = tf.stack([config.num_hidden_layers, 2, B, H, T, D])
    per_layer = 2 * B * H * T

    def write(past, new):
        kv, at = past
        new = rounded(new, dtype)
        kv = tf.raw_ops.InplaceUpdate(
            x=kv, i=rows + at[0] * per_layer, v=tf.reshape(new, [-1, D])
        )
        mine = one_of(tf.reshape(kv, by_layer), at)
        return one_of(mine, 0), one_of(mine, 1), kv

    return write


def new_rows(config: OPTConfig, cache: KVCache, start, count, dtype: str):
    """The wire's rows [B,count,L,2,H,·] from slot ``start`` [B] on."""
    L, H, D = config.num_hidden_layers, config.num_attention_heads, config.head_dim
    B, T = opt.shape(start)[0], cache.T
    slots = (tf.range(B) * H * T + start)[:, None] + tf.range(count)
    rows = slots[:, :, None, None] + tf.range(2 * L)[:, None] * (B * H * T)
    gathered = tf.gather(cache.kv, rows + tf.range(H) * T)
    return pack(tf.reshape(gathered, [B, count, L, 2, H, D]), dtype)


# --- layers -------------------------------------------------------------------------


def run_layers(context: LayerContext, layers, x, kv):
    """All layers on ``x`` [N,E]: what the last one gave, and the buffer after it.

    Stacked ``layers`` are gone through by a loop of one body, which keeps graphs small;
    unrolled ones one by one, for kernels that keep something for each matrix.
    """
    if isinstance(layers, Unrolled):
        for i, p in enumerate(layers.layers()):
            x, kv, _ = opt.layer(context, p, x, (kv, place(tf.constant(i))))
        return x, kv

    def body(i, x, kv) -> Any:
        at = place(i)
        p = tf.nest.map_structure(lambda leaf: one_of(leaf, at), layers)
        x, kv, _ = opt.layer(context, p, x, (kv, at))
        return i + 1, x, kv

    _, x, kv = tf.while_loop(
        lambda i, *_: i < context.config.num_hidden_layers,
        body,
        (tf.constant(0), x, kv),
        shape_invariants=(
            tf.TensorShape([]),
            tf.TensorShape([None, x.shape[1]]),
            tf.TensorShape([None, kv.shape[1]]),
        ),
        parallel_iterations=1,
    )
    return x, kv


def forward(config: OPTConfig, params, dtype: str, hidden, cache: KVCache, start):
    """``hidden`` [B,S,E] through all layers, to slots ``start`` [B] and following.

    Returns hidden states [B,S,W] and the cache with the new rows in it.
    """
    B, S = opt.shape(hidden)[:2]
    attend = attend_at(config, dtype, start, B, S, cache.T)
    context = LayerContext(config, B, None, opt.append, attend_fused=attend)
    x = tf.reshape(hidden, [B * S, config.hidden_size])
    x, kv = run_layers(context, params["layers"], x, cache.kv)
    x = opt.final_projection(config, params, x)
    return tf.reshape(x, [B, S, config.embed_dim]), cache._replace(kv=kv)


# --- what the signatures call -------------------------------------------------------


def extend(config: OPTConfig, params, cache_dtype: str, ids, cache, cache_length):
    """Feed ``ids`` [B,S] after the cache: hidden [B,S,W], wire rows [B,S,L,2,H,·]."""
    S = opt.shape(ids)[1]
    kv = unpack_cache(cache, cache_length, cache_dtype, room=S)
    hidden = embed(config, params, ids, cache_length)
    hidden, kv = forward(config, params, cache_dtype, hidden, kv, cache_length)
    return hidden, new_rows(config, kv, cache_length, S, cache_dtype)


def asked_steps(request: GenerateRequest):
    """The most new tokens that a row asks for; 1 if none does."""
    return tf.maximum(tf.reduce_max(request.max_new_tokens), 1)


def decode_loop(
    config: OPTConfig,
    params,
    cache_dtype: str,
    N,
    request: GenerateRequest,
    cache: KVCache,
    advance: Callable[..., DecodeState],
) -> DecodeState:
    """Feed the prompt and choose a token, then feed that and choose the next, up to the
    most that a row asks for, ≤ N times. The prompt is fed also if none is asked for.

    ``advance`` is :func:`advance`, or a function of it that graphs share.
    """
    ids, length = request.input_ids, request.cache_length
    fed = tf.maximum(request.input_length, 1)  # the prompt
    B = opt.shape(ids)[0]
    steps = asked_steps(request)
    state = DecodeState(
        tf.constant(0),
        tf.gather(ids, fed - 1, axis=1, batch_dims=1),
        request.max_new_tokens > 0,
        tf.fill([B, N], -1),
        tf.zeros([B, N]),
        tf.fill([B, N, TOP_LOGPROBS], -1),
        tf.zeros([B, N, TOP_LOGPROBS]),
        request.marks.counts,
        cache.kv,
    )

    def body(state: DecodeState, ids):
        first = state.step == 0
        start = length + tf.where(first, 0, fed + state.step - 1)
        old = cache._replace(kv=state.new_kv)
        hidden = embed(config, params, ids, start)
        hidden, new = forward(config, params, cache_dtype, hidden, old, start)
        last = tf.where(first, fed - 1, 0)
        hidden = tf.gather(hidden, last, axis=1, batch_dims=1)
        logits = opt.lm_logits(config, params, hidden)
        rest = state._replace(new_kv=None)  # updated in place: for nobody else to see
        position = length + fed + state.step
        state = advance(request._replace(cache=None), rest, logits, position)
        kv = tf.ensure_shape(new.kv, [None, config.head_dim])
        return state._replace(new_kv=kv), state.token[:, None]

    # Of any N, so that the loops of all N share one ``advance``.
    shapes = tf.nest.map_structure(lambda x: x.shape, state)
    any_number = {
        name: tf.TensorShape([None, None, *getattr(state, name).shape[2:]])
        for name in ("tokens", "logprobs", "top_ids", "top_logprobs")
    }
    state, _ = tf.while_loop(
        lambda state, _: (
            (state.step == 0) | ((state.step < steps) & tf.reduce_any(state.alive))
        ),
        body,
        (state, ids),
        shape_invariants=(
            shapes._replace(**any_number),
            tf.TensorShape([None, None]),
        ),
        parallel_iterations=1,
    )
    return state


def generated(
    config: OPTConfig,
    cache_dtype: str,
    request: GenerateRequest,
    cache: KVCache,
    state: DecodeState,
) -> Generated:
    """The tokens that a loop generated, and the rows of all tokens that were fed.

    Rows beyond those that were asked for are zeros.
    """
    S, N = opt.shape(request.input_ids)[1], opt.shape(state.tokens)[1]
    count = tf.reduce_sum(tf.cast(state.tokens >= 0, tf.int32), axis=1)
    cache = cache._replace(kv=state.new_kv)
    steps = asked_steps(request)
    rows = new_rows(config, cache, request.cache_length, S + steps - 1, cache_dtype)
    rows = tf.pad(rows, [[0, 0], [0, N - steps], *[[0, 0]] * 4])
    top = state.top_ids, state.top_logprobs
    return Generated(state.tokens, state.logprobs, count, rows, *top)


def advance(
    request: GenerateRequest, state: DecodeState, logits, position
) -> DecodeState:
    """Choose each row's next token from ``logits`` [B,V]; the cache isn't looked at.

    ``position`` [B] is the new tokens' slot.
    """
    step, alive = state.step, state.alive
    B, N = opt.shape(state.tokens)
    marks = request.marks._replace(counts=state.counts)
    token, logprob, top_ids, top_logprobs = choose(
        logits, request.sampling, marks, position, step
    )
    now = tf.range(N) == step
    tokens = tf.where(alive, token, -1)[:, None]
    logprob = tf.where(alive, logprob, 0.0)[:, None]
    stop = tf.gather(marks.stops, token, axis=1, batch_dims=1)
    at = tf.stack([tf.range(B), token], axis=1)
    counts = tf.cond(  # nobody else looks at them
        tf.reduce_any(marks.modified),
        lambda: tf.tensor_scatter_nd_add(state.counts, at, tf.fill([B], 1)),
        lambda: state.counts,
    )
    reported = (now & alive[:, None])[:, :, None]
    return DecodeState(
        step + 1,
        tf.where(alive, token, state.token),
        alive & ~stop & (step + 1 < request.max_new_tokens),
        tf.where(now, tokens, state.tokens),
        tf.where(now, logprob, state.logprobs),
        tf.where(reported, top_ids[:, None], state.top_ids),
        tf.where(reported, top_logprobs[:, None], state.top_logprobs),
        counts,
        state.new_kv,
    )


def embed(config: OPTConfig, params, ids, start):
    """The decoder's input [B,S,E] for ``ids`` [B,S] at ``start`` [B] and following."""
    at = positions(config, start, opt.shape(ids)[1])
    return opt.embed(config, params, opt.take(params["embed_tokens"], ids), at)


def full_logits(config: OPTConfig, params, ids, mask):
    """Logits [B,S,V] of whole rows; ``mask`` [B,S] as Hugging Face has it."""
    B, S = opt.shape(ids)
    mask = tf.cast(mask, tf.int32)
    at = tf.minimum(opt.positions_from_mask(mask), config.max_position_embeddings - 1)
    hidden = opt.embed(config, params, opt.take(params["embed_tokens"], ids), at)
    bias = tf.where(opt.causal_mask(mask, S, 0), 0.0, tf.float32.min)
    context = LayerContext(config, B, bias, lambda past, k, v: (k, v, past[0]))
    x = tf.reshape(hidden, [B * S, config.hidden_size])
    x, _ = run_layers(context, params["layers"], x, tf.zeros([0, config.head_dim]))
    x = opt.final_projection(config, params, x)
    return opt.lm_logits(config, params, tf.reshape(x, [B, S, config.embed_dim]))


def scores(config: OPTConfig, params, ids, hidden):
    """Logits [B,S,V] of ``hidden`` [B,S,W], and log-probabilities [B,S] by them of the
    tokens that follow each of ``ids`` [B,S]; the last one's mean nothing."""
    logits = opt.lm_logits(config, params, hidden)
    following = tf.roll(ids, -1, axis=1)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(following, logits)
    return logits, -losses

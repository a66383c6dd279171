"""The serving graph in TensorFlow: the shared math with a cache that comes in and goes
out explicitly. Reads side by side with ``graph_jax.py``.

``cache`` is the wire's [B,C,L,2,H,·]; inside, a layer's keys and values are [B,H,C,D].
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from ...models.config import OPTConfig
from ...models.generation.sampling import SamplingParams
from ...models.layer_context import LayerContext
from ...models.tf import model as opt
from ...models.tf.sampling import choose
from .matmul_tf import Matrix, barrier


def pack(x, dtype: str):
    """Vectors [..., D] float32 as the wire carries them; see ``CacheLayout``."""
    if dtype == "float32":
        return x
    *lead, D = opt.shape(x)
    if dtype == "bfloat16":
        pairs = tf.reshape(tf.cast(x, tf.bfloat16), [*lead, D // 2, 2])
        return tf.bitcast(pairs, tf.float32)
    largest = tf.reduce_max(tf.abs(x), axis=-1, keepdims=True)
    scale = tf.where(largest > 0, _coarse(largest / 127.0), 1.0)
    fours = tf.reshape(tf.cast(tf.round(x / scale), tf.int8), [*lead, D // 4, 4])
    return tf.concat([tf.bitcast(fours, tf.float32), scale], axis=-1)


def _coarse(scale):
    """``scale`` with 16 significant bits, rounded up: 127 · scale is then exact, so
    that packing what was unpacked changes nothing."""
    bits = tf.bitcast(scale, tf.int32)
    return tf.bitcast((bits + 0xFF) & ~0xFF, tf.float32)


def unpack(wire, dtype: str):
    """The inverse of :func:`pack`, as far as the dtype allows."""
    if dtype == "float32":
        return wire
    *lead, width = opt.shape(wire)
    if dtype == "bfloat16":
        pairs = tf.bitcast(wire, tf.bfloat16)
        return tf.cast(tf.reshape(pairs, [*lead, 2 * width]), tf.float32)
    integers = tf.bitcast(wire[..., :-1], tf.int8)
    values = tf.cast(tf.reshape(integers, [*lead, 4 * (width - 1)]), tf.float32)
    return values * wire[..., -1:]


def positions(config: OPTConfig, start, S):
    """Positions [B,S] from ``start`` [B] on; padding stays inside the table."""
    last = config.max_position_embeddings - 1
    return tf.minimum(start[:, None] + tf.range(S), last)


def by_layers(cache, length, dtype: str):
    """The wire's cache as L pairs of keys and values [B,H,C,D], transposed once.

    Zero at ``length`` [B] and behind it, whatever a client left there: a weight of
    nothing doesn't make a NaN go away.
    """
    _, C, L, two, _, _ = opt.shape(cache)
    used = (tf.range(C) < length[:, None])[:, None, :, None]

    def part(layer, kind):
        found = unpack(tf.transpose(cache[:, :, layer, kind], [0, 2, 1, 3]), dtype)
        return tf.where(used, found, 0.0)

    return [[part(layer, kind) for kind in range(two)] for layer in range(L)]


def run_layers(context: LayerContext, layers, x, past):
    """:func:`.tf_opt.run_layers` by one function that each layer calls.

    Layers written one by one make a graph of twelve of them twice as large, and so
    what it takes in memory and time to trace and to load. Probabilities are None.
    """
    first = tf.nest.flatten(layers[0])

    @partial(tf.function, autograph=False)
    def one(given, x, past):
        leaves = [
            leaf.like(*found) if isinstance(leaf, Matrix) else found
            for leaf, found in zip(first, given, strict=True)
        ]
        p = tf.nest.pack_sequence_as(layers[0], leaves)
        return opt.layer(context, p, x, past)[:2]

    for i, p in enumerate(layers):
        given = [
            [read(leaf.values), read(leaf.scale)]
            if isinstance(leaf, Matrix)
            else read(leaf)
            for leaf in tf.nest.flatten(p)
        ]
        x, present = one(given, x, past[i] if past is not None else None)
        yield x, present, None


def read(leaf):
    """Variables as tensors: functions are traced anew for each variable."""
    return tf.convert_to_tensor(leaf) if isinstance(leaf, tf.Variable) else leaf


def extend(config: OPTConfig, params, cache_dtype: str, ids, cache, cache_length):
    """Feed ``ids`` [B,S] behind the cache: hidden [B,S,W], wire rows [L,2,B,H,S,·]."""
    B, S = opt.shape(ids)
    C = opt.shape(cache)[1]
    at = positions(config, cache_length, S)
    hidden = opt.embed(config, params, opt.take(params["embed_tokens"], ids), at)
    cached = tf.broadcast_to(
        (tf.range(C) < cache_length[:, None])[:, None, None, :], [B, 1, S, C]
    )
    causal = tf.range(S)[None, :] <= tf.range(S)[:, None]
    mask = tf.concat([cached, tf.broadcast_to(causal, [B, 1, S, S])], axis=-1)

    def store(old, k, v):
        wire = pack(k, cache_dtype), pack(v, cache_dtype)
        k, v = (unpack(x, cache_dtype) for x in wire)
        return tf.concat([old[0], k], axis=2), tf.concat([old[1], v], axis=2), wire

    past = by_layers(cache, cache_length, cache_dtype)
    done = opt.decoder(
        config, params, hidden, mask, past=past, store=store, run=run_layers
    )
    return done.last_hidden_state, tf.stack([tf.stack(wire) for wire in done.cache])


class Request(NamedTuple):
    """What :func:`generate` starts from.

    ``token`` [B] is fed first, to slot ``length`` [B]; a row makes up to ``limit`` [B]
    tokens and ends after one that ``stops`` [B,V] marks; all end after ``steps``.
    """

    token: Any
    cache: Any
    length: Any
    limit: Any
    stops: Any
    seen: Any
    steps: Any
    wanted: SamplingParams


class Chosen(NamedTuple):
    """What a loop has made after ``step`` steps."""

    step: Any
    token: Any  # [B], fed next
    alive: Any  # [B]
    tokens: Any  # [B,N], −1 where there is none
    logprobs: Any  # [B,N]
    seen: Any  # [B,V]


def generate(
    config: OPTConfig,
    params_at,
    cache_dtype: str,
    N: int,
    request: Request,
    *,
    compiled: bool,
):
    """:func:`loop` with one function for all of a step.

    ``params_at(step)`` are the weights inside the loop; ``compiled`` says that XLA
    compiles it.
    """
    hold = barrier if compiled else tf.identity
    past = [  # made once, not in each step again
        [hold(x) for x in layer]
        for layer in by_layers(request.cache, request.length, cache_dtype)
    ]

    def forward(step, token, made):
        params = params_at(step)
        done = opt.decoder(
            config,
            params,
            embed_token(config, params, token, request.length + step),
            attended(request.length, opt.shape(past[0][0])[2], step, N),
            past=list(zip(past, made, strict=True)),
            store=store_at(step, cache_dtype, compiled=compiled),
            run=run_layers,
        )
        return opt.lm_logits(config, params, done.last_hidden_state[:, 0]), done.cache

    def choose_next(chosen, logits):
        return advance(request, chosen, logits, compiled=compiled)

    made = nothing_made(config, opt.shape(request.token)[0], N)
    chosen, made = loop(N, request, forward, choose_next, made)
    return results(chosen, made, cache_dtype)


def loop(N: int, request: Request, forward, choose_next, made):
    """Feed a token, choose the next, up to ``steps`` ≤ N times, while a row goes on.

    ``forward(step, token, made)`` gives what ``choose_next(chosen, ·)`` chooses from,
    and ``made``, the keys and values [B,H,N,D] of the new rows. That is all of the
    cache that the loop carries: it may copy what it carries. Returns the last of both.
    """
    B = opt.shape(request.token)[0]
    start = Chosen(
        tf.constant(0),
        request.token,
        request.limit > 0,
        tf.fill([B, N], -1),
        tf.zeros([B, N]),
        request.seen,
    )

    def body(chosen, made) -> Any:
        found, made = forward(chosen.step, chosen.token, made)
        return choose_next(chosen, found), made

    return tf.while_loop(
        lambda chosen, _: (chosen.step < request.steps) & tf.reduce_any(chosen.alive),
        body,
        (start, made),
        parallel_iterations=1,
    )


def nothing_made(config: OPTConfig, B, N: int):
    """Room for N new rows: L pairs of keys and values [B,H,N,D]."""
    room = tf.zeros([B, config.num_attention_heads, N, config.head_dim])
    return [[room, room] for _ in range(config.num_hidden_layers)]


def results(chosen: Chosen, made, cache_dtype: str):
    """Tokens [B,N], logprobs [B,N], count [B], and wire rows [L,2,B,H,N,·].

    ``made`` are L pairs of keys and values [B,H,N,D].
    """
    made = tf.stack([tf.stack(layer) for layer in made])
    count = tf.reduce_sum(tf.cast(chosen.tokens >= 0, tf.int32), axis=1)
    return chosen.tokens, chosen.logprobs, count, pack(made, cache_dtype)


def advance(request: Request, chosen: Chosen, logits, *, compiled: bool) -> Chosen:
    """Choose each row's next token from ``logits`` [B,V]; the cache isn't looked at."""
    step, alive = chosen.step, chosen.alive
    B, N = opt.shape(chosen.tokens)
    position = request.length + step + 1
    token, logprob = choose(
        logits, request.wanted, position, chosen.seen, compiled=compiled
    )
    now = tf.range(N) == step
    tokens = tf.where(alive, token, -1)[:, None]
    logprob = tf.where(alive, logprob, 0.0)[:, None]
    stop = tf.gather(request.stops, token, axis=1, batch_dims=1)
    marks = tf.stack([tf.range(B), token], axis=1)
    return Chosen(
        step + 1,
        tf.where(alive, token, chosen.token),
        alive & ~stop & (step + 1 < request.limit),
        tf.where(now, tokens, chosen.tokens),
        tf.where(now, logprob, chosen.logprobs),
        tf.tensor_scatter_nd_update(chosen.seen, marks, tf.fill([B], True)),
    )


def embed_token(config: OPTConfig, params, token, at):
    """The decoder's input [B,1,E] for a token of each row, at positions ``at`` [B]."""
    at = tf.minimum(at, config.max_position_embeddings - 1)
    embeds = opt.take(params["embed_tokens"], token)[:, None]
    return opt.embed(config, params, embeds, at[:, None])


def attended(length, C, step, N: int):
    """Which of C cached and N new slots a loop attends to: boolean [B,1,1,C+N]."""
    B = opt.shape(length)[0]
    cached = tf.range(C) < length[:, None]
    new = tf.broadcast_to(tf.range(N) <= step, [B, N])
    return tf.concat([cached, new], axis=1)[:, None, None, :]


def store_at(step, cache_dtype: str, *, compiled: bool):
    """A loop's cache policy: old keys and values stay apart from the new ones."""
    write = write_slot_compiled if compiled else write_slot

    def store(old, k, v):
        (old_k, old_v), made = old
        kv = (unpack(pack(x, cache_dtype), cache_dtype) for x in (k, v))
        k, v = (write(*pair, step) for pair in zip(made, kv, strict=True))
        return (old_k, k), (old_v, v), [k, v]

    return store


def write_slot(buffer, rows, slot):
    """``rows`` [B,H,1,D] into ``buffer`` [B,H,T,D] at ``slot``."""
    B, H, T, D = opt.shape(buffer)
    at = tf.range(B * H)[:, None] * T + slot
    flat = tf.reshape(buffer, [B * H * T, D])
    flat = tf.tensor_scatter_nd_update(flat, at, tf.reshape(rows, [B * H, D]))
    return tf.reshape(flat, [B, H, T, D])


def write_slot_compiled(buffer, rows, slot):
    """The same for XLA."""
    return xla.dynamic_update_slice(buffer, rows, tf.stack([0, 0, slot, 0]))


def full_logits(config: OPTConfig, params, ids, mask):
    """Logits [B,S,V] of whole rows; ``mask`` [B,S] as Hugging Face has it."""
    mask = tf.cast(mask, tf.int32)
    at = tf.minimum(opt.positions_from_mask(mask), config.max_position_embeddings - 1)
    done = opt.base_model(config, params, ids, mask, position_ids=at, run=run_layers)
    return opt.lm_logits(config, params, done.last_hidden_state)


def token_logprobs(config: OPTConfig, params, ids, hidden):
    """Log-probability [B,S] of each token given those before it; 0 for the first."""
    logits = opt.lm_logits(config, params, hidden[:, :-1])
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(ids[:, 1:], logits)
    return tf.pad(-losses, [[0, 0], [1, 0]])

"""The serving graph in JAX: the shared math with a cache that comes in and goes out
explicitly. Reads side by side with ``graph_tf.py``.

``cache`` is the wire's [B,C,L,2,H,·]; inside, a layer's keys and values are [B,H,C,D].
"""

from __future__ import annotations

from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ...models.config import OPTConfig
from ...models.flax import model as opt
from ...models.flax.sampling import choose
from ...models.generation.sampling import SamplingParams
from ...models.weights import PackedWeight

_MOST_ROWS_OF_FLOAT32 = 4  # one by one, without anything to convert
_BLOCK = 8192  # of a matrix's rows: stays in the processor's cache for the next row
_LONG_ROW = 4096  # numbers: with 16 KiB XLA makes no one loop of a product any more
_PIECE = 2048  # of a long row
_PLACES = 4  # of a matrix read in turns: some processors fetch ahead at each


class Matrix(PackedWeight):
    """A stored matrix [out, in] of any of the weight dtypes, multiplied in float32.

    One row times a matrix is read at the memory's speed, whatever it is stored as, if
    XLA makes one loop of the conversion and the product, and of nothing else. ``step``
    is for that: a number that is never negative, which XLA doesn't know. Without it
    XLA would convert the weights once ahead of the loop and so stream four times as
    much, compute what precedes the product again for each output, and give the product
    up for what follows it. A few rows are as many such products. A single row goes
    through the matrix ``in_turns``, in several places, where that is quicker (see
    :func:`.trials.quicker_in_turns`).
    """

    def __init__(
        self,
        values: Any,
        scale: Any = None,
        step: Any = None,
        *,
        in_turns: bool = False,
    ) -> None:
        self.values, self.scale, self.step = values, scale, step
        self.in_turns = in_turns

    def __getitem__(self, i: Any) -> Matrix:
        """One of the matrices of a stack."""
        scale = None if self.scale is None else self.scale[i]
        return Matrix(self.values[i], scale, self.step, in_turns=self.in_turns)

    def matmul(self, x):
        if self.step is None:
            values = self.values
            if values.dtype != jnp.float32:
                # Nothing is added, but XLA doesn't know. Else it converts all matrices
                # ahead of the first product: gigabytes.
                never = jnp.isnan(x[0, 0]) & jnp.isinf(x[0, 0])
                values = values + never.astype(values.dtype)
            y = _product(x, values.astype(jnp.float32))
        else:
            y = self._by_row(x)
        return y if self.scale is None else y * self.scale

    def _by_row(self, x):
        rows, size = x.shape
        values, _ = lax.optimization_barrier((self.values, self.step))
        if values.dtype == jnp.float32:
            if rows > _MOST_ROWS_OF_FLOAT32:
                return lax.optimization_barrier(_product(x, values))
            # With nothing to convert XLA would call a library, which is slower.
            values = values * jnp.where(self.step < -1, 2.0, 1.0)
        # XLA doesn't move a division into another operation's inner loop.
        x = x / jnp.where(jnp.arange(size) < -1 - self.step, 2.0, 1.0)
        values = values.astype(jnp.float32)
        if rows == 1 and self.in_turns:
            turns = gcd(_PLACES, values.shape[0]), -1
            y = _one_row(x, _swapped(values.T, turns))
            return _swapped(y, turns[::-1])
        size = _BLOCK if rows > 1 else values.shape[0]
        columns = []
        for at in range(0, values.shape[0], size):
            block = values[at : at + size].T
            products = [_one_row(x[row : row + 1], block) for row in range(rows)]
            columns.append(jnp.concatenate(products, axis=0))
        return jnp.concatenate(columns, axis=1)

    def take(self, rows):
        found = opt.take(self.values, rows).astype(jnp.float32)
        if self.scale is None:
            return found
        return found * opt.take(self.scale, rows)[..., None]


def _product(x, values):
    """``x @ values.T``, for which XLA would copy the matrix if ``x`` is one row: 96
    instead of 6 ms for 256 MB."""
    return lax.dot_general(x, values, (((1,), (1,)), ((), ())))


def _one_row(x, matrix):
    """``x`` [1, K] times ``matrix`` [K, N], in pieces that XLA makes one loop of."""
    K = x.shape[1]
    size = K if K < _LONG_ROW else _PIECE
    starts = range(0, K, size)
    pieces = (x[:, k : k + size] @ matrix[k : k + size] for k in starts)
    return sum(map(lax.optimization_barrier, pieces))


def _swapped(x, sizes):
    """Columns of ``x`` [N, a·b], for ``sizes`` (a, b), in the order of [N, b·a]."""
    return x.reshape(x.shape[0], *sizes).swapaxes(1, 2).reshape(x.shape)


def pack(x, dtype: str):
    """Vectors [..., D] float32 as the wire carries them; see ``CacheLayout``.

    By shifts: XLA has no bitcast between types of different size for symbolic shapes.
    """
    if dtype == "float32":
        return x
    if dtype == "bfloat16":
        wide = x.astype(jnp.bfloat16).astype(jnp.float32)
        return _words(lax.bitcast_convert_type(wide, jnp.uint32) >> 16, 2)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    scale = jnp.where(largest > 0, _coarse(largest / 127.0), 1.0)
    integers = jnp.round(x / scale).astype(jnp.int32)
    wire = _words(lax.bitcast_convert_type(integers, jnp.uint32) & 0xFF, 4)
    return jnp.concatenate([wire, scale], axis=-1)


def _words(parts, count: int):
    """``count`` neighbours [..., D] uint32 in one float32, the first one lowest."""
    bits = 32 // count
    groups = parts.reshape(*parts.shape[:-1], parts.shape[-1] // count, count)
    words = groups[..., 0]
    for i in range(1, count):
        words = words | (groups[..., i] << (bits * i))
    return lax.bitcast_convert_type(words, jnp.float32)


def _coarse(scale):
    """``scale`` with 16 significant bits, rounded up: 127 · scale is then exact, so
    that packing what was unpacked changes nothing."""
    bits = lax.bitcast_convert_type(scale, jnp.int32)
    return lax.bitcast_convert_type((bits + 0xFF) & ~0xFF, jnp.float32)


def unpack(wire, dtype: str):
    """The inverse of :func:`pack`, as far as the dtype allows."""
    if dtype == "float32":
        return wire
    *lead, width = wire.shape
    if dtype == "bfloat16":
        words = lax.bitcast_convert_type(wire, jnp.uint32)
        pairs = jnp.stack([words << 16, (words >> 16) << 16], axis=-1)
        pairs = lax.bitcast_convert_type(pairs, jnp.float32)
        return pairs.reshape(*lead, 2 * width)
    words = lax.bitcast_convert_type(wire[..., :-1], jnp.int32)
    fours = jnp.stack([(words << left) >> 24 for left in (24, 16, 8, 0)], axis=-1)
    values = fours.astype(jnp.float32).reshape(*lead, 4 * (width - 1))
    return values * wire[..., -1:]


def positions(config: OPTConfig, start, S):
    """Positions [B,S] from ``start`` [B] on; padding stays inside the table."""
    last = config.max_position_embeddings - 1
    return jnp.minimum(start[:, None] + jnp.arange(S, dtype=jnp.int32), last)


def by_layers(cache, length, dtype: str):
    """The wire's cache as L pairs of keys and values [B,H,C,D], transposed once.

    Zero at ``length`` [B] and behind it, whatever a client left there: a weight of
    nothing doesn't make a NaN go away.
    """
    _, C, L, two, _, _ = cache.shape
    used = (jnp.arange(C) < length[:, None])[:, None, :, None]

    def part(layer, kind):
        found = unpack(cache[:, :, layer, kind].transpose(0, 2, 1, 3), dtype)
        return jnp.where(used, found, 0.0)

    return [[part(layer, kind) for kind in range(two)] for layer in range(L)]


def extend(config: OPTConfig, params, cache_dtype: str, ids, cache, cache_length):
    """Feed ``ids`` [B,S] behind the cache: hidden [B,S,W], wire rows [L,2,B,H,S,·]."""
    B, S = ids.shape
    C = cache.shape[1]
    at = positions(config, cache_length, S)
    hidden = opt.embed(config, params, opt.take(params["embed_tokens"], ids), at)
    cached = jnp.broadcast_to(
        (jnp.arange(C) < cache_length[:, None])[:, None, None, :], (B, 1, S, C)
    )
    causal = jnp.arange(S)[None, :] <= jnp.arange(S)[:, None]
    mask = jnp.concatenate([cached, jnp.broadcast_to(causal, (B, 1, S, S))], axis=-1)

    def store(old, k, v):
        wire = pack(k, cache_dtype), pack(v, cache_dtype)
        k, v = (unpack(x, cache_dtype) for x in wire)
        keys = jnp.concatenate([old[0], k], axis=2)
        return keys, jnp.concatenate([old[1], v], axis=2), wire

    past = by_layers(cache, cache_length, cache_dtype)
    done = opt.decoder(config, params, hidden, mask, past=past, store=store)
    return done.last_hidden_state, jnp.stack([jnp.stack(wire) for wire in done.cache])


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


class _State(NamedTuple):
    step: Any
    token: Any  # [B], fed next
    alive: Any  # [B]
    tokens: Any  # [B,N], −1 where there is none
    logprobs: Any  # [B,N]
    seen: Any  # [B,V]
    made: list[Any]  # L of (keys, values), each [B,H,N,D], row ``step`` of each step


def generate(config: OPTConfig, params_at, cache_dtype: str, N: int, request: Request):
    """Feed a token, choose the next, up to ``steps`` ≤ N times, while a row goes on.

    ``params_at(step)`` are the weights inside the loop. The loop carries the new rows
    only, not the C slots of ``cache``: XLA copies what it carries at each step. Returns
    tokens [B,N], logprobs [B,N], count [B], and wire rows [L,2,B,H,N,·].
    """
    B, C = request.token.shape[0], request.cache.shape[1]
    H, D = config.num_attention_heads, config.head_dim
    # Made once, not in each step again.
    past = lax.optimization_barrier(
        by_layers(request.cache, request.length, cache_dtype)
    )

    def body(state: _State) -> _State:
        params, step = params_at(state.step), state.step
        at = jnp.minimum(request.length + step, config.max_position_embeddings - 1)
        embeds = opt.take(params["embed_tokens"], state.token)[:, None]
        cached = jnp.arange(C) < request.length[:, None]
        new = jnp.broadcast_to(jnp.arange(N) <= step, (B, N))
        mask = jnp.concatenate([cached, new], axis=1)[:, None, None, :]

        def store(old, k, v):
            (old_k, old_v), made = old
            kv = (unpack(pack(x, cache_dtype), cache_dtype) for x in (k, v))
            k, v = (
                lax.dynamic_update_slice(*pair, (0, 0, step, 0))
                for pair in zip(made, kv, strict=True)
            )
            return (old_k, k), (old_v, v), (k, v)

        done = opt.decoder(
            config,
            params,
            opt.embed(config, params, embeds, at[:, None]),
            mask,
            past=list(zip(past, state.made, strict=True)),
            store=store,  # pyright: ignore[reportArgumentType]
        )
        logits = opt.lm_logits(config, params, done.last_hidden_state[:, 0])
        position = request.length + step + 1
        token, logprob = choose(logits, request.wanted, position, state.seen)
        alive = state.alive
        tokens = jnp.where(alive, token, -1)
        stop = jnp.take_along_axis(request.stops, token[:, None], 1, mode="clip")[:, 0]
        return _State(
            step + 1,
            jnp.where(alive, token, state.token),
            alive & ~stop & (step + 1 < request.limit),
            lax.dynamic_update_slice(state.tokens, tokens[:, None], (0, step)),
            lax.dynamic_update_slice(
                state.logprobs, jnp.where(alive, logprob, 0)[:, None], (0, step)
            ),
            state.seen.at[jnp.arange(B), token].set(True),
            done.cache,
        )

    start = _State(
        jnp.int32(0),
        request.token,
        request.limit > 0,
        jnp.full((B, N), -1, jnp.int32),
        jnp.zeros((B, N)),
        request.seen,
        [(jnp.zeros((B, H, N, D)),) * 2 for _ in past],
    )
    end = lax.while_loop(
        lambda state: (state.step < request.steps) & jnp.any(state.alive), body, start
    )
    made = jnp.stack([jnp.stack(layer) for layer in end.made])
    count = jnp.sum(end.tokens >= 0, axis=1, dtype=jnp.int32)
    return end.tokens, end.logprobs, count, pack(made, cache_dtype)


def full_logits(config: OPTConfig, params, ids, mask):
    """Logits [B,S,V] of whole rows; ``mask`` [B,S] as Hugging Face has it."""
    at = jnp.minimum(opt.positions_from_mask(mask), config.max_position_embeddings - 1)
    done = opt.base_model(config, params, ids, mask, position_ids=at)
    return opt.lm_logits(config, params, done.last_hidden_state)


def token_logprobs(config: OPTConfig, params, ids, hidden):
    """Log-probability [B,S] of each token given those before it; 0 for the first."""
    logits = opt.lm_logits(config, params, hidden)
    following = jnp.roll(ids, -1, axis=1)[..., None]
    chosen = jnp.take_along_axis(
        jax.nn.log_softmax(logits), following, axis=-1, mode="clip"
    )
    shifted = jnp.roll(chosen[..., 0], 1, axis=1)
    return jnp.where(jnp.arange(ids.shape[1]) == 0, 0.0, shifted)

"""JAX functions inside the signatures, each compiled by XLA for a few sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import tensorflow as tf

from ...models.config import OPTConfig
from ...runtime.contract import CacheLayout
from . import graph_jax, paged_cache
from .buckets import Sizes
from .loop_jax import JaxLoop
from .programs_jax import JaxPrograms, float32, int32, stored_once
from .prompts import after_prompt
from .requests import Generated, GenerateRequest
from .row_groups import by_rows, fit, in_groups, position

_HEAD_ROWS = 128
"""How many tokens' logits are computed at once where all of a text's are asked for."""


class JaxBackend:
    """Programs for the rows and prompt sizes of ``sizes``, and any size of cache.

    Rows are filled up to the next size, and more than the largest go through in
    groups. So do several rows of long prompts, in groups of the fewest rows. Prompts
    longer than the largest size, which is a page's too, are fed piece by piece.
    """

    def __init__(
        self,
        config: OPTConfig,
        stored: Mapping[str, tf.Variable],
        layout: CacheLayout,
        *,
        tokens: int,
        sizes: Sizes,
    ) -> None:
        self.resources: dict[str, Any] = {}
        self.loop = JaxLoop(config, stored, layout, tokens=tokens, rows=sizes.rows)
        slots = sizes.prompt[-1]
        # One row may have a long cache where another has a long prompt.
        pages = 2 * -(-config.max_position_embeddings // slots)
        self._jax = JaxPrograms(config, stored, layout, pages, slots)
        self._rows = self._jax.affordable(sizes.rows)
        self.compiled = replace(sizes, rows=self._rows)
        self.compiled_loop = self.loop.sizes
        self._prompt = {
            (rows, S): self._extend_program(rows, S)
            for rows in self._rows
            for S in self.compiled.prompts_of(rows)
        }
        self._head = {
            rows: self._head_program(rows) for rows in {*self._rows, _HEAD_ROWS}
        }
        self._extend_rows = {
            rows: stored_once(partial(self._extended_rows, rows), *self._fed(rows))
            for rows in self._rows
        }
        self.extend = stored_once(self._extended, *self._fed(None))
        hidden = float32(None, None, config.embed_dim)
        self._score = stored_once(self._scored, hidden, int32(None, None))

    def _fed(self, rows: int | None) -> tuple[tf.TensorSpec, ...]:
        """What :meth:`extend` takes."""
        cache = float32(rows, None, *self._jax.layout.row_shape)
        return int32(rows, None), cache, int32(rows)

    # --- programs -------------------------------------------------------------------

    def _extend_program(self, rows: int, S: int):
        jax = self._jax

        def extend(params, ids, start, pages):
            pages = graph_jax.Pages(*pages)
            return graph_jax.extend(
                jax.config, params, jax.layout.dtype, ids, start, pages
            )

        pages = jax.pages_spec(rows)
        return jax.program(extend, int32(rows, S), int32(rows), pages)

    def _head_program(self, rows: int):
        def head(params, hidden, ids):
            return graph_jax.score(self._jax.config, params, hidden, ids)

        hidden = float32(rows, self._jax.config.embed_dim)
        return self._jax.program(head, hidden, int32(rows))

    # --- what the signatures call ---------------------------------------------------

    def _extended(self, ids, cache, cache_length):
        """Hidden states [B,S,W] and new rows [B,S,L,2,H,·] of ``ids`` [B,S]."""
        outputs = (
            float32(None, None, self._jax.config.embed_dim),
            float32(None, None, *self._jax.layout.row_shape),
        )
        sizes = [self.compiled.prompts_of(rows) for rows in self._rows]
        return by_rows(
            self._rows,
            self._extend_rows.__getitem__,
            (ids, cache, cache_length),
            outputs,
            limits=[tf.int32.max, *(prompts[-1] for prompts in sizes[1:])],
            length=tf.shape(ids)[1],
        )

    def _extended_rows(self, rows: int, ids, cache, cache_length):
        pages = self._jax.paged(rows, cache, cache_length)
        sizes = self.compiled.prompts_of(rows)
        branches: list[Any] = [
            partial(self._whole, rows, size, ids, cache_length, pages) for size in sizes
        ]
        if rows == self._rows[0]:
            branches.append(partial(self._in_pieces, rows, ids, cache_length, pages))
        return tf.switch_case(position(sizes, tf.shape(ids)[1]), branches)

    def _whole(self, rows: int, size: int, ids, start, pages: paged_cache.Pages):
        S = tf.shape(ids)[1]
        padded = tf.ensure_shape(fit(ids, 1, size), [rows, size])
        hidden, new_cache = self._prompt[rows, size](padded, start, pages)
        return hidden[:, :S], new_cache[:, :S]

    def _in_pieces(self, rows: int, ids, start, pages: paged_cache.Pages):
        S, size = tf.shape(ids)[1], self._jax.slots
        count = -(-S // size)
        pieces = tf.reshape(fit(ids, 1, count * size), [rows, count, size])
        full, dtype = tf.fill([rows], size), self._jax.layout.dtype

        def feed(i, pages, hidden, new_cache) -> Any:
            program = self._prompt[rows, size]
            outputs = program(pieces[:, i], start + size * i, pages)
            pages = paged_cache.append(pages, outputs[1], full, dtype)
            return (
                i + 1,
                pages,
                hidden.write(i, outputs[0]),
                new_cache.write(i, outputs[1]),
            )

        arrays = [tf.TensorArray(tf.float32, count) for _ in range(2)]
        _, _, *outputs = tf.while_loop(
            lambda i, *_: i < count,
            feed,
            (tf.constant(0), pages, *arrays),
            parallel_iterations=1,
        )
        W, row = self._jax.config.embed_dim, self._jax.layout.row_shape
        return tuple(
            _joined(array.stack(), [rows, count * size, *shape])[:, :S]
            for array, shape in zip(outputs, ([W], row), strict=True)
        )

    def generate(self, request: GenerateRequest, N: int, *, often: bool) -> Generated:
        """Up to N tokens for each row."""
        return after_prompt(request, N, self.extend, self.loop.generate)

    def logits(self, hidden):
        """Hidden states [B,W] → [B,V]."""

        def head(rows: int):
            nothing = tf.zeros([rows], tf.int32)
            return lambda hidden: self._head[rows](hidden, nothing)[:1]

        outputs = (float32(None, self._jax.config.vocab_size),)
        return by_rows(self._rows, head, (hidden,), outputs)[0]

    def full_logits(self, ids, mask):
        """Logits [B,S,V] of padded rows; ``mask`` [B,S] as Hugging Face has it.

        What is padding goes to the end of its row, and its logits mean nothing.
        """
        B, S = tf.unstack(tf.shape(ids))
        padding = tf.cast(mask == 0, tf.int32)
        order = tf.argsort(padding, axis=1, stable=True)
        packed = tf.gather(ids, order, axis=1, batch_dims=1)
        no_cache = tf.zeros([B, 0, *self._jax.layout.row_shape])
        hidden, _ = self.extend(packed, no_cache, tf.zeros([B], tf.int32))
        slot = tf.maximum(tf.cumsum(1 - padding, axis=1) - 1, 0)
        hidden = tf.gather(hidden, slot, axis=1, batch_dims=1)
        return self._score(hidden, tf.zeros([B, S], tf.int32))[0]

    def scores(self, ids, hidden):
        """Logits [B,S,V], and log-probabilities [B,S] of the tokens that follow."""
        return self._score(hidden, tf.roll(ids, -1, axis=1))

    def _scored(self, hidden, ids):
        """Logits [B,S,V] of ``hidden``, and log-probabilities [B,S] of ``ids``."""
        B, S = tf.unstack(tf.shape(ids))
        W, V = self._jax.config.embed_dim, self._jax.config.vocab_size
        flat = tf.reshape(hidden, [B * S, W]), tf.reshape(ids, [B * S])
        outputs = float32(None, V), float32(None)
        head = self._head[_HEAD_ROWS]
        logits, logprobs = in_groups(_HEAD_ROWS, head, flat, outputs)
        return tf.reshape(logits, [B, S, V]), tf.reshape(logprobs, [B, S])


def _joined(pieces, shape):
    """[n,B,T,…] → ``shape`` [B,n·T,…]."""
    order = [1, 0, *range(2, len(shape) + 1)]
    return tf.reshape(
        tf.transpose(tf.ensure_shape(pieces, [None] * len(order)), order), shape
    )

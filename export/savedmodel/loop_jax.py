"""The loop of ``generate_{N}``, compiled by XLA for a few numbers of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from ...models.config import OPTConfig
from ...runtime.contract import CacheLayout
from . import graph_jax
from .buckets import LOOP_PAGE, Sizes
from .programs_jax import JaxPrograms, float32, int32, stored_once
from .requests import Generated, GenerateRequest, request_spec
from .row_groups import by_rows


class JaxLoop:
    """Takes requests of one token per row, any number of rows and any size of cache.

    Args:
        config: the architecture.
        stored: the weights, as :func:`..weights.packed_weights` names them.
        layout: of the cache on the wire.
        tokens: N, the most that one call generates.
        rows: the numbers of rows that are compiled for, ascending.
    """

    def __init__(
        self,
        config: OPTConfig,
        stored: Mapping[str, tf.Variable],
        layout: CacheLayout,
        *,
        tokens: int,
        rows: Sequence[int],
    ) -> None:
        slots = min(LOOP_PAGE, config.max_position_embeddings)
        pages = -(-config.max_position_embeddings // slots)
        self._jax = JaxPrograms(config, stored, layout, pages, slots)
        self._rows = self._jax.affordable(rows)
        self._programs = {rows: self._program(rows, tokens) for rows in self._rows}
        self.sizes = Sizes(rows=self._rows)
        self._generate_rows = {
            rows: stored_once(
                partial(self._run, rows), *tf.nest.flatten(self._request_spec(rows))
            )
            for rows in self._rows
        }
        self._generate = stored_once(self._by_rows, self._request_spec(None))

    def generate(self, request: GenerateRequest) -> Generated:
        """Up to N tokens for each row; ``request.input_ids`` are [B,1]."""
        return self._generate(request)

    def _by_rows(self, request: GenerateRequest) -> Generated:
        outputs = (
            int32(None, None),
            float32(None, None),
            int32(None),
            float32(None, None, *self._jax.layout.row_shape),
            int32(None, None, None),
            float32(None, None, None),
        )
        inputs = tf.nest.flatten(request)
        generated = by_rows(
            self._rows, self._generate_rows.__getitem__, inputs, outputs
        )
        return Generated(*generated)

    def _run(self, rows: int, *inputs: Any) -> tuple[Any, ...]:
        request = tf.nest.pack_sequence_as(self._request_spec(rows), inputs)
        pages = self._jax.paged(rows, request.cache, request.cache_length)
        return tuple(self._programs[rows](request._replace(cache=pages)))

    def _program(self, rows: int, tokens: int):
        jax = self._jax

        def loop(params, request: GenerateRequest):
            request = request._replace(cache=graph_jax.Pages(*request.cache))
            return graph_jax.generate(
                jax.config, params, jax.layout.dtype, tokens, request
            )

        request = self._request_spec(rows)._replace(cache=jax.pages_spec(rows))
        return jax.program(loop, request)

    def _request_spec(self, rows: int | None) -> GenerateRequest:
        cache = float32(rows, None, *self._jax.layout.row_shape)
        return request_spec(rows, 1, cache, self._jax.config.vocab_size)

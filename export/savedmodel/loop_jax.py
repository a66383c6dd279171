"""The loop of ``generate_{N}``, compiled by XLA for a few numbers of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from ...models.config import OPTConfig
from ...runtime.contract import CacheLayout
from . import graph_jax
from .buckets import Sizes
from .programs_jax import JaxPrograms, int32
from .requests import Generated, GenerateRequest, SamplingParams
from .row_groups import by_rows

_PAGE = 128  # slots


class JaxLoop:
    """Takes requests of one token a row, any number of rows and any size of cache.

    Args:
        config: the architecture.
        stored: the weights, as :func:`..weights.packed_weights` names them.
        layout: of the cache on the wire.
        tokens: N, the most that one call makes.
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
        slots = min(_PAGE, config.max_position_embeddings)
        pages = -(-config.max_position_embeddings // slots)
        self._jax = JaxPrograms(config, stored, layout, pages, slots)
        self._rows = self._jax.affordable(rows)
        self._programs = {rows: self._program(rows, tokens) for rows in self._rows}
        self.sizes = Sizes(rows=self._rows)

    def generate(self, request: GenerateRequest) -> Generated:
        """Up to N tokens for each row; ``request.input_ids`` are [B,1]."""

        def loop(rows: int):
            def run(*inputs):
                request = _packed(inputs)
                pages = self._jax.paged(rows, request.cache, request.cache_length)
                return self._programs[rows](request._replace(cache=pages))

            return run

        outputs = (
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None, None]),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None, None, *self._jax.layout.row_shape]),
        )
        inputs = tf.nest.flatten(request)
        return Generated(*by_rows(self._rows, loop, inputs, outputs))

    def _program(self, rows: int, tokens: int):
        jax = self._jax

        def loop(params, request: GenerateRequest):
            request = request._replace(cache=graph_jax.Pages(*request.cache))
            return graph_jax.generate(
                jax.config, params, jax.layout.dtype, tokens, request
            )

        vector, real = int32(rows), tf.TensorSpec([rows])
        flags = tf.TensorSpec([rows, jax.config.vocab_size], tf.bool)
        request = GenerateRequest(
            input_ids=int32(rows, 1),
            input_length=vector,
            cache=jax.pages_spec(rows),
            cache_length=vector,
            max_new_tokens=vector,
            stops=flags,
            seen=flags,
            sampling=SamplingParams(int32(rows, 2), real, vector, real, real),
        )
        return jax.program(loop, request)


def _packed(flat) -> GenerateRequest:
    """The inverse of ``tf.nest.flatten``."""
    count = len(SamplingParams._fields)
    return GenerateRequest(*flat[:-count], sampling=SamplingParams(*flat[-count:]))

"""Who computes inside the signatures: the TensorFlow graph, or JAX compiled by XLA.

Both offer the same few functions of TensorFlow tensors, so that the signatures are
written once (``signatures.py``). Weights are :class:`tf.Variable` in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from ..models.config import OPTConfig
from .packing import assemble


class TFBackend:
    """Plain TensorFlow ops."""

    def __init__(
        self, config: OPTConfig, stored: Mapping[str, tf.Variable], cache_dtype: str
    ) -> None:
        from . import graph_tf

        self._graph = graph_tf
        self._config, self._cache_dtype = config, cache_dtype
        self._stored = stored

    def _params(self) -> dict[str, Any]:
        return assemble(self._config, self._stored, self._graph.Matrix)

    def extend(self, ids, past, cache_length):
        """Hidden states [B,S,W] and wire rows [L,2,B,H,S,·] of new tokens."""
        return self._graph.extend(
            self._config, self._params(), self._cache_dtype, ids, past, cache_length
        )

    def logits(self, hidden):
        """Hidden states [B,W] → [B,V]."""
        return self._graph.opt.lm_logits(self._config, self._params(), hidden)

    def full_logits(self, ids, mask):
        """Logits [B,S,V] of padded rows."""
        return self._graph.full_logits(self._config, self._params(), ids, mask)

    def token_logprobs(self, ids, hidden):
        """Log-probabilities [B,S] of given tokens."""
        return self._graph.token_logprobs(self._config, self._params(), ids, hidden)


class JaxBackend:
    """JAX functions as XLA modules inside the graph, with symbolic sizes."""

    def __init__(
        self, config: OPTConfig, stored: Mapping[str, tf.Variable], cache_dtype: str
    ) -> None:
        from jax.experimental import jax2tf

        from . import graph_jax

        self._stored = dict(stored)

        def module(function, *shapes):
            def run(stored, *inputs):
                params = assemble(config, stored, graph_jax.Matrix)
                return function(config, params, *inputs)

            converted = jax2tf.convert(
                run,
                polymorphic_shapes=[None, *shapes],
                with_gradient=False,
                native_serialization_platforms=("cpu",),
            )
            return lambda *inputs: converted(self._stored, *inputs)

        def extend(config, params, *inputs):
            return graph_jax.extend(config, params, cache_dtype, *inputs)

        past = f"({config.num_hidden_layers}, 2, b, {config.num_attention_heads}, c, {config.head_dim})"
        hidden = f"(b, s, {config.embed_dim})"
        self.extend = module(extend, "(b, s)", past, "(b,)")
        self.logits = module(graph_jax.opt.lm_logits, f"(b, {config.embed_dim})")
        self.full_logits = module(graph_jax.full_logits, "(b, s)", "(b, s)")
        self.token_logprobs = module(graph_jax.token_logprobs, "(b, s)", hidden)

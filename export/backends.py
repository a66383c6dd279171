"""Who computes inside the signatures: the TensorFlow graph, or JAX compiled by XLA.

Both offer the same few functions of TensorFlow tensors, so that the signatures are
written once (``signatures.py``). Weights are :class:`tf.Variable` in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from ..models.config import OPTConfig
from .packing import assemble, is_matrix
from .sizing import Sizes

PAST = 1
"""Where ``past`` stands in a request: token, past, length, limit, stops, seen, steps,
seed, temperature, top_k, top_p, repetition_penalty."""


class TFBackend:
    """TensorFlow ops; with ``compiler="xla"`` the loop of a single row is compiled.

    Everything else is quicker as plain ops, whose matrix products are oneDNN's; for
    these a server holds int8 weights as bfloat16, too (float16 as float32).
    """

    def __init__(
        self,
        config: OPTConfig,
        stored: Mapping[str, tf.Variable],
        cache_dtype: str,
        *,
        compiler: str,
        tokens: int,
        sizes: Sizes,
        digest: str,
    ) -> None:
        from . import graph_tf

        self._graph = graph_tf
        self._config, self._cache_dtype = config, cache_dtype
        self._stored, self._compiler, self._tokens = stored, compiler, tokens
        self.sizes = Sizes()
        self.loop_sizes = Sizes(cache=sizes.cache)
        self.resources = {
            name: graph_tf.Widened(variable, f"{digest}/{variable.dtype.name}/{name}")
            for name, variable in stored.items()
            if is_matrix(name) and variable.dtype in (tf.int8, tf.float16)
        }
        self._one_row = tf.function(
            lambda *request: self._loop(self._request(request), compiled=True),
            autograph=False,
            jit_compile=True,
        )
        self._one_row_logits = tf.function(
            lambda step, hidden: graph_tf.opt.lm_logits(
                config, self._params(step), hidden
            ),
            autograph=False,
            jit_compile=True,
        )

    def _params(self, step=None) -> dict[str, Any]:
        def pack(name, values, scale):
            if step is not None:
                return self._graph.Matrix(values, scale, step=step)
            held = self.resources.get(name)
            wide = held.read() if held else tf.convert_to_tensor(values)
            return self._graph.Matrix(values, scale, wide=wide)

        return assemble(self._config, self._stored, pack)

    def extend(self, ids, past, cache_length):
        """Hidden states [B,S,W] and wire rows [L,2,B,H,S,·] of new tokens."""
        return self._graph.extend(
            self._config, self._params(), self._cache_dtype, ids, past, cache_length
        )

    def logits(self, hidden):
        """Hidden states [B,W] → [B,V]."""

        def plain():
            return self._graph.opt.lm_logits(self._config, self._params(), hidden)

        if self._compiler == "none":
            return plain()
        return tf.cond(
            tf.shape(hidden)[0] == 1,
            lambda: self._one_row_logits(
                tf.zeros([], tf.int32), _fixed_to_one_row(hidden, 0)
            ),
            plain,
        )

    def full_logits(self, ids, mask):
        """Logits [B,S,V] of padded rows."""
        return self._graph.full_logits(self._config, self._params(), ids, mask)

    def token_logprobs(self, ids, hidden):
        """Log-probabilities [B,S] of given tokens."""
        return self._graph.token_logprobs(self._config, self._params(), ids, hidden)

    def generate(self, request: Sequence[Any]):
        """Tokens [B,N], logprobs [B,N], count [B], wire rows [L,2,B,H,N,·]."""
        request = tuple(request)
        if self._compiler == "none":
            return self._loop(self._request(request), compiled=False)

        def one_row():
            return self._one_row(*map(_fixed_to_one_row, request, range(len(request))))

        return tf.cond(
            tf.shape(request[0])[0] == 1,
            one_row,
            lambda: self._loop(self._request(request), compiled=False),
        )

    def _request(self, flat: Sequence[Any]):
        *start, steps = flat[:7]
        return self._graph.Request(*start, steps, self._graph.Wanted(*flat[7:]))  # pyright: ignore[reportCallIssue]

    def _loop(self, request, *, compiled: bool):
        graph = self._graph
        fixed = None if compiled else self._params()
        return graph.generate(
            self._config,
            lambda step: fixed or self._params(step),
            self._cache_dtype,
            self._tokens,
            request,
            graph.write_slot_compiled if compiled else graph.write_slot,
        )


def _fixed_to_one_row(tensor, index: int):
    """A request's tensor with its B known to be 1 (axis 2 of ``past``)."""
    shape = tensor.shape.as_list()
    if shape:
        shape[2 if index == PAST else 0] = 1
    # Said, not checked: checks run in the branch that is not taken, too.
    known = tf.identity(tensor)
    known.set_shape(shape)
    return known


class JaxBackend:
    """JAX functions as XLA modules inside the graph, with symbolic sizes."""

    def __init__(
        self,
        config: OPTConfig,
        stored: Mapping[str, tf.Variable],
        cache_dtype: str,
        *,
        compiler: str,
        tokens: int,
        sizes: Sizes,
        digest: str,
    ) -> None:
        from jax.experimental import jax2tf

        from . import graph_jax

        self._stored = dict(stored)
        self.resources: dict[str, Any] = {}
        self.sizes = self.loop_sizes = sizes

        def module(function, *shapes):
            def run(stored, *inputs):
                def params(step=None):
                    def pack(name, values, scale):
                        return graph_jax.Matrix(values, scale, step)

                    return assemble(config, stored, pack)

                return function(params, *inputs)

            converted = jax2tf.convert(
                run,
                polymorphic_shapes=[None, *shapes],
                with_gradient=False,
                native_serialization_platforms=("cpu",),
            )
            return lambda *inputs: converted(self._stored, *inputs)

        def extend(params, *inputs):
            return graph_jax.extend(config, params(), cache_dtype, *inputs)

        def logits(params, hidden):
            return graph_jax.opt.lm_logits(config, params(), hidden)

        def full_logits(params, ids, mask):
            return graph_jax.full_logits(config, params(), ids, mask)

        def token_logprobs(params, ids, hidden):
            return graph_jax.token_logprobs(config, params(), ids, hidden)

        def loop(params, *flat):
            *start, steps = flat[:7]
            wanted = graph_jax.Wanted(*flat[7:])
            request = graph_jax.Request(*start, steps, wanted)  # pyright: ignore[reportCallIssue]
            one_row = flat[0].shape[0] == 1
            return graph_jax.generate(
                config,
                params if one_row else lambda step: params(),
                cache_dtype,
                tokens,
                request,
            )

        L, H, D = config.num_hidden_layers, config.num_attention_heads, config.head_dim
        W, V = config.embed_dim, config.vocab_size

        def loop_shapes(b: str):
            row, flags = f"({b},)", f"({b}, {V})"
            past = f"({L}, 2, {b}, {H}, c, {D})"
            return (row, past, row, row, flags, flags, "()", f"({b}, 2)", *[row] * 4)

        past = f"({L}, 2, b, {H}, c, {D})"
        self.extend = module(extend, "(b, s)", past, "(b,)")
        self.logits = module(logits, f"(b, {W})")
        self.full_logits = module(full_logits, "(b, s)", "(b, s)")
        self.token_logprobs = module(token_logprobs, "(b, s)", f"(b, s, {W})")
        self._one_row = module(loop, *loop_shapes("1"))
        self._many_rows = module(loop, *loop_shapes("b"))

    def generate(self, request: Sequence[Any]):
        """Tokens [B,N], logprobs [B,N], count [B], wire rows [L,2,B,H,N,·]."""

        def one_row():
            return self._one_row(*map(_fixed_to_one_row, request, range(len(request))))

        return tf.cond(
            tf.shape(request[0])[0] == 1, one_row, lambda: self._many_rows(*request)
        )

"""A loop for several rows of int8 weights: oneDNN multiplies, XLA compiles the rest.

XLA alone converts the weights for each row anew, TensorFlow's ops alone take their time
between the products. So a step goes back and forth: five small functions are compiled
once for all layers, and products of integers stand between them. Where XLA multiplies
integers quickly itself the whole loop is one program (:func:`.quicker_compiled`).

It reads like ``tf_opt.layer``, which it must agree with, products written out. Whoever
uses it asks :func:`.int8_products.exact` first.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from ...models.config import OPTConfig
from ...models.tf import model as opt
from . import graph_tf
from .graph_tf import Chosen, Request
from .int8_matmul import Halves, compiled_sums, in_halves, integer_sums, joined
from .matmul_tf import Matrix


class Sums(NamedTuple):
    """A product [N,M] that is not yet put together."""

    sums: Any  # [2N,M]
    rows: Any  # [N,1], the scale of what was multiplied
    columns: Any  # [M], the scale of the weights
    bias: Any  # [M] or None

    def value(self):
        """[N,M] float32."""
        y = joined(self.sums, self.rows) * self.columns
        return y if self.bias is None else y + self.bias


class Int8Loop:
    """:func:`.graph_tf.generate` in pieces, for any number of rows.

    Up to ``N`` tokens; ``compiled`` leaves the pieces to XLA, ``whole`` everything.
    """

    def __init__(
        self,
        config: OPTConfig,
        cache_dtype: str,
        N: int,
        *,
        compiled: bool,
        whole: bool = False,
    ) -> None:
        self._config, self._cache_dtype, self._N = config, cache_dtype, N
        self._compiled, self._whole = compiled, whole
        piece = partial(tf.function, autograph=False, jit_compile=True)
        if whole or not compiled:
            piece = partial(tf.function, autograph=False)
        self._start, self._attend = piece(self._start), piece(self._attend)
        self._add, self._activate = piece(self._add), piece(self._activate)
        self._advance, self._by_layers = piece(self._advance), piece(self._by_layers)

    def generate(self, params, request: Request, *, keep: bool):
        """As :func:`.graph_tf.generate`; matrices of ``params`` are :class:`Matrix`.

        ``keep`` is :func:`.integer_sums`'.
        """
        if self._whole:
            sums_of, hold = compiled_sums, graph_tf.barrier
        else:
            sums_of, hold = partial(integer_sums, keep=keep), tf.identity
        config, params = self._config, tf.nest.map_structure(graph_tf.read, params)
        layers = params["layers"]
        past = self._by_layers(request.cache, request.length)
        past = tf.nest.map_structure(hold, past)  # made once, not in each step again
        norms = [
            layer[name]
            for layer in layers
            for name in ("self_attn_layer_norm", "final_layer_norm")
        ]
        # Each norm stands before the product that uses it, or behind the sum it norms.
        pre = config.do_layer_norm_before
        first, *rest = [*norms, None] if pre else [None, *norms]

        def times(halves: Halves, weight: Matrix, bias=None) -> Sums:
            sums = sums_of(halves.parts, weight.values)
            return Sums(sums, halves.scale, graph_tf.read(weight.scale), bias)

        def forward(step, token, made):
            at = request.length + step
            x = graph_tf.embed_token(config, params, token, at)[:, 0]
            halves = self._start(x, first)
            after = []
            for i, layer in enumerate(layers):
                y = times(halves, **layer["qkv_proj"])
                old = past[i], made[i]
                halves, new = self._attend(y, old, step, request.length)
                y = times(halves, **layer["out_proj"])
                x, halves = self._add(x, y, rest[2 * i])
                halves = self._activate(times(halves, **layer["fc1"]))
                y = times(halves, **layer["fc2"])
                x, halves = self._add(x, y, rest[2 * i + 1])
                after.append(new)
            halves = in_halves(opt.final_projection(config, params, x))
            return times(halves, opt.head(config, params)), after

        def choose_next(chosen: Chosen, found: Sums):
            return self._advance(request._replace(cache=None), chosen, found)

        made = graph_tf.nothing_made(config, opt.shape(request.token)[0], self._N)
        chosen, made = graph_tf.loop(self._N, request, forward, choose_next, made)
        return graph_tf.results(chosen, made, self._cache_dtype)

    def _by_layers(self, cache, length):
        return graph_tf.by_layers(cache, length, self._cache_dtype)

    def _start(self, x, norm):
        return in_halves(_normed(norm, x))

    def _attend(self, y: Sums, old, step, length):
        q, k, v = opt.split_qkv(self._config, y.value(), opt.shape(length)[0])
        store = graph_tf.store_at(step, self._cache_dtype, compiled=self._compiled)
        keys, values, new = store(old, k, v)
        mask = graph_tf.attended(length, opt.shape(keys[0])[2], step, self._N)
        bias = tf.where(mask, 0.0, tf.float32.min)
        context, _ = opt.attend(self._config, q, keys, values, bias)
        return in_halves(tf.reshape(context, [-1, self._config.hidden_size])), new

    def _add(self, x, y: Sums, norm):
        x = x + y.value()
        normed = _normed(norm, x)
        return (x if self._config.do_layer_norm_before else normed), in_halves(normed)

    def _activate(self, y: Sums):
        return in_halves(opt.activation(self._config, y.value()))

    def _advance(self, request: Request, chosen: Chosen, y: Sums):
        return graph_tf.advance(request, chosen, y.value(), compiled=self._compiled)


def _normed(norm, x):
    return x if norm is None else opt.layer_norm(x, **norm)

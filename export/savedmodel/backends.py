"""Who computes inside the signatures: the TensorFlow graph, or JAX compiled by XLA.

Both offer the same few functions of TensorFlow tensors, so that the signatures are
written once (``signatures.py``). Weights are :class:`tf.Variable` in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from ...models.config import OPTConfig
from ...runtime.contract import CacheLayout
from ..weights import assemble, of_layer
from . import autotune, int8_matmul, matmul_tf
from .buckets import Sizes
from .int8_loop import Int8Loop
from .requests import Generated, GenerateRequest

FEW_ROWS = 8
"""Up to so many rows a loop is compiled for, and multiplies them one by one: that reads
weights as they are stored, and from the processor's cache for all rows but the first.
What that costs grows with the rows, so more of them gain nothing by going together."""

_OF_MATRICES = "native", "exact"
"""What is found at load that :class:`.products_tf.Matrix` asks for."""

_IN_TURNS = "quicker_in_turns"

_TOKEN_MAJOR = (2, 4, 0, 1, 3, 5)
"""From [L,2,B,H,S,D] to the contract's [B,S,L,2,H,D]."""

_BFLOAT16_AT_BEST = (tf.int8, tf.bfloat16)
"""Weights that are multiplied as bfloat16 where processors do that themselves."""


class TFBackend:
    """TensorFlow ops; with ``compiler="xla"`` the loop is compiled.

    It is for a few rows, and more go through it in groups. Several rows of int8 weights
    go through :class:`.int8_loop.Int8Loop` instead where that is exact, if not to be
    ``portable``. Everything else is quicker as plain ops, whose products are oneDNN's.
    """

    def __init__(
        self,
        config: OPTConfig,
        stored: Mapping[str, tf.Variable],
        layout: CacheLayout,
        *,
        compiler: str,
        tokens: int,
        sizes: Sizes,
        portable: bool,
    ) -> None:
        from . import graph_tf

        self._graph = graph_tf
        self._config, self._cache_dtype = config, layout.dtype
        self._stored, self._compiler, self._tokens = stored, compiler, tokens
        self.sizes = Sizes()
        self._few = tuple(sorted({min(rows, FEW_ROWS) for rows in sizes.rows}))
        self.loop_sizes = Sizes(rows=self._few, cache=sizes.cache)
        weights = _matrix_dtype(stored)
        asked: dict[str, Callable[[], Any]] = {}
        if weights in _BFLOAT16_AT_BEST:
            asked["native"] = matmul_tf.native_bfloat16
        if weights == tf.int8 and not portable and int8_matmul.available():
            asked["exact"] = int8_matmul.exact
            if compiler == "xla":
                asked["quicker_compiled"] = autotune.quicker_compiled
            self.loop_sizes = Sizes(rows=sizes.rows, cache=sizes.cache)
        if compiler == "xla":
            asked[_IN_TURNS] = partial(autotune.quicker_in_turns, weights)
        self.compiled, self.compiled_loop = self.sizes, self.loop_sizes
        self.resources = _found_at_load(asked, weights)
        in_pieces = Int8Loop(config, layout.dtype, tokens, compiled=compiler == "xla")
        whole = Int8Loop(config, layout.dtype, tokens, compiled=True, whole=True)
        self._int8_pieces = in_pieces.generate
        # Of tensors alone: it is traced and compiled once for all signatures.
        self._int8_whole = tf.function(
            lambda flat: whole.generate(
                self._matrices(), self._request(flat), keep=False
            ),
            autograph=False,
            jit_compile=True,
        )
        self._compiled_loop, self._compiled_loop_in_turns = (
            tf.function(
                partial(self._loop, compiled=True, in_turns=in_turns),
                autograph=False,
                jit_compile=True,
            )
            for in_turns in (False, True)
        )
        self._one_row_logits = tf.function(
            lambda step, hidden: graph_tf.opt.lm_logits(
                config, self._params(step), hidden
            ),
            autograph=False,
            jit_compile=True,
        )

    def _params(self, step=None, *, in_turns: bool = False) -> dict[str, Any]:
        if step is not None:
            return self._matrices(step=step, in_turns=in_turns)
        found = self.resources
        return self._matrices(
            **{name: found[name].read() for name in _OF_MATRICES if name in found}
        )

    def _matrices(self, **how: Any) -> dict[str, Any]:
        def pack(name, values, scale):
            return matmul_tf.Matrix(tf.convert_to_tensor(values), scale, **how)

        return unstacked(self._config, assemble(self._config, self._stored, pack))

    def extend(self, ids, cache, cache_length):
        """Hidden states [B,S,W] and new rows [B,S,L,2,H,·] of new tokens."""
        hidden, wire = self._graph.extend(
            self._config, self._params(), self._cache_dtype, ids, cache, cache_length
        )
        return hidden, tf.transpose(wire, _TOKEN_MAJOR)

    def logits(self, hidden):
        """Hidden states [B,W] → [B,V]."""

        def plain():
            return self._graph.opt.lm_logits(self._config, self._params(), hidden)

        if self._compiler == "none":
            return plain()
        return tf.cond(
            tf.shape(hidden)[0] == 1,
            lambda: self._one_row_logits(
                tf.zeros([], tf.int32), _fixed_rows(hidden, 1)
            ),
            plain,
        )

    def full_logits(self, ids, mask):
        """Logits [B,S,V] of padded rows."""
        return self._graph.full_logits(self._config, self._params(), ids, mask)

    def token_logprobs(self, ids, hidden):
        """Log-probabilities [B,S] of given tokens."""
        return self._graph.token_logprobs(self._config, self._params(), ids, hidden)

    def generate(self, request: GenerateRequest, *, often: bool) -> Generated:
        """Up to N tokens for each row; ``request.input_ids`` are [B,1].

        ``often`` says that memory is well spent on this signature's speed.
        """
        flat = [
            request.input_ids[:, 0],
            request.cache,
            request.cache_length,
            request.max_new_tokens,
            request.stops,
            request.seen,
            tf.reduce_max(request.max_new_tokens),
            *request.sampling,
        ]
        *vectors, wire = self._generate(flat, often=often)
        return Generated(*vectors, new_cache=tf.transpose(wire, _TOKEN_MAJOR))

    def _generate(self, request: Sequence[Any], *, often: bool):
        """Tokens [B,N], logprobs [B,N], count [B], wire rows [L,2,B,H,N,·]."""
        sizes = self._few if self._compiler == "xla" else ()

        def few(rows: int, request=request):
            fixed = [_fixed_rows(x, rows) for x in request]
            if rows > 1:
                return self._compiled_loop(fixed)
            return tf.cond(
                self.resources[_IN_TURNS].read(),
                lambda: self._compiled_loop_in_turns(fixed),
                lambda: self._compiled_loop(fixed),
            )

        def many():
            if not sizes:
                return self._loop(request, compiled=False)
            most = self._few[-1]
            return _in_groups(request, most, lambda rows: few(most, rows))

        def several(sizes=sizes):
            return _by_rows(request, sizes, few, many)

        if "exact" not in self.resources:
            return several()
        exact = self.resources["exact"].read()

        def with_int8(sizes=sizes):
            return tf.cond(
                exact, lambda: self._int8_loop(request, often), lambda: several(sizes)
            )

        if sizes[:1] != (1,):
            return with_int8()
        return _by_rows(request, sizes[:1], few, lambda: with_int8(sizes[1:]))

    def _int8_loop(self, flat: Sequence[Any], often: bool):
        def in_pieces():
            return self._int8_pieces(self._params(), self._request(flat), keep=often)

        if "quicker_compiled" not in self.resources:
            return in_pieces()
        return tf.cond(
            self.resources["quicker_compiled"].read(),
            lambda: self._int8_whole(list(flat)),
            in_pieces,
        )

    def _request(self, flat: Sequence[Any]):
        *start, steps = flat[:7]
        return self._graph.Request(*start, steps, self._graph.SamplingParams(*flat[7:]))  # pyright: ignore[reportCallIssue]

    def _loop(self, flat: Sequence[Any], *, compiled: bool, in_turns: bool = False):
        fixed = None if compiled else self._params()
        return self._graph.generate(
            self._config,
            lambda step: fixed or self._params(step, in_turns=in_turns),
            self._cache_dtype,
            self._tokens,
            self._request(flat),
            compiled=compiled,
        )


def unstacked(config: OPTConfig, params: dict[str, Any]) -> dict[str, Any]:
    """``params`` with a list of layers, and every linear map's bias named."""
    layers = []
    for i in range(config.num_hidden_layers):
        layer = of_layer(params["layers"], i)
        layers.append({name: _pair(pair) for name, pair in layer.items()})
    rest = {n: _pair(v) for n, v in params.items() if isinstance(v, dict)}
    return {**params, **rest, "layers": layers}


def _pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    return {"weight": pair.get("weight"), "bias": pair.get("bias")}


def _found_at_load(asked: Mapping[str, Callable[[], Any]], weights: tf.DType):
    """Resources with what these functions answer when a version is loaded.

    ``weights`` are what they may ask about.
    """
    return {
        name: matmul_tf.MadeAtLoad(find, tf.bool, f"optserve_{name}_{weights.name}")
        for name, find in asked.items()
    }


def _matrix_dtype(stored: Mapping[str, tf.Variable]) -> tf.DType:
    return stored["decoder.embed_tokens.weight"].dtype


def _by_rows(request: Sequence[Any], sizes: Sequence[int], few, many):
    """``few(size)`` for a request of one of these numbers of rows, else ``many()``."""
    if not sizes:
        return many()
    size, *more = sizes
    return tf.cond(
        tf.shape(request[0])[0] == size,
        lambda: few(size),
        lambda: _by_rows(request, more, few, many),
    )


def _in_groups(request: Sequence[Any], size: int, generate):
    """``generate(rows)`` for ``size`` rows of a request after the other.

    The last ones are filled up with rows that make nothing. Returns what ``generate``
    does, for all rows: [B,…] three times, then wire rows [L,2,B,H,N,·].
    """
    B = tf.shape(request[0])[0]
    groups = -(-B // size)

    def split(x):
        if not x.shape.rank:
            return tf.fill([groups], x)
        more: Any = [[0, groups * size - B], *[[0, 0]] * (x.shape.rank - 1)]
        filled = tf.pad(x, more)
        found = tf.reshape(filled, tf.concat([[groups, size], tf.shape(x)[1:]], 0))
        return tf.ensure_shape(found, [None, size, *x.shape[1:]])

    *vectors, wire = tf.map_fn(
        lambda group: tuple(generate(group)),
        [split(x) for x in request],
        fn_output_signature=(tf.int32, tf.float32, tf.int32, tf.float32),
        parallel_iterations=1,
    )
    wire = tf.transpose(wire, [1, 2, 0, 3, 4, 5, 6])
    L, two, _, _, *rest = tf.unstack(tf.shape(wire))
    return (
        *(tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0)) for x in vectors),
        tf.reshape(wire, [L, two, -1, *rest]),
    )


def _fixed_rows(tensor, rows: int):
    """A tensor [B,…] whose B is known to be ``rows``; scalars as they are."""
    shape = tensor.shape.as_list()
    if shape:
        shape[0] = rows
    # Said, not checked: checks run in branches that are not taken, too.
    known = tf.identity(tensor)
    known.set_shape(shape)
    return known

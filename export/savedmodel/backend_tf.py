"""TensorFlow ops inside the signatures; oneDNN multiplies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from ...models.config import OPTConfig
from ...runtime.contract import CacheLayout
from ..weights import STACK, assemble
from . import autotune, graph_tf
from .buckets import Sizes
from .matmul_tf import (
    KeptInt8Matrix,
    Kernels,
    Matrix,
    Unrolled,
    either,
    fuse_norms,
)
from .requests import Generated, GenerateRequest, request_spec


class TFBackend:
    """The graph's functions over stored weights, for any size of request.

    What several signatures call is one function for all of them: a server's time to
    get ready goes with the number of signatures times the size of all functions.

    Args:
        config: the architecture.
        stored: the weights, as :func:`..weights.packed_weights` names them.
        layout: of the cache on the wire.
        resources: what is known about the processor, or found out at load.
        int8_activations: whether products of int8 have those, where they are exact.
    """

    def __init__(
        self,
        config: OPTConfig,
        stored: Mapping[str, tf.Variable],
        layout: CacheLayout,
        *,
        resources: Mapping[str, autotune.Answer],
        int8_activations: bool,
    ) -> None:
        self.compiled = self.compiled_loop = Sizes()
        self.resources = resources
        self._config, self._stored, self._cache = config, stored, layout.dtype
        self._int8_activations = int8_activations
        cache = tf.TensorSpec([None, None, *layout.row_shape])
        request = request_spec(None, None, cache, config.vocab_size)
        ids, length = request.input_ids, request.cache_length
        self.extend = _shared(self._extend, ids, cache, length)
        self._advance = tf.function(graph_tf.advance, autograph=False)
        self._generate = _shared(self._any_loop, request, tf.TensorSpec([], tf.int32))

    def _extend(self, ids, cache, cache_length):
        params = self._params()
        return graph_tf.extend(
            self._config, params, self._cache, ids, cache, cache_length
        )

    def logits(self, hidden):
        """Hidden states [B,W] → [B,V]."""
        params = self._params()
        return graph_tf.opt.lm_logits(self._config, params, hidden)

    def full_logits(self, ids, mask):
        """Logits [B,S,V] of padded rows."""
        return graph_tf.full_logits(self._config, self._params(), ids, mask)

    def scores(self, ids, hidden):
        """Logits [B,S,V], and log-probabilities [B,S] of the tokens that follow."""
        params = self._params()
        return graph_tf.scores(self._config, params, ids, hidden)

    def generate(self, request: GenerateRequest, N: int, *, often: bool) -> Generated:
        """Up to N tokens for each row, by one of two loops.

        int8 matrices that are packed once and kept are the quicker ones, where the
        processor sums them exactly; they take their memory once more for each
        signature, so they are for the one that is called most ``often``. Everything
        else, and every other processor, goes through one body for all layers.
        """
        kernels = self._kernels()
        B, S = tf.unstack(tf.shape(request.input_ids))
        a_step = B + B * (S - 1) // graph_tf.asked_steps(request)  # rows, on average
        if kernels.exact_int8 is None or not often:
            generated = self._generate(request, tf.constant(N))
        else:
            generated = either(
                kernels.multiply_int8(a_step),
                lambda: self._loop(request, N, self._kept_params()),
                lambda: self._generate(request, tf.constant(N)),
            )
        generated.tokens.set_shape([None, N])
        generated.logprobs.set_shape([None, N])
        generated.top_ids.set_shape([None, N, None])
        generated.top_logprobs.set_shape([None, N, None])
        return generated

    def _any_loop(self, request: GenerateRequest, N) -> Generated:
        return self._loop(request, N, self._params())

    def _loop(self, request: GenerateRequest, N, params) -> Generated:
        config, dtype = self._config, self._cache
        S, steps = tf.shape(request.input_ids)[1], graph_tf.asked_steps(request)
        length = request.cache_length
        cache = graph_tf.unpack_cache(request.cache, length, dtype, room=S + steps - 1)
        state = graph_tf.decode_loop(
            config, params, dtype, N, request, cache, self._advance
        )
        return graph_tf.generated(config, dtype, request, cache, state)

    # --- weights --------------------------------------------------------------------

    def _params(self) -> dict[str, Any]:
        """Weights, stacked over layers."""
        kernels = self._kernels()

        def pack(name, values, scale):
            return Matrix(values, scale, kernels=kernels)

        return self._assembled(pack)

    def _kept_params(self) -> dict[str, Any]:
        """Weights of each layer by itself, for a loop that has a place for each."""
        kernels = self._kernels()

        def pack(name, values, scale):
            return KeptInt8Matrix(values, scale, kernels=kernels)

        params = self._assembled(pack)
        layers = Unrolled(params["layers"], self._config.num_hidden_layers)
        return {**params, "layers": layers}

    def _kernels(self) -> Kernels:
        return autotune.kernels(self.resources, int8_activations=self._int8_activations)

    def _assembled(self, pack) -> dict[str, Any]:
        """Layers stay variables, which a loop takes in as they are; a tensor would be
        carried from step to step. Tables are read: a gather from a variable makes
        TensorFlow copy it whenever it is read."""
        stored = {
            name: variable if name.startswith(STACK) else tf.convert_to_tensor(variable)
            for name, variable in self._stored.items()
        }
        return fuse_norms(assemble(self._config, stored, pack))


def _shared(function, *inputs: Any):
    return tf.function(function, input_signature=inputs, autograph=False)

"""The edge graph: one row, static sizes, the weights as arguments.

Tracing with arguments in place of constants keeps conversion to seconds and to little
memory whatever the model's size; ``writer.py`` puts the weights in afterwards. The
math is that of ``models/``, from TensorFlow or from JAX.

    S new tokens   C cache slots   L layers   H heads   D head size   V vocabulary

Keys and values of each layer come as tensors ``[1, H, C, D]`` of their own, which a
matrix product reads as they are. From one token-major tensor every step would have to
slice and transpose the whole cache. New rows go out in the contract's layout.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from ...models.config import OPTConfig
from ...models.weights import PackedWeight, Shape, params_from_weights, weight_shapes
from ..errors import ExportError

SCALE = "_scale"
"""What the scales of a quantised matrix are called, after the matrix's own name."""


@dataclass(frozen=True)
class Argument:
    """A weight as an argument of the graph.

    ``role`` is ``"matrix"`` (right side of a matrix product), ``"table"`` (rows are
    gathered) or ``"vector"`` (as it is: float32).
    """

    name: str
    role: str
    shape: Shape
    dtype: str = "float32"

    @property
    def spec(self) -> tf.TensorSpec:
        """What the tracing sees."""
        return tf.TensorSpec(self.shape, self.dtype)


def is_matrix(name: str, shape: Shape) -> bool:
    """Whether a weight is stored in the dtype chosen, and not as float32."""
    return len(shape) == 2 and name != "decoder.embed_positions.weight"


def arguments(config: OPTConfig, dtype: str) -> list[Argument]:
    """The weights that the graph takes; a tied table has two roles."""
    taken = []
    for name, shape in weight_shapes(config).items():
        if not is_matrix(name, shape):
            taken.append(Argument(name, "vector", shape))
            continue
        if name == "decoder.embed_tokens.weight":
            # float16 rows travel as integers: the gather op knows no half floats.
            stored = {"float16": "int16", "int4": "int8"}.get(dtype, dtype)
            taken.append(Argument(name, "table", shape, stored))
            if stored == "int8":
                taken.append(Argument(name + SCALE, "vector", shape[:1]))
            if not config.tie_word_embeddings:
                continue
        taken.append(Argument(name, "matrix", shape))
    return taken


def convert(config: OPTConfig, framework: str, dtype: str, S: int, C: int) -> bytes:
    """A TFLite flatbuffer of one signature, its weights as inputs ``w0``, ``w1``, ….

    Inputs: ``input_ids`` [1,S], ``input_length`` [1] (of S > 1), ``cache_length`` [1],
    ``key_{l}`` and ``value_{l}`` [1,H,C,D]. Outputs: ``logits`` [1,V], ``new_cache``
    [1,S,L,2,H,D].

    Raises:
        ExportError: the converter refused the graph.
    """
    taken = arguments(config, dtype)
    step = _step_tf if framework == "tf" else _step_jax

    def run(inputs: Mapping[str, Any], weights: list[Any]) -> dict[str, Any]:
        by_role: dict[str, dict[str, Any]] = {"matrix": {}, "table": {}, "vector": {}}
        for argument, weight in zip(taken, weights, strict=True):
            by_role[argument.role][argument.name] = weight
        return step(config, inputs, by_role, S, C)

    if framework == "jax":
        from jax.experimental import jax2tf

        run = jax2tf.convert(
            run, with_gradient=False, native_serialization_platforms=("cpu",)
        )
    specs = [
        tf.TensorSpec(argument.shape, argument.dtype, name=f"w{i}")
        for i, argument in enumerate(taken)
    ]
    function = tf.function(
        run, input_signature=[_inputs(config, S, C), specs], autograph=False
    )
    with _quiet():
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [function.get_concrete_function()], tf.Module()
        )
        try:
            return converter.convert()
        except Exception as error:  # the converter's own class is private
            text = " ".join(str(error).split())[:300]
            raise ExportError(
                f"the TFLite converter refused the graph: {text}"
            ) from None


def _inputs(config: OPTConfig, S: int, C: int) -> dict[str, tf.TensorSpec]:
    shapes: dict[str, Shape] = {"input_ids": (1, S), "cache_length": (1,)}
    if S > 1:
        shapes["input_length"] = (1,)
    specs = {k: tf.TensorSpec(v, tf.int32, name=k) for k, v in shapes.items()}
    slots = (1, config.num_attention_heads, C, config.head_dim)
    for i in range(config.num_hidden_layers):
        for name in (f"key_{i}", f"value_{i}"):
            specs[name] = tf.TensorSpec(slots, tf.float32, name=name)
    return specs


def _params(config: OPTConfig, by_role: Mapping[str, Mapping[str, Any]], kind) -> dict:
    weights = dict(by_role["vector"])
    for name in {**by_role["matrix"], **by_role["table"]}:
        weights[name] = kind(
            by_role["matrix"].get(name),
            by_role["table"].get(name),
            by_role["vector"].get(name + SCALE),
        )
    return params_from_weights(config, weights)


def _store(past, k, v):
    """Attends to the cache and the new rows where they lie; keeps the new rows."""
    return (past[0], k), (past[1], v), (k, v)


def _past(config: OPTConfig, inputs: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    layers = range(config.num_hidden_layers)
    return [(inputs[f"key_{i}"], inputs[f"value_{i}"]) for i in layers]


class _MatrixTF(PackedWeight):
    def __init__(self, matrix, table, scale) -> None:
        self.matrix, self.table, self.scale = matrix, table, scale

    def matmul(self, x):
        return tf.matmul(x, self.matrix, transpose_b=True)

    def take(self, rows):
        gathered = tf.gather(self.table, rows)
        if gathered.dtype == tf.int16:
            gathered = tf.bitcast(gathered, tf.float16)
        gathered = tf.cast(gathered, tf.float32)
        if self.scale is None:
            return gathered
        return gathered * tf.gather(self.scale, rows)[..., None]


def _step_tf(config: OPTConfig, inputs, by_role, S: int, C: int) -> dict[str, Any]:
    from ...models.tf import model as opt

    params = _params(config, by_role, _MatrixTF)
    length = inputs["cache_length"]
    last_position = config.max_position_embeddings - 1
    at = tf.minimum(length[:, None] + tf.range(S)[None], last_position)
    used = tf.range(C)[None] < length[:, None]
    mask = tf.concat([used, tf.ones([1, S], tf.bool)], axis=1)
    hidden = opt.take(params["embed_tokens"], inputs["input_ids"])
    done = opt.decoder(
        config,
        params,
        opt.embed(config, params, hidden, at),
        opt.causal_mask(mask, S, C),
        past=_past(config, inputs),
        store=_store,
    )
    last = done.last_hidden_state
    if S > 1:
        last = tf.gather(last, inputs["input_length"] - 1, axis=1)
    rows = tf.concat([part for pair in done.cache for part in pair], axis=1)
    row = (config.num_hidden_layers, 2, config.num_attention_heads, config.head_dim)
    return {
        "logits": tf.reshape(opt.lm_logits(config, params, last), [1, -1]),
        "new_cache": tf.reshape(tf.transpose(rows, [0, 2, 1, 3]), [1, S, *row]),
    }


def _step_jax(config: OPTConfig, inputs, by_role, S: int, C: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from ...models.flax import model as opt

    class Matrix(PackedWeight):
        def __init__(self, matrix, table, scale) -> None:
            self.matrix, self.table, self.scale = matrix, table, scale

        def matmul(self, x):
            return x @ self.matrix.T

        def take(self, rows):
            gathered = jnp.take(self.table, rows, axis=0, mode="clip")
            if gathered.dtype == jnp.int16:
                gathered = jax.lax.bitcast_convert_type(gathered, jnp.float16)
            gathered = gathered.astype(jnp.float32)
            if self.scale is None:
                return gathered
            return gathered * jnp.take(self.scale, rows, mode="clip")[..., None]

    params = _params(config, by_role, Matrix)
    length = inputs["cache_length"]
    last_position = config.max_position_embeddings - 1
    at = jnp.minimum(length[:, None] + jnp.arange(S)[None], last_position)
    used = jnp.arange(C)[None] < length[:, None]
    mask = jnp.concatenate([used, jnp.ones([1, S], bool)], axis=1)
    hidden = opt.take(params["embed_tokens"], inputs["input_ids"])
    done = opt.decoder(
        config,
        params,
        opt.embed(config, params, hidden, at),
        opt.causal_mask(mask, S, C),
        past=_past(config, inputs),
        store=_store,
    )
    last = done.last_hidden_state
    if S > 1:
        last = jnp.take(last, inputs["input_length"] - 1, axis=1, mode="clip")
    rows = jnp.concatenate([part for pair in done.cache for part in pair], axis=1)
    row = (config.num_hidden_layers, 2, config.num_attention_heads, config.head_dim)
    return {
        "logits": opt.lm_logits(config, params, last).reshape(1, -1),
        "new_cache": rows.transpose(0, 2, 1, 3).reshape(1, S, *row),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's remarks on argument names."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

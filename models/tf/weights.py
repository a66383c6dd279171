"""The weights of the Keras classes: first values, and the layers that hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..checkpoints import DTYPES, aligned, chunks
from ..config import OPTConfig
from ..weights import Shape
from . import model as tf_opt

Initial = Callable[[str, Shape], Any]
"""``initial(name, shape)``: the first value of a weight."""


def random_weights(config: OPTConfig) -> Initial:
    """Fresh weights as for training: normal with ``init_std``, norms 1, biases 0.

    The padding token's embedding is zero, as in Transformers' PyTorch class.
    """

    def initial(name: str, shape: Shape) -> Any:
        if name.endswith(".bias"):
            return np.zeros(shape, np.float32)
        if name.endswith("norm.weight"):
            return np.ones(shape, np.float32)
        # One initializer for each weight: called twice it would repeat its numbers.
        values = keras.initializers.RandomNormal(stddev=config.init_std)(shape)
        if name == "decoder.embed_tokens.weight" and config.pad_token_id is not None:
            pad = tf.constant([[config.pad_token_id]])
            values = tf.tensor_scatter_nd_update(values, pad, tf.zeros([1, shape[1]]))
        return values

    return initial


def as_tensor(value: Any, dtype: str) -> Any:
    """``value`` in ``dtype``. An array in a file is read part by part, into memory that
    the tensor takes over: nothing of it is there twice."""
    if not isinstance(value, np.ndarray):
        return tf.cast(value, dtype)
    copy = aligned(value.shape, DTYPES[dtype])
    for part, rows in chunks(value):
        copy[part] = rows
    bits: Any = copy.view(f"u{copy.itemsize}")
    return tf.bitcast(tf.experimental.dlpack.from_dlpack(bits.__dlpack__()), dtype)


class WeightGroup(keras.layers.Layer):
    """The variables of one part of the model, by canonical name; it computes nothing.

    Parts are layers so that they can be frozen (``trainable = False``) and are listed.
    """

    def __init__(self, shapes: Mapping[str, Shape], initial: Initial, **kwargs) -> None:
        super().__init__(**kwargs)
        self.by_name: dict[str, Any] = {}
        for name, shape in shapes.items():
            self.by_name[name] = self.add_weight(
                name=name.removeprefix(f"{self.name}."),
                shape=shape,
                initializer=lambda shape, dtype, name=name: as_tensor(
                    initial(name, shape), dtype
                ),
            )
            # For tf.train.Checkpoint, which does not look into Keras's own dicts.
            self._track_trackable(self.by_name[name], name)
        self.built = True

    @property
    def weight(self) -> Any:
        """The table [V,W] of an embedding or a head: TensorFlow's own variable, which
        Transformers' layers have here."""
        (table,) = self.by_name.values()
        return table.value

    def save_own_variables(self, store) -> None:
        """Keras's hook: variables go into its files by name."""
        for name, variable in self.by_name.items():
            store[name] = variable.numpy()

    def load_own_variables(self, store) -> None:
        """Keras's hook, the other way."""
        if set(store.keys()) != self.by_name.keys():
            raise ValueError(
                f"expected the weights {sorted(self.by_name)}, "
                f"got {sorted(store.keys())}"
            )
        for name, variable in self.by_name.items():
            variable.assign(store[name])


def part_name(name: str) -> str:
    """The group of a weight: its layer, or the module before ``.weight``."""
    parts = name.split(".")
    return ".".join(parts[:3] if parts[1] == "layers" else parts[:-1])


class TokenEmbedding(WeightGroup):
    """The group of the token embedding, which can be called: ids to embeddings."""

    def call(self, ids: Any) -> Any:
        """Embeddings (…, W) of ``ids``."""
        (table,) = self.by_name.values()
        return tf_opt.take(tf.cast(table.value, self.compute_dtype), ids)


def make_group(
    part: str, shapes: Mapping[str, Shape], initial: Initial, dtype: Any
) -> WeightGroup:
    """The layer that holds the weights of one part (a :func:`part_name`)."""
    cls = TokenEmbedding if part == "decoder.embed_tokens" else WeightGroup
    return cls(shapes, initial, name=part, dtype=dtype)

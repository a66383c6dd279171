"""``TFOPTModel`` and ``TFOPTForCausalLM``: Keras models over ``tf_opt.py``.

They hold the weights and give the documented call surface; the math is elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import optree
import tensorflow as tf

from . import tf_opt
from .config import OPTConfig
from .files import save_weights
from .outputs import ModelOutput, TFBaseModelOutputWithPast, TFCausalLMOutputWithPast
from .pretrained import Pretrained
from .tf_inputs import (
    check_head_mask,
    check_ids,
    check_mask,
    check_positions,
    is_token_list,
    pairs,
    unpack,
)
from .weights import Shape, params_from_weights, weight_shapes

Initial = Callable[[str, Shape], Any]
"""``initial(name, shape)``: the first value of a weight."""


def random_weights(config: OPTConfig) -> Initial:
    """Fresh weights as for training: normal with ``init_std``, norms 1, biases 0.

    The padding token's embedding is zero, as in the reference's PyTorch class.
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
                initializer=lambda shape, dtype, name=name: tf.cast(
                    initial(name, shape), dtype
                ),
            )
        self.built = True

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


def _part(name: str) -> str:
    """The group of a weight: its layer, or the module before ``.weight``."""
    parts = name.split(".")
    return ".".join(parts[:3] if parts[1] == "layers" else parts[:-1])


class _TFOPT(keras.Model):
    """What both classes share: weights, files, inputs, training."""

    base_model_prefix = "model"
    _head: bool

    def __init__(
        self, config: OPTConfig, *, initial: Initial | None = None, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.seed_generator = keras.random.SeedGenerator()
        initial = initial or random_weights(config)
        shapes: dict[str, dict[str, Shape]] = {}
        for name, shape in weight_shapes(config, head=self._head).items():
            shapes.setdefault(_part(name), {})[name] = shape
        self.groups = {
            part: WeightGroup(named, initial, name=part, dtype=self.dtype_policy)
            for part, named in shapes.items()
        }
        self.built = True

    # --- files ----------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: Any = None,
        name: str | None = None,
        **options: Any,
    ):
        """A model with a checkpoint's weights, from a directory or the hub.

        ``dtype`` is Keras's (``"bfloat16"``, ``"mixed_bfloat16"``, …); ``options``:
        ``config``, ``ignore_mismatched_sizes``, ``format``, ``revision``,
        ``cache_dir``, ``local_files_only``, ``token``, and fields of the configuration
        to change. Weights are read one after the other.
        Raises :class:`.files.CheckpointError` or :class:`.weights.WeightsError`.
        """
        checkpoint = Pretrained.open(name_or_path, head=cls._head, **options)
        fresh = random_weights(checkpoint.config)

        def initial(name: str, shape: Shape) -> Any:
            if name in checkpoint.usable:
                return checkpoint.weights[name]
            return fresh(name, shape)

        return cls(checkpoint.config, initial=initial, dtype=dtype, name=name)

    def save_pretrained(
        self,
        directory: str | os.PathLike[str],
        *,
        format: str = "safetensors",
        max_shard_size: int | str = "5GB",
    ) -> None:
        """Write ``config.json`` and the weights; see :func:`.files.save_weights`."""
        self.config.save_pretrained(directory)
        save_weights(
            directory,
            [(name, variable.value) for name, variable in self.named_weights().items()],
            format=format,
            max_shard_size=max_shard_size,
            base_model=not self._head,
        )

    def get_config(self) -> dict[str, Any]:
        """Keras's description of the model, for ``.keras`` files."""
        return {
            "config": self.config.to_dict(),
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The reverse of :meth:`get_config`, with random weights."""
        return cls(
            OPTConfig.from_dict(config["config"]),
            name=config.get("name"),
            dtype=keras.dtype_policies.deserialize(config["dtype"]),
        )

    # --- weights --------------------------------------------------------------------

    def named_weights(self) -> dict[str, Any]:
        """The Keras variables by canonical name."""
        return {
            k: v for group in self.groups.values() for k, v in group.by_name.items()
        }

    def params(self) -> dict[str, Any]:
        """The weights as ``tf_opt``'s functions take them, in the compute dtype."""
        weights = {
            name: tf.cast(variable.value, self.compute_dtype)
            for name, variable in self.named_weights().items()
        }
        return params_from_weights(self.config, weights)

    def num_parameters(self) -> int:
        """Number of weights; a tied head counts once."""
        return sum(int(np.prod(v.shape)) for v in self.named_weights().values())

    def resize_token_embeddings(self, new_num_tokens: int) -> None:
        """Change the vocabulary's size: old rows stay, new ones start random.

        A tied head follows by itself, an untied one is resized too. An optimizer that
        was compiled before must be compiled anew.
        """
        config = OPTConfig.from_dict(
            self.config.to_dict() | {"vocab_size": new_num_tokens}
        )
        old = self.named_weights()
        fresh = random_weights(config)

        def resized(name: str, shape: Shape) -> Any:
            kept = old[name].value[: shape[0]]
            return tf.concat([kept, fresh(name, shape)[kept.shape[0] :]], axis=0)

        groups = dict(self.groups)
        for name, shape in weight_shapes(config, head=self._head).items():
            if tuple(old[name].shape) != shape:
                part = _part(name)
                groups[part] = WeightGroup(
                    {name: shape}, resized, name=part, dtype=self.dtype_policy
                )
        self.groups.clear()  # so that the order of the weights stays
        self.groups.update(groups)
        self.config.vocab_size = new_num_tokens

    # --- the call -------------------------------------------------------------------

    def __call__(self, *args, **kwargs):
        """Keras's call, which knows neither a tokenizer's mapping nor plain lists."""
        if args and isinstance(args[0], Mapping):
            args = (dict(args[0]), *args[1:])
        elif args and is_token_list(args[0]):
            args = (tf.constant(args[0], tf.int32), *args[1:])
        return super().__call__(*args, **kwargs)

    def _decode(self, given: dict[str, Any], training: Any) -> tuple[Any, Any]:
        """Weights, and hidden states of the inputs in ``given``."""
        config, params = self.config, self.params()
        ids, embeds = given["input_ids"], given["inputs_embeds"]
        if (ids is None) == (embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        past = pairs(config, given["past_key_values"], self.compute_dtype)
        if embeds is None:
            ids = check_ids(config, ids)
        else:
            embeds = tf.cast(tf.convert_to_tensor(embeds), self.compute_dtype)
        B, S = tf_opt.shape(ids if embeds is None else embeds)[:2]
        start = tf_opt.shape(past[0][0])[2] if past is not None else 0
        mask = check_mask(config, given["attention_mask"], B, start + S)
        positions = given.get("position_ids")
        if positions is not None:
            positions = check_positions(config, positions)
        return params, tf_opt.base_model(
            config,
            params,
            ids,
            mask,
            past=past,
            position_ids=positions,
            inputs_embeds=embeds,
            head_mask=check_head_mask(config, given["head_mask"]),
            rng=self._rng(training),
            output_hidden_states=given["output_hidden_states"],
            output_attentions=given["output_attentions"],
        )

    def _given(self, call_arguments: dict[str, Any]) -> dict[str, Any]:
        """The inputs by name, options that are None taken from the configuration."""
        given = unpack(call_arguments)
        for name in _OPTIONS:
            if given[name] is None:
                given[name] = getattr(self.config, name)
        return given

    def _rng(self, training: Any) -> Any:
        """A fresh seed when training; None, which means no dropout, otherwise."""
        c = self.config
        if not training or not (c.dropout or c.attention_dropout or c.layerdrop):
            return None
        return tf.cast(self.seed_generator.next(), tf.int32)

    def predict_step(self, data):
        """Keras's hook. No caches: Keras joins batches along axis 0, which is not
        theirs."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self(x, training=False, use_cache=False)

    def compute_loss(
        self, x=None, y=None, y_pred: Any = None, sample_weight=None, training=True
    ):
        """Keras's hook: the compiled loss sees logits (or hidden states) alone."""
        return super().compute_loss(
            x, y, _prediction(y, y_pred), sample_weight, training
        )

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Keras's hook, as :meth:`compute_loss`."""
        return super().compute_metrics(x, y, _prediction(y, y_pred), sample_weight)


_OPTIONS = ("use_cache", "output_attentions", "output_hidden_states", "return_dict")


def _prediction(y: Any, y_pred: Any) -> Any:
    """The part of an output that targets ``y`` are compared with."""
    if not isinstance(y_pred, ModelOutput):
        return y_pred[0] if isinstance(y_pred, tuple) else y_pred
    if isinstance(y, Mapping) and all(name in y_pred for name in y):
        return {name: y_pred[name] for name in y}
    return y_pred["logits" if "logits" in y_pred else "last_hidden_state"]


def _caches(cache: list[Any]) -> list[Any]:
    """The public layout of a cache: L tensors (2, B, H, T, D)."""
    return [tf.stack(pair) for pair in cache]


@keras.saving.register_keras_serializable("optserve")
class TFOPTModel(_TFOPT):
    """The decoder without a head. ``TFOPTModel(config)`` has random weights."""

    _head = False

    def call(
        self,
        input_ids=None,
        attention_mask=None,
        head_mask=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        training=False,
    ):
        """Hidden states of ``input_ids`` (B, S): :class:`TFBaseModelOutputWithPast`.

        Inputs come as keywords, as one tensor, as a list or tuple in this order, or as
        one dict. ``attention_mask`` (B, past + S): 0 is padding; ``head_mask`` (L, H);
        ``past_key_values``: L tensors (2, B, H, past, D) or (key, value) pairs;
        ``inputs_embeds`` (B, S, word_embed_proj_dim) instead of ids.
        ``return_dict=False`` gives a tuple. Raises ValueError or InvalidArgumentError
        for shapes, ids and positions out of range.
        """
        arguments = {**locals()}
        for name in ("self", "training", "__class__"):
            arguments.pop(name, None)
        given = self._given(arguments)
        _, decoded = self._decode(given, training)
        output = TFBaseModelOutputWithPast(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=_caches(decoded.cache) if given["use_cache"] else None,
            hidden_states=decoded.hidden_states,
            attentions=decoded.attentions,
        )
        return output if given["return_dict"] else output.to_tuple()


@keras.saving.register_keras_serializable("optserve")
class TFOPTForCausalLM(_TFOPT):
    """The decoder with its head. ``TFOPTForCausalLM(config)`` has random weights.

    ``compile`` without a loss trains on its own: labels in the inputs or as targets.
    """

    _head = True

    def call(
        self,
        input_ids=None,
        past_key_values=None,
        attention_mask=None,
        position_ids=None,
        head_mask=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        training=False,
    ):
        """Next-token logits of ``input_ids`` (B, S): :class:`TFCausalLMOutputWithPast`.

        As :meth:`TFOPTModel.call`; in a list, a second tensor of rank 2 is the
        attention mask. ``position_ids`` (B, S) replace those counted from the mask;
        ``labels`` (B, S), −100 ignored, are compared with the logits one position
        before, giving ``loss``.
        """
        arguments = {**locals()}
        for name in ("self", "training", "__class__"):
            arguments.pop(name, None)
        given = self._given(arguments)
        params, decoded = self._decode(given, training)
        logits = tf_opt.lm_logits(self.config, params, decoded.last_hidden_state)
        loss = None
        if given["labels"] is not None:
            labels = tf.convert_to_tensor(given["labels"])
            loss = tf.boolean_mask(*tf_opt.token_losses(logits, labels))
        output = TFCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=_caches(decoded.cache) if given["use_cache"] else None,
            hidden_states=decoded.hidden_states,
            attentions=decoded.attentions,
        )
        return output if given["return_dict"] else output.to_tuple()

    def compute_loss(
        self, x=None, y=None, y_pred: Any = None, sample_weight=None, training=True
    ):
        """Keras's hook: the model's own loss unless one was compiled.

        That is the mean over all unmasked labels, which are ``x["labels"]`` or ``y``
        (or ``y["labels"]``); ``sample_weight`` [B] weighs rows.
        """
        labels = _labels(x, y)
        if self._compile_loss is not None or labels is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        if isinstance(y_pred, ModelOutput):
            logits = y_pred["logits"]
        else:  # a tuple, where the loss comes first if there is one
            logits = y_pred[int(isinstance(x, Mapping) and "labels" in x)]
        losses, counts = tf_opt.token_losses(logits, labels)
        counts = tf.cast(counts, losses.dtype)
        if sample_weight is not None:
            weight = tf.cast(sample_weight, losses.dtype)
            counts *= tf.reshape(weight, [-1, 1])
        loss = tf.math.divide_no_nan(
            tf.reduce_sum(losses * counts), tf.reduce_sum(counts)
        )
        return tf.add_n([loss, *self.losses])


def _labels(x: Any, y: Any) -> Any:
    """Labels among a batch's inputs or targets; None if there are none."""
    for source in (x, y):
        if isinstance(source, Mapping) and "labels" in source:
            return source["labels"]
    return None if isinstance(y, Mapping) else y


for _output in (TFBaseModelOutputWithPast, TFCausalLMOutputWithPast):
    optree.register_pytree_node(
        _output,
        lambda output: (list(output.values()), tuple(output), tuple(output)),  # pyright: ignore[reportAttributeAccessIssue]
        lambda keys, values, cls=_output: cls(zip(keys, values, strict=True)),  # pyright: ignore[reportArgumentType]
        namespace="keras",
    )

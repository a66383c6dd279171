"""What both Keras classes share: weights, files, inputs, training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..checkpoints import save_weights
from ..config import OPTConfig
from ..pretrained import Pretrained, format_to_save, generation_defaults
from ..push import Pushes, push_folder
from ..weights import Shape, params_from_weights, weight_shapes
from . import model as tf_opt
from .inputs import (
    check_head_mask,
    check_ids,
    check_length,
    check_mask,
    check_positions,
    is_token_list,
    pairs,
    unpack,
)
from .surface import Surface
from .training import Training
from .weights import (
    Initial,
    TokenEmbedding,
    WeightGroup,
    make_group,
    part_name,
    random_weights,
)

_OPTIONS = ("use_cache", "output_attentions", "output_hidden_states", "return_dict")


class TFOPTBase(Pushes, Surface, Training):
    """A Keras model with OPT's weights; what it computes is up to the subclass."""

    config_class = OPTConfig
    base_model_prefix = "model"
    framework = "tf"
    main_input_name = "input_ids"
    _head: bool

    supports_xla_generation = True

    def __init__(
        self, config: OPTConfig, *inputs: Any, initial: Initial | None = None, **kwargs
    ) -> None:
        super().__init__(*inputs, **kwargs)
        self.config = config = OPTConfig.of(config)
        self.name_or_path = ""
        self.seed_generator = keras.random.SeedGenerator()
        initial = initial or random_weights(config)
        shapes: dict[str, dict[str, Shape]] = {}
        for name, shape in weight_shapes(config, head=self._head).items():
            shapes.setdefault(part_name(name), {})[name] = shape
        self.groups: dict[str, WeightGroup] = {}
        self._hold(
            {
                part: make_group(part, named, initial, self.dtype_policy)
                for part, named in shapes.items()
            }
        )
        self.built = True

    def _hold(self, groups: dict[str, WeightGroup]) -> None:
        """Take ``groups`` as all weights, in this order."""
        self.groups.clear()
        self.__dict__.get("_programs", {}).clear()
        self.groups.update(groups)
        for part, group in groups.items():
            # For tf.train.Checkpoint, which does not look into Keras's own dicts.
            self._track_trackable(group, part, overwrite=True)

    # --- files ----------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        dtype: Any = None,
        name: str | None = None,
        output_loading_info: bool = False,
        **options: Any,
    ) -> Any:
        """A model with a checkpoint's weights, from a directory or the hub.

        ``dtype`` is Keras's (``"bfloat16"``, ``"mixed_bfloat16"``, …);
        ``output_loading_info`` asks for ``(model, info)``; ``options``:
        ``config``, ``ignore_mismatched_sizes``, ``format``, ``revision``,
        ``cache_dir``, ``local_files_only``, ``force_download``, ``token``,
        ``subfolder``, and fields of the configuration to change. Weights are read one
        after the other.
        Raises ``CheckpointError`` (``models.checkpoints``) or ``WeightsError``.
        """
        checkpoint = Pretrained.open(
            pretrained_model_name_or_path, head=cls._head, **options
        )
        fresh = random_weights(checkpoint.config)

        def initial(name: str, shape: Shape) -> Any:
            if name in checkpoint.usable:
                return checkpoint.weights[name]
            return fresh(name, shape)

        model = cls(checkpoint.config, initial=initial, dtype=dtype, name=name)
        model.name_or_path = os.fspath(pretrained_model_name_or_path)
        if cls._head:
            model.generation_config = generation_defaults(checkpoint)
        return (model, checkpoint.loading_info()) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        saved_model: bool = False,
        version: int = 1,
        push_to_hub: bool = False,
        signatures: Any = None,
        max_shard_size: int | str = "5GB",
        *,
        safe_serialization: bool | None = None,
        format: str | None = None,
        **needless: Any,
    ) -> None:
        """Write ``config.json`` and the weights, as ``checkpoints.save_weights`` does.

        ``safe_serialization=False`` is ``format="h5"``. ``saved_model`` writes
        ``saved_model/{version}`` too: with the ``signatures`` of
        ``tf.saved_model.save``, or as :meth:`export` does.
        """
        format = format_to_save(format, safe_serialization, "h5", needless)
        self.config.save_pretrained(save_directory)
        if self._head:
            self.generation_config.save_pretrained(save_directory)
        save_weights(
            save_directory,
            [(name, variable.value) for name, variable in self.named_weights().items()],
            format=format,
            max_shard_size=max_shard_size,
            base_model=not self._head,
        )
        if saved_model:
            path = os.path.join(save_directory, "saved_model", str(version))
            if signatures is None:
                self.export(path)
            else:
                tf.saved_model.save(self, path, signatures=signatures)
        if push_to_hub:
            name = needless.pop("repo_id", None) or os.path.basename(save_directory)
            push_folder(save_directory, name, **needless)

    def export(self, filepath, format: str = "tf_saved_model", **kwargs: Any) -> None:
        """Keras's export, of ids and mask to logits (or hidden states).

        What a service needs, with the cache, ``optserve export`` writes.
        """
        inputs = {
            name: keras.Input([None], dtype="int32", name=name)
            for name in ("input_ids", "attention_mask")
        }
        main = "logits" if self._head else "last_hidden_state"
        output = self(inputs, use_cache=False, return_dict=True)[main]
        keras.Model(inputs, {main: output}).export(filepath, format, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Keras's description of the model, for ``.keras`` files."""
        return {
            "config": self.config.to_dict(),
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The reverse of :meth:`get_config`, with random weights.

        Also from an :class:`OPTConfig` itself.
        """
        if not isinstance(config, dict):
            return cls(config)
        return cls(
            OPTConfig.from_dict(config["config"]),
            name=config.get("name"),
            dtype=keras.dtype_policies.deserialize(config["dtype"]),
        )

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        """Transformers' hook, by which its ``TFAutoModel`` makes a model."""
        return cls(config, **kwargs)

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

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Number of weights, frozen ones too; a tied head counts once."""
        counted = self.trainable_weights if only_trainable else self.weights
        return sum(int(np.prod(v.shape)) for v in counted)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None
    ) -> TokenEmbedding:
        """Change the vocabulary's size: old rows stay, new ones start random.

        A tied head follows by itself, an untied one is resized too. An optimizer that
        was compiled before must be compiled anew. Returns the embedding; without a
        size nothing changes.
        """
        if new_num_tokens is None:
            return self.get_input_embeddings()
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
                part = part_name(name)
                groups[part] = make_group(
                    part, {name: shape}, resized, self.dtype_policy
                )
        self._hold(groups)
        self.config.vocab_size = new_num_tokens
        return self.get_input_embeddings()

    # --- the call -------------------------------------------------------------------

    @tf.autograph.experimental.do_not_convert  # it is written for graphs already
    def __call__(self, *args, **kwargs):
        """Keras's call, which knows neither a tokenizer's mapping nor plain lists.

        Options among a mapping's entries become keywords: Keras takes tensors only.
        """
        if args and isinstance(args[0], Mapping):
            inputs = dict(args[0])
            given = [n for n in (*_OPTIONS, "training") if n in inputs]
            kwargs = {name: inputs.pop(name) for name in given} | kwargs
            args = (inputs, *args[1:])
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
        mask = check_mask(given["attention_mask"], B, start + S)
        positions = given.get("position_ids")
        if positions is None:
            mask = check_length(config, mask)
        else:
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
        given.pop("token_type_ids", None)  # tokenizers give them; OPT has none
        for name in _OPTIONS:
            if given[name] is None:
                given[name] = getattr(self.config, name)
        return given

    def _rng(self, training: Any) -> Any:
        """A fresh seed when training; None, which means no dropout, otherwise."""
        if not training or not self.config.has_dropout:
            return None
        return tf.cast(self.seed_generator.next(), tf.int32)

    @property
    def output(self) -> list[Any]:
        """The largest symbolic output so far.

        Keras's own is the first one; it takes a functional model over an output with
        more tensors than that for unconnected.
        """
        if not self._inbound_nodes:
            return super().output
        return max((node.output_tensors for node in self._inbound_nodes), key=len)

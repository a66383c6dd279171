"""Methods of Transformers' TensorFlow models that OPT's users call, besides the call
itself, files and generation."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..config import OPTConfig
from .weights import TokenEmbedding, WeightGroup


class Surface(keras.Model):
    """What ``TFOPTModel`` and ``TFOPTForCausalLM`` have for their users."""

    config: OPTConfig
    groups: dict[str, WeightGroup]
    _head: bool

    # --- parts ----------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The parts: ``.decoder.layers`` (with their weights), ``.embed_tokens``, …

        They hold weights, and can be frozen (``trainable = False``); they compute
        nothing by themselves.
        """
        at = "decoder.layers."
        parts = {
            name.removeprefix("decoder."): group
            for name, group in self.groups.items()
            if name.startswith("decoder.") and not name.startswith(at)
        }
        layers = [g for name, g in self.groups.items() if name.startswith(at)]
        decoder = SimpleNamespace(layers=layers, **parts)
        return SimpleNamespace(
            name="model", decoder=decoder, embed_tokens=self.get_input_embeddings()
        )

    def get_layer(self, name: str | None = None, index: int | None = None) -> Any:
        """Keras's, and ``"model"`` for :attr:`model`."""
        if name == "model":
            return self.model
        return super().get_layer(name=name, index=index)

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the class has a head to generate with."""
        return cls._head

    def get_decoder(self) -> Any:
        """The model without a head: this one."""
        return self

    # --- embeddings and head --------------------------------------------------------

    def get_input_embeddings(self) -> TokenEmbedding:
        """The layer that makes ``inputs_embeds`` of ids; ``.weight`` is the table."""
        table = self.groups["decoder.embed_tokens"]
        assert isinstance(table, TokenEmbedding)
        return table

    def set_input_embeddings(self, value: Any) -> None:
        """Other values for the table [V,W]: an array, a variable, or a layer's
        ``weight``. ValueError for another shape; ``resize_token_embeddings`` first."""
        _assign(self.get_input_embeddings().weight, value)

    def get_output_embeddings(self) -> WeightGroup | None:
        """The layer whose table makes logits; None in the class without a head."""
        if not self._head:
            return None
        tied = self.config.tie_word_embeddings
        return self.groups["decoder.embed_tokens" if tied else "lm_head"]

    def set_output_embeddings(self, value: Any) -> None:
        """Other values for the head's table, which is the embeddings' where it is
        tied; see :meth:`set_input_embeddings`. ValueError in the class without one."""
        head = self.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(self).__name__} has no head")
        _assign(head.weight, value)

    def get_lm_head(self) -> WeightGroup | None:
        """Another name of :meth:`get_output_embeddings`."""
        return self.get_output_embeddings()

    def get_bias(self) -> None:
        """OPT's head has no bias."""
        return None

    def get_output_layer_with_bias(self) -> None:
        """Nor a layer that has one."""
        return None

    def get_prefix_bias_name(self) -> None:
        """Nor a name for it."""
        return None

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Switch attention heads off for good: ``{layer: [heads]}``.

        What ``out_proj`` takes from them becomes 0, which is what a ``head_mask`` of 0
        does; shapes stay. ``config.pruned_heads`` keeps account. ValueError for layers
        and heads that the model doesn't have.
        """
        L, H = self.config.num_hidden_layers, self.config.num_attention_heads
        chosen = {int(i): {int(h) for h in heads_to_prune[i]} for i in heads_to_prune}
        for i, heads in chosen.items():
            if not 0 <= i < L or not all(0 <= head < H for head in heads):
                raise ValueError(
                    f"there are {L} layers of {H} heads, got layer {i}, heads "
                    f"{sorted(heads)}"
                )
        pruned = {
            int(i): set(h) for i, h in self.config.extra.get("pruned_heads", {}).items()
        }
        for i, heads in chosen.items():
            name = f"decoder.layers.{i}.self_attn.out_proj.weight"
            weight = self.groups[f"decoder.layers.{i}"].by_name[name]
            keep = np.ones([H, self.config.head_dim], np.float32)
            keep[sorted(heads)] = 0
            weight.assign(weight * tf.constant(keep.reshape(1, -1), weight.dtype))
            pruned[i] = pruned.get(i, set()) | heads
        kept = {str(i): sorted(heads) for i, heads in sorted(pruned.items())}
        self.config.extra["pruned_heads"] = kept

    # --- serving and data -----------------------------------------------------------

    @property
    def dummy_inputs(self) -> dict[str, Any]:
        """Some inputs, to call the model with."""
        ids = tf.constant([[2, 3, 4], [2, 5, 6]])
        return {"input_ids": ids, "attention_mask": tf.ones_like(ids)}

    def build_in_name_scope(self) -> None:
        """Transformers' way to make the weights, which are there from the start."""

    @property
    def input_signature(self) -> dict[str, tf.TensorSpec]:
        """What :meth:`serving` takes."""
        names = ("input_ids", "attention_mask")
        return {name: tf.TensorSpec([None, None], tf.int32, name) for name in names}

    @property
    def serving(self) -> Any:
        """A ``tf.function`` of ids and mask, for ``tf.saved_model.save``'s signatures.

        What a service needs, with the cache, ``optserve export`` writes.
        """

        def serving(inputs):
            return self.serving_output(self(inputs, return_dict=True))

        return tf.function(serving, input_signature=[self.input_signature])

    def serving_output(self, output: Any) -> dict[str, Any]:
        """An output as signatures give it: a dict of single tensors."""
        tensors = {}
        for name, value in output.items():
            tensors[name] = value if tf.is_tensor(value) else tf.stack(list(value))
        return tensors

    def prepare_tf_dataset(
        self,
        dataset: Any,
        batch_size: int = 8,
        shuffle: bool = True,
        tokenizer: Any = None,
        collate_fn: Any = None,
        collate_fn_args: Mapping[str, Any] | None = None,
        drop_remainder: bool | None = None,
        prefetch: bool = True,
    ) -> Any:
        """Batches for ``fit`` from examples: dicts with ``input_ids`` (and ``labels``).

        ``dataset`` has a length and gives an example by its number, as the ``datasets``
        package's do. Examples of different lengths are padded on the right, labels with
        −100, or as ``tokenizer.pad`` or ``collate_fn(list_of_examples)`` do it. Columns
        that the model doesn't take are left out, labels come as targets: ``(x, y)``.
        ``drop_remainder`` is ``shuffle``'s unless it is said.
        """
        fill = {"labels": -100, "attention_mask": 0}
        taken = inspect.signature(self.call).parameters
        pad_id = self.config.pad_token_id or 0

        def batch(examples: list[Mapping[str, Any]]) -> Any:
            if collate_fn is not None:
                columns = collate_fn(examples, **dict(collate_fn_args or {}))
            elif tokenizer is not None and len({_size(e) for e in examples}) > 1:
                columns = tokenizer.pad(
                    [dict(e) for e in examples], return_tensors="np"
                )
            else:
                columns = _padded(examples, fill, pad_id)
            columns = {
                name: np.asarray(value, np.int32) for name, value in columns.items()
            }
            columns.pop("token_type_ids", None)
            columns = {name: x for name, x in columns.items() if name in taken}
            labels = columns.pop("labels", None)
            return columns if labels is None else (columns, labels)

        drop = shuffle if drop_remainder is None else drop_remainder
        count = len(dataset)

        def batches():
            order = np.random.permutation(count) if shuffle else np.arange(count)
            end = count - count % batch_size if drop else count
            for start in range(0, end, batch_size):
                numbers = order[start : start + batch_size]
                yield batch([dataset[int(i)] for i in numbers])

        first = batch([dataset[i] for i in range(min(count, batch_size))])
        specs = tf.nest.map_structure(
            lambda _: tf.TensorSpec([None, None], tf.int32), first
        )
        out = tf.data.Dataset.from_generator(batches, output_signature=specs)
        steps = count // batch_size if drop else -(-count // batch_size)
        out = out.apply(tf.data.experimental.assert_cardinality(steps))
        return out.prefetch(tf.data.AUTOTUNE) if prefetch else out


def _assign(table: Any, value: Any) -> None:
    """``table`` takes the values of an array, a variable, or a layer's ``weight``."""
    new = np.asarray(getattr(value, "weight", value))
    if new.shape != tuple(table.shape):
        raise ValueError(
            f"the embeddings have shape {tuple(table.shape)}, got {new.shape}: "
            "call resize_token_embeddings first"
        )
    table.assign(new)


def _size(example: Mapping[str, Any]) -> int:
    return len(example["input_ids"])


def _padded(
    examples: list[Mapping[str, Any]], fill: Mapping[str, int], pad_id: int
) -> dict[str, np.ndarray]:
    """Examples as arrays [B, longest], and a mask of what is real."""
    longest = max(map(_size, examples))
    names = [name for name in examples[0] if np.ndim(examples[0][name]) == 1]
    padded = {}
    for name in names:
        value = fill.get(name, pad_id if name == "input_ids" else 0)
        out = np.full([len(examples), longest], value, np.int32)
        for row, example in zip(out, examples, strict=True):
            row[: len(example[name])] = example[name]
        padded[name] = out
    if "attention_mask" not in padded:
        lengths = np.array([_size(e) for e in examples])
        padded["attention_mask"] = (np.arange(longest) < lengths[:, None]).astype(int)
    return padded

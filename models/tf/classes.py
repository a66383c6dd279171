"""``TFOPTModel`` and ``TFOPTForCausalLM``: Keras models over ``model.py``.

They give the documented call surface; the math is there, what they share in
``base.py``.
"""

from __future__ import annotations

from typing import Any

import keras
import optree
import tensorflow as tf

from ..outputs import (
    ModelOutput,
    TFBaseModelOutputWithPast,
    TFCausalLMOutputWithPast,
)
from . import model as tf_opt
from .base import TFOPTBase
from .generation import Generation
from .inputs import check_labels
from .training import find_labels, own_loss, prediction


def _caches(cache: list[Any]) -> list[Any]:
    """The public layout of a cache: L tensors (2, B, H, T, D)."""
    return [tf.stack(pair) for pair in cache]


@keras.saving.register_keras_serializable("optserve")
class TFOPTModel(TFOPTBase):
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
        token_type_ids=None,
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
class TFOPTForCausalLM(Generation, TFOPTBase):
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
        token_type_ids=None,
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
            labels = check_labels(self.config, given["labels"], logits)
            loss = tf.boolean_mask(*tf_opt.token_losses(logits, labels))
        output = TFCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=_caches(decoded.cache) if given["use_cache"] else None,
            hidden_states=decoded.hidden_states,
            attentions=decoded.attentions,
        )
        return output if given["return_dict"] else output.to_tuple()

    def prepare_inputs_for_generation(
        self,
        inputs: Any,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The inputs of a decoding loop's next call: with a cache, the last ids only.

        ``attention_mask`` may be among ``kwargs``.
        """
        return {
            "input_ids": inputs[:, -1:] if past_key_values else inputs,
            "attention_mask": kwargs.get("attention_mask"),
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }

    def compute_loss(
        self, x=None, y=None, y_pred: Any = None, sample_weight=None, training=True
    ):
        """Keras's hook: the model's own loss unless one was compiled.

        That is the mean over all unmasked labels, which are ``x["labels"]`` or ``y``
        (or ``y["labels"]``); ``sample_weight`` [B] or [B,S] weighs them as Keras does.
        """
        labels = find_labels(x, y)
        if self._compile_loss is not None or labels is None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        return tf.add_n([own_loss(x, y_pred, labels, sample_weight), *self.losses])

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Keras's hook: without targets, ``x["labels"]`` are, as in the loss."""
        labels = find_labels(x, None)
        if y is None and labels is not None:
            y, y_pred = labels[:, 1:], prediction(x, y, y_pred)[:, :-1]
        return super().compute_metrics(x, y, y_pred, sample_weight)


def _as_pytree(kind: type[ModelOutput]) -> None:
    """Have Keras see the tensors inside outputs of this kind."""

    def flatten(output: Any) -> tuple[list[Any], tuple[str, ...], tuple[str, ...]]:
        return list(output.values()), tuple(output), tuple(output)

    def unflatten(names: Any, values: Any) -> Any:
        return kind(zip(names, values, strict=True))

    optree.register_pytree_node(kind, flatten, unflatten, namespace="keras")


_as_pytree(TFBaseModelOutputWithPast)
_as_pytree(TFCausalLMOutputWithPast)

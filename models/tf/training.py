"""Training of the Keras classes: which output is compared with which target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from ..outputs import ModelOutput
from . import model as tf_opt


def prediction(x: Any, y: Any, y_pred: Any) -> Any:
    """The part of the output for inputs ``x`` that targets ``y`` are compared with."""
    if isinstance(y_pred, tuple):  # the loss comes first if there is one
        return y_pred[int(isinstance(x, Mapping) and "labels" in x)]
    if not isinstance(y_pred, ModelOutput):
        return y_pred
    if isinstance(y, Mapping) and all(name in y_pred for name in y):
        return {name: y_pred[name] for name in y}
    return y_pred["logits" if "logits" in y_pred else "last_hidden_state"]


def find_labels(x: Any, y: Any) -> Any:
    """Labels among a batch's inputs or targets; None if there are none."""
    for source in (x, y):
        if isinstance(source, Mapping) and "labels" in source:
            return source["labels"]
    return None if isinstance(y, Mapping) else y


def own_loss(x: Any, y_pred: Any, labels: Any, sample_weight: Any = None) -> Any:
    """The mean loss over all unmasked labels, each times its ``sample_weight``.

    Weights are [B] or [B,S] and, as Keras has it, don't change what is divided by: the
    number of unmasked labels.

    ``y_pred`` is the output for the inputs ``x``: a :class:`ModelOutput` or a tuple.
    """
    losses, counts = tf_opt.token_losses(prediction(x, None, y_pred), labels)
    counts = tf.cast(counts, losses.dtype)
    losses *= counts
    if isinstance(sample_weight, Mapping):
        sample_weight = sample_weight["labels"]
    if sample_weight is not None:
        weight = tf.cast(sample_weight, losses.dtype)
        if weight.shape.rank == 1:
            weight = weight[:, None]
        losses *= weight if weight.shape[1] == 1 else weight[:, 1:]
    return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.reduce_sum(counts))

"""Training of the Keras classes: which output is compared with which target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from ..outputs import ModelOutput
from . import model as tf_opt
from .inputs import as_dict

OWN_LOSS = ("auto", "auto_with_warning", "passthrough")
"""What Transformers' ``compile`` calls the loss of the model itself."""


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


class Training(keras.Model):
    """Keras's methods as Transformers' classes have them: also of a tokenizer's
    mapping, and with the losses above."""

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        metrics=None,
        loss_weights=None,
        weighted_metrics=None,
        run_eagerly=False,
        steps_per_execution=1,
        **kwargs,
    ):
        """Keras's, in Transformers' order of arguments."""
        if isinstance(loss, str) and loss in OWN_LOSS:
            loss = None  # which means the same
        super().compile(
            optimizer=optimizer,
            loss=loss,
            metrics=metrics,
            loss_weights=loss_weights,
            weighted_metrics=weighted_metrics,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            **kwargs,
        )

    def fit(self, x=None, *args, **kwargs):
        """Keras's."""
        return super().fit(as_dict(x), *args, **kwargs)

    def evaluate(self, x=None, *args, **kwargs):
        """Keras's."""
        return super().evaluate(as_dict(x), *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """Keras's."""
        return super().predict(as_dict(x), *args, **kwargs)

    def train_on_batch(self, x, *args, **kwargs):
        """Keras's."""
        return super().train_on_batch(as_dict(x), *args, **kwargs)

    def test_on_batch(self, x, *args, **kwargs):
        """Keras's."""
        return super().test_on_batch(as_dict(x), *args, **kwargs)

    def predict_on_batch(self, x):
        """Keras's."""
        return super().predict_on_batch(as_dict(x))

    def make_train_function(self, force=False):
        """Keras's hook. The optimizer's variables are there before its step is traced:
        a function that makes variables is traced twice."""
        if self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        super().make_train_function(force)

    def predict_step(self, data):
        """Keras's hook. No caches: Keras joins batches along axis 0, which is not
        theirs."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self(x, training=False, use_cache=False)

    def compute_loss(
        self, x=None, y=None, y_pred: Any = None, sample_weight=None, training=True
    ):
        """Keras's hook: the compiled loss sees logits (or hidden states) alone."""
        y_pred = prediction(x, y, y_pred)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Keras's hook, as :meth:`compute_loss`."""
        y_pred = prediction(x, y, y_pred)
        return super().compute_metrics(x, y, y_pred, sample_weight)

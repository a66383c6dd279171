"""From lists of ids in a request to what the samplers look at, by token id."""

from __future__ import annotations

from functools import partial
from typing import Any

import tensorflow as tf

from ...models.generation.modifiers import FROM_PROMPT, Marks
from ...models.generation.sampling_params import SamplingParams


class MarkMaker:
    """Makes :class:`Marks` of a vocabulary of ``V`` ids: one function that all
    signatures call.

    Not a ``tf.Module``, where the saver would find the function and store it twice.
    """

    def __init__(self, V: int) -> None:
        self._make = tf.function(partial(_marks, V), autograph=False)

    def __call__(
        self, history: Any, stop_ids: Any, bias_ids: Any, bias: Any, params: Any
    ) -> Marks:
        """The contract's ``history`` [B,W], ``stop_ids`` [B,K], ``bias_ids`` and
        ``bias`` [B,J]."""
        return self._make(history, stop_ids, bias_ids, bias, params)


def _marks(V: int, history, stop_ids, bias_ids, bias, params: SamplingParams) -> Marks:
    ids = tf.where(history < -1, -2 - history, history)
    biased = tf.reduce_any((bias_ids >= 0) & (bias != 0), axis=1)
    return Marks(
        counts=_by_id(ids, tf.where(history < 0, FROM_PROMPT, 1), V),
        stops=_by_id(stop_ids, tf.ones_like(stop_ids), V) > 0,
        bias=_by_id(bias_ids, bias, V),
        modified=biased
        | (params.repetition_penalty != 1)
        | (params.presence_penalty != 0)
        | (params.frequency_penalty != 0)
        | (params.min_new_tokens > 0),
    )


def _by_id(ids, values, V: int):
    """``values`` [B,K], added up, where the ids [B,K] stand in the vocabulary: [B,V].

    Negative ids, and ids beyond the vocabulary, stand nowhere.
    """
    B, K = tf.unstack(tf.shape(ids))
    column = tf.where((ids < 0) | (ids >= V), V, ids)
    at = tf.stack([tf.repeat(tf.range(B)[:, None], K, axis=1), column], axis=2)
    return tf.ensure_shape(tf.scatter_nd(at, values, [B, V + 1])[:, :V], [None, V])

"""What changes a model's logits before a token is drawn, once for all frameworks.

    B rows   V vocabulary   W tokens of history

In vLLM's order (``vllm/v1/sample/sampler.py``): bias, stop tokens that can't come yet,
repetition penalty, frequency and presence penalty. The temperature and what filters
the rest come after it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .arrays import Array, Arrays
from .sampling_params import SamplingParams

FROM_PROMPT = 1 << 16
"""What a token of the prompt adds to a count, in which new ones add 1."""


class Marks(NamedTuple):
    """What each row's modifiers look at, by token id."""

    counts: Array  # [B,V] int32: how often an id came; see ``FROM_PROMPT``
    stops: Array  # [B,V] boolean: tokens that end a row
    bias: Array  # [B,V] float32
    modified: Array  # [B] boolean: whether anything modifies the row at all


def modify(
    xp: Arrays, logits: Array, params: SamplingParams, marks: Marks, new: Any
) -> Array:
    """``logits`` [B,V] as the rows' ``params`` want them changed.

    ``new`` is how many new tokens a row has, which ``min_new_tokens`` counts.
    """
    early = (xp.array(new) < params.min_new_tokens)[:, None]
    x = logits + marks.bias
    x = xp.where(marks.stops & early, xp.array(float("-inf"), "float32"), x)
    x = penalize(xp, x, marks.counts > 0, params.repetition_penalty[:, None])
    return penalize_counts(
        xp,
        x,
        marks.counts % FROM_PROMPT,
        frequency=params.frequency_penalty[:, None],
        presence=params.presence_penalty[:, None],
    )


def penalize(xp: Arrays, logits: Array, seen: Array, penalty: Any) -> Array:
    """x / r where a seen token's logit is above 0, else x · r (Keskar et al. 2019,
    https://arxiv.org/abs/1909.05858)."""
    return xp.where(
        seen, xp.where(logits > 0, logits / penalty, logits * penalty), logits
    )


def penalize_counts(
    xp: Arrays, logits: Array, counts: Array, *, frequency: Any, presence: Any
) -> Array:
    """x − frequency · count − presence where the count isn't 0: OpenAI's definition
    (https://platform.openai.com/docs/guides/text-generation, "Frequency and presence
    penalties"), of new tokens alone as in vLLM."""
    often = frequency * xp.array(counts, "float32")
    return logits - often - presence * xp.array(counts > 0, "float32")


def min_p_threshold(xp: Arrays, logits: Array, min_p: Any) -> Array:
    """The least logit [B] that is at least ``min_p`` [B] times as likely as the
    largest (Nguyen et al. 2024, https://arxiv.org/abs/2407.01082)."""
    return xp.max(logits, 1) + xp.log(min_p)

"""How the next token of each row is chosen, as the searches and the graphs take it."""

from __future__ import annotations

from typing import Any, NamedTuple


class SamplingParams(NamedTuple):
    """How each row's tokens are chosen, as arrays [B] of any framework."""

    seed: Any  # [B,2] int32
    temperature: Any  # float32, 0 is greedy
    top_k: Any  # int32, 0 is off
    top_p: Any  # float32, 1 is off
    repetition_penalty: Any  # float32, 1 is off
    min_p: Any  # float32, 0 is off
    presence_penalty: Any  # float32, 0 is off
    frequency_penalty: Any  # float32, 0 is off
    min_new_tokens: Any  # int32, 0 is off
    top_logprobs: Any  # int32: how many likeliest tokens to report

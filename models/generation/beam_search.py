"""The scores and the end conditions of beam search, as Hugging Face has them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

EarlyStopping = bool | Literal["never"]
"""True: a row ends at ``width`` finished sequences. False: when the best running beam
can't win at its present length. "never": when it can't win at any length."""


def candidate_count(width: int, stop_ids: int) -> int:
    """How many continuations hold ``width`` that don't end, with that many ids that
    end one."""
    return max(2, 1 + stop_ids) * width


def best_candidates(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` largest ``scores`` [n], best first, the lowest among
    equals."""
    count = min(count, scores.size)
    best = np.argpartition(-scores, count - 1)[:count]
    return best[np.lexsort((best, -scores[best]))]


def sequence_score(total: Any, new_tokens: Any, length_penalty: float) -> Any:
    """A sequence's summed log-probability over (new tokens) ** ``length_penalty``."""
    return total / new_tokens**length_penalty


def compared_length(
    new_tokens: Any,
    max_new_tokens: Any,
    length_penalty: float,
    early_stopping: EarlyStopping,
) -> Any:
    """The length at which the best running beam is compared with finished ones."""
    if early_stopping == "never" and length_penalty > 0:
        return max_new_tokens
    return new_tokens

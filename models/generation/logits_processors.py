"""Rules on the next token, as functions ``(tokens, logits) -> logits``, in numpy.

``tokens`` are the prompt's and the new ones, ``logits`` ``[V]`` float32. Each returns
new logits and leaves its argument alone. The same rules as in Hugging Face's
``generation/logits_process.py``, for one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

LogitsProcessor = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``(tokens [n] of prompt and continuation, logits [V] float32) -> logits [V]``."""

_NEVER = np.float32(-np.inf)


def no_repeat_ngram(size: int) -> LogitsProcessor:
    """Forbid every token that would complete a run of ``size`` tokens seen before."""

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        if len(tokens) < size:
            return logits
        runs = np.lib.stride_tricks.sliding_window_view(tokens, size)
        last = tokens[len(tokens) - size + 1 :]
        return _forbid(logits, runs[(runs[:, :-1] == last).all(axis=1), -1])

    return process


def bad_words(sequences: Sequence[Sequence[int]]) -> LogitsProcessor:
    """Forbid the last token of each sequence behind its other tokens."""
    words = [np.asarray(word, np.int64) for word in sequences]

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        ends = [
            word[-1]
            for word in words
            if len(tokens) >= len(word) - 1
            and np.array_equal(tokens[len(tokens) - len(word) + 1 :], word[:-1])
        ]
        return _forbid(logits, ends)

    return process


def forced_tokens(forced: Mapping[int, int], prompt_tokens: int) -> LogitsProcessor:
    """Where ``forced`` has the number of new tokens so far, allow that token only."""

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        token = forced.get(len(tokens) - prompt_tokens)
        if token is None:
            return logits
        out = np.full_like(logits, _NEVER)
        out[token] = 0
        return out

    return process


def min_new_tokens(
    count: int, stop_ids: Sequence[int], prompt_tokens: int
) -> LogitsProcessor:
    """Forbid the stop tokens until there are ``count`` new tokens."""

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        early = len(tokens) - prompt_tokens < count
        return _forbid(logits, stop_ids) if early else logits

    return process


def logit_bias(bias: Mapping[int, float]) -> LogitsProcessor:
    """Add numbers to some logits."""
    ids = np.fromiter(bias.keys(), np.int64)
    values = np.fromiter(bias.values(), np.float32)

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        out = logits.copy()
        out[ids] += values
        return out

    return process


def _forbid(logits: np.ndarray, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    if not len(ids):
        return logits
    out = logits.copy()
    out[np.asarray(ids, np.int64)] = _NEVER
    return out

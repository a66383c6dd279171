"""Rules on the next token, each written once for all frameworks.

A rule is a function ``(arrays, history, logits [R,V]) -> logits``, as in Hugging Face's
``generation/logits_process.py`` for many rows of one length; padding in a row's history
counts for nothing. :func:`for_one_row` makes of it what the client's decoding loop
runs, ``(tokens [n], logits [V]) -> logits`` in numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .arrays import NUMPY, Array, Arrays, forbid
from .modifiers import penalize, penalize_counts

LogitsProcessor = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``(tokens [n] of prompt and continuation, logits [V] float32) -> logits [V]``."""


class History(NamedTuple):
    """The tokens before the one that is chosen."""

    tokens: Array  # [R,T] int32; −1 is padding
    used: Any  # how many of the T are there
    new: Any  # how many of those came after the prompt
    padding: Any = 0  # columns at the start that the caller didn't give

    @property
    def length(self) -> Any:
        """The length of prompt and continuation, as the caller counts."""
        return self.used - self.padding

    def present(self, xp: Arrays) -> Array:
        """Which of the tokens [R,T] are there and no padding."""
        slots = xp.arange(xp.shape(self.tokens)[1])
        return (slots < self.used)[None] & (self.tokens >= 0)

    def last(self, xp: Arrays, back: int) -> Array:
        """The ``back``-th token [R] from the end; −1 where there is none."""
        here = xp.arange(xp.shape(self.tokens)[1]) == self.used - back
        return xp.max(xp.where(here[None], self.tokens, xp.array(-1)), 1)


Rule = Callable[[Arrays, History, Array], Array]


def repetition_penalty(penalty: Any) -> Rule:
    """Penalize all tokens in the history."""

    def rule(xp: Arrays, history: History, logits: Array) -> Array:
        seen = xp.marked(history.tokens, history.present(xp), logits.shape[-1])
        return penalize(xp, logits, seen, penalty)

    return rule


def count_penalties(frequency: Any, presence: Any) -> Rule:
    """Penalize new tokens, by how often they came and for having come."""

    def rule(xp: Arrays, history: History, logits: Array) -> Array:
        after_prompt = xp.arange(history.tokens.shape[1]) >= history.used - history.new
        new = history.present(xp) & after_prompt[None]
        counts = xp.counted(history.tokens, new, logits.shape[-1])
        return penalize_counts(
            xp, logits, counts, frequency=frequency, presence=presence
        )

    return rule


def no_repeat_ngram(size: int) -> Rule:
    """Forbid every token that would complete a run of ``size`` tokens seen before."""

    def rule(xp: Arrays, history: History, logits: Array) -> Array:
        count = xp.shape(history.tokens)[1] - size + 1
        if isinstance(count, int) and count <= 0:
            return logits
        runs = [history.tokens[:, i : i + count] for i in range(size)]
        seen = [history.present(xp)[:, i : i + count] for i in range(size)]
        same = seen[-1] & (history.used + 1 >= size)
        for i in range(size - 1):
            same &= seen[i] & (runs[i] == history.last(xp, size - 1 - i)[:, None])
        return forbid(xp, logits, runs[-1], same)

    return rule


def bad_words(sequences: Sequence[Sequence[int]]) -> Rule:
    """Forbid the last token of each sequence after its other tokens."""

    def rule(xp: Arrays, history: History, logits: Array) -> Array:
        which = xp.stack([_complete(xp, history, word) for word in sequences], 1)
        ends = xp.array([word[-1] for word in sequences])[None]
        return forbid(xp, logits, ends, which)

    return rule


def suppressed(ids: Sequence[int], at: Any = None) -> Rule:
    """Forbid ``ids``, or forbid them at one length of the sequence only."""

    def rule(xp: Arrays, history: History, logits: Array) -> Array:
        now = True if at is None else history.length == at
        return _forbid_all(xp, logits, ids, now)

    return rule


def forced_tokens(forced: Mapping[int, int], prompt_tokens: Any = 0) -> Rule:
    """Where ``forced`` has the sequence's length without ``prompt_tokens``, allow that
    token only."""

    def rule(xp: Arrays, history: History, logits: Array) -> Array:
        ids = xp.arange(logits.shape[-1])
        never = xp.array(float("-inf"), "float32")
        for length, token in forced.items():
            only = xp.where(ids == token, xp.array(0.0, "float32"), never)[None]
            now = xp.array(history.length - prompt_tokens) == length
            logits = xp.where(now, only, logits)
        return logits

    return rule


def min_new_tokens(count: Any, stop_ids: Sequence[int]) -> Rule:
    """Forbid the stop tokens until there are ``count`` new tokens."""

    def rule(xp: Arrays, history: History, logits: Array) -> Array:
        return _forbid_all(xp, logits, stop_ids, history.new < count)

    return rule


def min_length(count: Any, stop_ids: Sequence[int]) -> Rule:
    """Forbid the stop tokens until the sequence, prompt included, has ``count``."""

    def rule(xp: Arrays, history: History, logits: Array) -> Array:
        return _forbid_all(xp, logits, stop_ids, history.length < count)

    return rule


def sequence_bias(biases: Sequence[tuple[tuple[int, ...], float]]) -> Rule:
    """Add numbers to the last tokens of sequences whose other tokens came before."""

    def rule(xp: Arrays, history: History, logits: Array) -> Array:
        ids = xp.arange(logits.shape[-1])[None]
        for sequence, bias in biases:
            here = _complete(xp, history, sequence)[:, None] & (ids == sequence[-1])
            logits = logits + xp.where(
                here, xp.array(bias, "float32"), xp.array(0.0, "float32")
            )
        return logits

    return rule


def for_one_row(rule: Rule, prompt_tokens: int) -> LogitsProcessor:
    """The rule as a function of one row in numpy."""

    def process(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        history = History(tokens[None], len(tokens), len(tokens) - prompt_tokens)
        return rule(NUMPY, history, logits[None])[0]

    return process


def _complete(xp: Arrays, history: History, sequence: Sequence[int]) -> Array:
    """Rows [R] that a sequence's last token would complete."""
    here = history.last(xp, 1) >= -1  # always
    for back, token in enumerate(reversed(sequence[:-1]), start=1):
        here = here & (history.last(xp, back) == token)
    return here


def _forbid_all(xp: Arrays, logits: Array, ids: Sequence[int], now: Any) -> Array:
    """``ids`` forbidden in all rows if ``now``."""
    chosen = np.zeros(logits.shape[-1], bool)
    chosen[[token for token in ids if token < logits.shape[-1]]] = True
    never = xp.array(float("-inf"), "float32")
    return xp.where(xp.array(chosen, "bool")[None] & now, never, logits)

"""How a token is drawn: the counter-based noise and the filters, in numpy.

What the in-graph samplers (``tf/sampling.py``, ``flax/sampling.py``) are tested
against, and what the client uses where it chooses tokens itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .arrays import NUMPY
from .modifiers import min_p_threshold

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA
"""Constants of Threefry-2x32 (Salmon et al. 2011, the Random123 library)."""

TOP_LOGPROBS = 5
"""Likeliest tokens of a step that a graph can report."""


class SampledTokens(NamedTuple):
    """A token of each row, and what is reported of it."""

    token: Any  # [B] int32
    logprob: Any  # [B] float32, under the unmodified distribution
    top_ids: Any  # [B,5] int32: its likeliest tokens; −1 where not asked for
    top_logprobs: Any  # [B,5] float32; 0 where not asked for


def threefry2x32(
    key: np.ndarray, x0: np.ndarray, x1: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011, the Random123 library).

    Args:
        key: ``[2]``, uint32 (or int32 with the same bits).
        x0, x1: counter words, uint32, of one shape.

    Returns:
        The two output words, uint32, of the counters' shape.
    """
    k0, k1 = np.asarray(key).astype(np.int64).astype(np.uint32)
    schedule = (k0, k1, k0 ^ k1 ^ np.uint32(PARITY))
    x0 = np.atleast_1d(x0).astype(np.uint32) + k0
    x1 = np.atleast_1d(x1).astype(np.uint32) + k1
    for group in range(5):
        for turn in ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(turn)) | (x1 >> np.uint32(32 - turn))
            x1 = x1 ^ x0
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x0, x1


def gumbel(key: np.ndarray, position: int, ids: int | np.ndarray) -> np.ndarray:
    """Noise for tokens at slot ``position``; −log(−log u), u in (0, 1).

    The counter is (position, token id); u takes the upper 23 bits of the first word,
    centred, which float32 represents exactly.

    Args:
        key: the seed's low and high word, ``[2]`` int32.
        position: the new token's slot.
        ids: the token ids, or a number V for all of 0 to V − 1.
    """
    ids = np.arange(ids) if isinstance(ids, int) else ids
    counter = ids.astype(np.uint32)
    word, _ = threefry2x32(key, np.full_like(counter, position), counter)
    u = ((word >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(
        2.0**-23
    )
    return -np.log(-np.log(u))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis, float32."""
    shifted = logits - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def keep_min_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Logits ``[V]`` with −inf where a token is less than p times as likely as the
    likeliest; 0 keeps all."""
    if p <= 0:
        return logits
    threshold = min_p_threshold(NUMPY, logits[None], np.array([p], np.float32))
    return np.where(logits >= threshold, logits, np.float32(-np.inf))


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Logits ``[V]`` with −inf below the k-th largest; 0 keeps all."""
    if k <= 0 or k >= logits.size:
        return logits
    threshold = np.partition(logits, logits.size - k)[logits.size - k]
    return np.where(logits >= threshold, logits, np.float32(-np.inf))


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Logits ``[V]`` with −inf where likelier tokens already weigh p or more."""
    if p >= 1:
        return logits
    ordered = np.sort(logits)[::-1]
    weights = np.exp(ordered - ordered[0])
    mass = np.cumsum(weights / np.sum(weights))
    first_of_equals = np.searchsorted(-ordered, -ordered, side="left")
    before = np.where(first_of_equals > 0, mass[first_of_equals - 1], 0)
    threshold = ordered[before < np.float32(p)].min()
    return np.where(logits >= threshold, logits, np.float32(-np.inf))

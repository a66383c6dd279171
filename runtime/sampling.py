"""From logits to a token: the numpy reference that every graph must match.

One row at a time, in this order (the graphs' ``generate_{N}`` do the same):

1. the raw logits give the reported log-probability, ``log_softmax(logits)[token]``;
2. repetition penalty r over the ids seen: x > 0 becomes x / r, else x · r
   (Keskar et al. 2019, https://arxiv.org/abs/1909.05858);
3. temperature 0 takes the largest, the lowest id among equals; else x / T;
4. top-k keeps every x that is at least the k-th largest, ties included;
5. top-p keeps a token if the tokens strictly likelier than it weigh less than p;
6. Gumbel-max: the largest of x + g, where g is counter-based noise, so that a token
   depends on (seed, position, logits) alone: never on batching, chunking or retries.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..models.generation.sampling import (
    gumbel,
    keep_top_k,
    keep_top_p,
    log_softmax,
    penalize,
)
from .option_checks import INT32_MAX, check_number, check_whole

_TINY = float(np.finfo(np.float32).tiny)
_SMALLEST_DIVISOR, _LARGEST_DIVISOR = 1e-6, 1e38


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep everything;
    ``repetition_penalty`` looks at the prompt and the new tokens; 1 switches it off.
    ``seed`` is any 64-bit number; None draws one, which the result reports. Every
    prompt of a request uses the same: its tokens don't depend on its neighbours.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature != 0:
            _check_divisor("temperature", self.temperature, "0 (greedy) or ")
        check_whole("top_k", self.top_k, 0, hint=f"0 (off) to {INT32_MAX}")
        # Below that, float32 has no number but 0.
        check_number("top_p", self.top_p, _TINY, 1, "in (0, 1]")
        _check_divisor("repetition_penalty", self.repetition_penalty)
        if self.seed is not None:
            check_whole("seed", self.seed, -(2**63), 2**64 - 1, "a number of 64 bits")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without any draw."""
        return self.temperature == 0

    def seeded(self, offset: int = 0) -> Sampling:
        """The same with a seed for certain; ``offset`` gives other draws of it."""
        seed = secrets.randbits(63) if self.seed is None else int(self.seed)
        return replace(self, seed=(seed + offset) % 2**64)

    def key(self) -> np.ndarray:
        """The seed as the ``[2]`` int32 that the graphs take: low word, high word."""
        seed = int(self.seed or 0) % 2**64
        words = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
        return words.view(np.int32)


def _check_divisor(name: str, value: float, besides: str = "") -> None:
    """Logits are divided by it, in float32: neither 0 nor infinity may come of it."""
    span = f"{besides}{_SMALLEST_DIVISOR:g} to {_LARGEST_DIVISOR:g}"
    check_number(name, value, _SMALLEST_DIVISOR, _LARGEST_DIVISOR, span)


GREEDY = Sampling(temperature=0.0, seed=0)


def draw(logits: np.ndarray, sampling: Sampling, position: int) -> int:
    """Steps 3 to 6: a token of logits ``[V]`` for the slot ``position``."""
    if sampling.greedy:
        return int(np.argmax(logits))
    x = logits.astype(np.float32) / np.float32(sampling.temperature)
    x = keep_top_p(keep_top_k(x, sampling.top_k), sampling.top_p)
    kept = np.flatnonzero(x > -np.inf)
    return int(kept[np.argmax(x[kept] + gumbel(sampling.key(), position, kept))])


def choose(
    logits: np.ndarray, sampling: Sampling, *, position: int, seen: Iterable[int] = ()
) -> tuple[int, float]:
    """The whole order above for one row.

    Args:
        logits: ``[V]`` float32, unmodified.
        sampling: how to choose.
        position: the new token's slot, which is the number of tokens before it.
        seen: ids that the repetition penalty looks at.

    Returns:
        The token, and its log-probability under the unmodified distribution.
    """
    penalized = penalize(logits, seen, sampling.repetition_penalty)
    token = draw(penalized, sampling, position)
    return token, float(log_softmax(logits)[token])

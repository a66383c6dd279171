"""From logits to a token: the numpy reference that every graph must match.

One row at a time, in this order (the graphs' ``generate_{N}`` do the same):

1. the raw logits give what is reported: ``log_softmax(logits)`` of the token, and of
   the likeliest (``top_logprobs``);
2. the bias is added, and stop tokens that can't come yet are out;
3. repetition penalty r over all ids seen: x > 0 becomes x / r, else x · r;
4. new tokens alone count for the frequency penalty, x − f · count, and the presence
   penalty, x − p where the count isn't 0;
5. temperature 0 takes the largest, the lowest id among equals; else x / T;
6. min-p keeps a token at least m times as likely as the likeliest;
7. top-k keeps every x that is at least the k-th largest, ties included;
8. top-p keeps a token if the tokens strictly likelier than it, of those that are left,
   weigh less than p;
9. Gumbel-max: the largest of x + g, where g is counter-based noise, so that a token
   depends on (seed, position, logits) alone: never on batching, chunking or retries.

The order is vLLM's (``vllm/v1/sample/sampler.py``); formulas and their sources are in
``models/generation/modifiers.py``.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..models.generation.arrays import NUMPY
from ..models.generation.modifiers import FROM_PROMPT, Marks
from ..models.generation.modifiers import modify as modify_rows
from ..models.generation.sampling import (
    gumbel,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    log_softmax,
)
from ..models.generation.sampling_params import SamplingParams
from .option_checks import INT32_MAX, check_number, check_whole

_TINY = float(np.finfo(np.float32).tiny)
_SMALLEST_DIVISOR, _LARGEST_DIVISOR = 1e-6, 1e38
_LARGEST_PENALTY = 2.0  # OpenAI's and vLLM's limit
_NO_BIAS: Mapping[int, float] = {}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 keep
    everything. ``repetition_penalty`` looks at the prompt and the new tokens; 1
    switches it off. ``presence_penalty`` and ``frequency_penalty``, -2 to 2, look at
    the new tokens alone, as in OpenAI's API; 0 switches them off. ``seed`` is any
    64-bit number; None draws one, which the result reports. Every prompt of a request
    uses the same: its tokens don't depend on its neighbours.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature != 0:
            _check_divisor("temperature", self.temperature, "0 (greedy) or ")
        check_whole("top_k", self.top_k, 0, hint=f"0 (off) to {INT32_MAX}")
        # Below that, float32 has no number but 0.
        check_number("top_p", self.top_p, _TINY, 1, "in (0, 1]")
        _check_divisor("repetition_penalty", self.repetition_penalty)
        check_number("min_p", self.min_p, 0, 1)
        for name in ("presence_penalty", "frequency_penalty"):
            check_number(name, getattr(self, name), -_LARGEST_PENALTY, _LARGEST_PENALTY)
        if self.seed is not None:
            check_whole("seed", self.seed, -(2**63), 2**64 - 1, "a number of 64 bits")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without any draw."""
        return self.temperature == 0

    @property
    def counts_tokens(self) -> bool:
        """Whether it matters how often a new token has come."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0

    def seeded(self, offset: int = 0) -> Sampling:
        """The same with a seed for certain; ``offset`` gives other draws of it."""
        seed = secrets.randbits(63) if self.seed is None else int(self.seed)
        return replace(self, seed=(seed + offset) % 2**64)

    def key(self) -> np.ndarray:
        """The seed as the ``[2]`` int32 that the graphs take: low word, high word."""
        seed = int(self.seed or 0) % 2**64
        words = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
        return words.view(np.int32)

    def params(
        self, *, min_new_tokens: int = 0, top_logprobs: int = 0
    ) -> SamplingParams:
        """It as one row of the graphs' inputs."""
        return SamplingParams(
            seed=self.key()[None],
            temperature=np.array([self.temperature], np.float32),
            top_k=np.array([self.top_k], np.int32),
            top_p=np.array([self.top_p], np.float32),
            repetition_penalty=np.array([self.repetition_penalty], np.float32),
            min_p=np.array([self.min_p], np.float32),
            presence_penalty=np.array([self.presence_penalty], np.float32),
            frequency_penalty=np.array([self.frequency_penalty], np.float32),
            min_new_tokens=np.array([min_new_tokens], np.int32),
            top_logprobs=np.array([top_logprobs], np.int32),
        )


def _check_divisor(name: str, value: float, besides: str = "") -> None:
    """Logits are divided by it, in float32: neither 0 nor infinity may come of it."""
    span = f"{besides}{_SMALLEST_DIVISOR:g} to {_LARGEST_DIVISOR:g}"
    check_number(name, value, _SMALLEST_DIVISOR, _LARGEST_DIVISOR, span)


GREEDY = Sampling(temperature=0.0, seed=0)


def draw(logits: np.ndarray, sampling: Sampling, position: int) -> int:
    """Steps 5 to 9: a token of logits ``[V]`` for the slot ``position``."""
    if sampling.greedy:
        return int(np.argmax(logits))
    x = logits.astype(np.float32) / np.float32(sampling.temperature)
    x = keep_top_k(keep_min_p(x, sampling.min_p), sampling.top_k)
    x = keep_top_p(x, sampling.top_p)
    kept = np.flatnonzero(x > -np.inf)
    return int(kept[np.argmax(x[kept] + gumbel(sampling.key(), position, kept))])


def modify(
    logits: np.ndarray,
    sampling: Sampling,
    *,
    history: Sequence[int] = (),
    bias: Mapping[int, float] = _NO_BIAS,
    forbidden: Sequence[int] = (),
) -> np.ndarray:
    """Steps 2 to 4 of logits ``[V]``; ``choose`` tells the arguments."""
    penalized = sampling.repetition_penalty != 1 or sampling.counts_tokens
    if not (bias or forbidden or (penalized and len(history))):
        return logits
    marks = Marks(
        _row(logits, history, [FROM_PROMPT if i < 0 else 1 for i in history], np.int32),
        _row(logits, forbidden, [True] * len(forbidden), np.bool_),
        _row(logits, list(bias), list(bias.values()), np.float32),
        modified=np.array([True]),
    )
    params = sampling.params(min_new_tokens=1)  # what is forbidden is so now
    with np.errstate(over="ignore"):  # of a large penalty: −inf is right
        return modify_rows(NUMPY, logits[None].astype(np.float32), params, marks, 0)[0]


def _row(
    logits: np.ndarray, ids: Sequence[int], values: Sequence[float], dtype: type
) -> np.ndarray:
    """``values`` [1,V] at ``ids``, added up; -2 - id is id, and -1 is none."""
    out = np.zeros((1, logits.size), dtype)
    at, given = np.array(ids, np.int64), np.array(values, dtype)
    at = np.where(at < -1, -2 - at, at)
    inside = (at >= 0) & (at < logits.size)
    np.add.at(out[0], at[inside], given[inside])
    return out


def choose(
    logits: np.ndarray,
    sampling: Sampling,
    *,
    position: int,
    history: Sequence[int] = (),
    bias: Mapping[int, float] = _NO_BIAS,
    forbidden: Sequence[int] = (),
) -> tuple[int, float]:
    """The whole order above for one row.

    Args:
        logits: ``[V]`` float32, unmodified.
        sampling: how to choose.
        position: the new token's slot, which is the number of tokens before it.
        history: what penalties look at, as the contract has it: ids of new tokens,
            and ``-2 - id`` for the prompt's.
        bias: what is added to ids' logits.
        forbidden: ids that can't be chosen: stop tokens before ``min_new_tokens``.

    Returns:
        The token, and its log-probability under the unmodified distribution.
    """
    modified = modify(logits, sampling, history=history, bias=bias, forbidden=forbidden)
    token = draw(modified, sampling, position)
    return token, float(log_softmax(logits)[token])


def likeliest(logits: np.ndarray, count: int) -> np.ndarray:
    """Ids of the ``count`` largest of logits ``[V]``, likeliest first; of equals the
    lowest id."""
    count = min(count, logits.size)
    if not count:
        return np.zeros(0, np.int64)
    edge = np.partition(logits, logits.size - count)[logits.size - count]
    ids = np.flatnonzero(logits >= edge)  # of equals at the edge more than count
    return ids[np.argsort(-logits[ids], kind="stable")][:count]

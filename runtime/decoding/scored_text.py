"""One text while it is scored, in chunks that continue a cache."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile

import numpy as np

from ..results import Score, TopLogprobs
from .kv_cache import KVCache

LEAST_SHARED = 32
"""Tokens that are worth a call of their own, to be computed once for several texts."""


class ScoredText:
    """A text, and what is known of its first ``known`` tokens.

    ``score`` says nothing of a call's first token, for which the logits came before. So
    the cache ends one token earlier, and the last known token is fed once more.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.sought_prefix = False  # whether the prefix cache was asked
        self.restart()

    def restart(self) -> None:
        """Forget everything: the model version of the cache is gone."""
        self.known = 0
        self.cache: KVCache | None = None
        self.version: int | None = None
        self.model_id = ""
        self.reused = (0, 0)  # tokens that the prefix cache knew, bytes of their rows,
        self.reused_as = ""  # and what model they are of
        self._logprobs: list[float] = []
        self._top: list[TopLogprobs] = []

    @property
    def cached(self) -> int:
        """Tokens in the cache, which is where the next chunk begins."""
        return 0 if self.cache is None else len(self.cache)

    @property
    def pending(self) -> int:
        """Tokens that the next chunks feed; 0 at the end."""
        return len(self.tokens) - self.cached if self.known < len(self.tokens) else 0

    def chunk(self, size: int) -> list[int]:
        """The next up to ``size`` tokens to feed."""
        return self.tokens[self.cached : self.cached + size]

    def take(
        self,
        row: Mapping[str, np.ndarray],
        fed: int,
        cache: KVCache | None = None,
        *,
        top: bool = False,
    ) -> None:
        """A reply's row for a chunk of ``fed`` tokens.

        ``cache`` is where its rows go, None where nothing comes after it; ``top`` says
        that the likeliest tokens were asked for.
        """
        new = slice(1 if self.known else 0, fed)
        self._logprobs += row["logprobs"][new].tolist()
        if top:
            pairs = zip(row["top_ids"][new], row["top_logprobs"][new], strict=True)
            self._top += [
                list(zip(ids.tolist(), logprobs.tolist(), strict=True))
                for ids, logprobs in pairs
            ]
        self.known = self.cached + fed
        if cache is not None:
            cache.append(row["new_cache"][: fed - 1])
            self.cache = cache

    def begin_after(
        self, cache: KVCache, scores: Sequence[np.ndarray], identity: str
    ) -> None:
        """Go on after rows and ``numbers`` that are known of a model."""
        numbers = np.concatenate(scores)
        self.known = len(numbers)
        self.reused = self.known, sum(rows.nbytes for rows in cache.blocks())
        self.reused_as = identity
        cache.truncate(self.known - 1)
        self.cache = cache
        self._logprobs = numbers[:, 0].tolist()
        if numbers.shape[1] > 1:
            ids, logprobs = np.split(numbers[:, 1:], 2, axis=1)
            ids = ids.copy().view(np.int32)
            pairs = zip(ids.tolist(), logprobs.tolist(), strict=True)
            self._top = [list(zip(*pair, strict=True)) for pair in pairs]

    def numbers(self, begin: int, end: int) -> np.ndarray:
        """What is known of some tokens, ``[end - begin, 1 or 1 + 5 + 5]`` float32.

        Each one's log-probability, and where asked for the ids of the likeliest tokens,
        which are int32 in truth, and their log-probabilities.
        """
        logprobs = np.array(self._logprobs[begin:end], np.float32)[:, None]
        if not any(self._top):
            return logprobs
        top = np.array(self._top[begin:end])
        ids = top[..., 0].astype(np.int32).view(np.float32)
        return np.concatenate([logprobs, ids, top[..., 1].astype(np.float32)], 1)

    def continued(self, tokens: Sequence[int]) -> ScoredText:
        """Another text that begins with this one, which is scored to its end."""
        other = ScoredText(tokens)
        other.known, other.version, other.model_id = (
            self.known,
            self.version,
            self.model_id,
        )
        other.reused, other.reused_as = self.reused, self.reused_as
        other.cache = None if self.cache is None else self.cache.fork()
        other._logprobs, other._top = self._logprobs.copy(), self._top.copy()
        return other

    def score(self, top: int) -> Score:
        """The result, with the ``top`` likeliest tokens of each step."""
        likeliest = [step[:top] for step in self._top]
        if likeliest:
            likeliest[0] = []
        logprobs = [math.nan, *self._logprobs[1:]]
        return Score(self.tokens, logprobs, likeliest, *self.reused)


def shared_prefixes(texts: Sequence[Sequence[int]]) -> list[tuple[int, list[int]]]:
    """Which texts are scored after a common prefix: its length, and their indices.

    Texts without one are together, with a length of 0. One with less than half of what
    the others before it share begins a prefix of its own.
    """
    groups: list[tuple[int, list[int]]] = []
    for i in sorted(range(len(texts)), key=lambda i: list(texts[i])):
        if groups:
            length, members = groups[-1]
            common = _common(texts[members[0]], texts[i], length)
            if common >= max(LEAST_SHARED, length / 2):
                groups[-1] = common, [*members, i]
                continue
        groups.append((len(texts[i]), [i]))
    alone = [i for _, members in groups if len(members) == 1 for i in members]
    return [(0, alone), *(group for group in groups if len(group[1]) > 1)]


def _common(a: Sequence[int], b: Sequence[int], most: int) -> int:
    """Tokens that two texts have in common at their beginnings, up to ``most``."""
    pairs = zip(a[:most], b[:most], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

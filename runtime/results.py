"""What a generation returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled"]
TopLogprobs = list[tuple[int, float]]
"""The likeliest tokens of one step and their log-probabilities, likeliest first."""


@dataclass
class Counters:
    """What the work of one prompt cost; of a shared call, its share of the bytes."""

    calls: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    retries: int = 0
    rebuilds: int = 0
    """How often the cache was built again on another model version."""
    cached_prompt_tokens: int = 0
    """Tokens of the prompt that were not fed, since their cache rows were known."""
    cached_bytes: int = 0
    """Bytes of the rows that came from the prefix cache."""
    session_calls: int = 0
    """Calls on a cache that the server kept."""
    session_losses: int = 0
    """How often such a cache was lost, to another client or with its server; the tokens
    were fed again."""
    session_fallbacks: int = 0
    """1 where it went on with explicit caches, though the model has sessions."""
    first_token_seconds: float = 0.0
    """From the request to the first new token, waiting included."""
    first_tokens: int = 0
    """How many came with the first one, in the same call."""
    seconds: float = 0.0
    """From the request to the last new token."""

    def tokens_per_second(self, tokens: int) -> float:
        """Of so many new ones: those after the first call's; all, if that gave all."""
        seconds = self.seconds - self.first_token_seconds
        if tokens <= self.first_tokens:
            return tokens / self.seconds if self.seconds > 0 else 0.0
        return (tokens - self.first_tokens) / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class Chunk:
    """The next part of a stream: what one call added.

    ``tokens`` are the new ones and ``text`` what became printable with them; it may
    be empty, as when a character is not complete yet. ``finish_reason`` is set on the
    last chunk only. ``index`` is the prompt's place in the request.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    index: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    """New tokens so far, these included."""
    generation_tps: float = 0.0
    """New tokens per second so far, as ``Generation.tokens_per_second``."""
    model_version: int = 0


@dataclass(frozen=True)
class Generation:
    """What became of one prompt.

    Attributes:
        text: the new text, without special tokens and without the stop string.
        tokens: the new tokens; the one that ended it is included.
        logprobs: of each new token under the model's unmodified distribution.
        finish_reason: "stop" (end token or stop string), "length", or "cancelled".
        stopped_by: the token id or the string that ended it, None for the others.
        prompt_tokens: number of tokens of the prompt, as fed.
        model_version: the version that gave the last token.
        top_logprobs: the likeliest tokens of each step, where asked for.
        prompt_logprobs: of each prompt token given those before it, where asked for;
            the first token has none (NaN).
        score: what ranks alternatives: the beam's length-normalised log-probability,
            or the mean log-probability of a sample.
        seed: the seed that reproduces it, None for greedy and beam search.
        alternatives: the other sequences asked for, best first.
        counters: what it cost.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    prompt_tokens: int
    model_version: int = 0
    stopped_by: int | str | None = None
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    prompt_logprobs: list[float] | None = None
    score: float | None = None
    seed: int | None = None
    alternatives: list[Generation] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters, compare=False)
    index: int = 0

    @property
    def bytes_sent(self) -> int:
        """Bytes of its requests."""
        return self.counters.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes of its replies."""
        return self.counters.bytes_received

    @property
    def retries(self) -> int:
        """Calls that failed and were sent again."""
        return self.counters.retries

    @property
    def rebuilds(self) -> int:
        """How often the cache was built again on another model version."""
        return self.counters.rebuilds

    @property
    def cached_prompt_tokens(self) -> int:
        """Tokens of the prompt that were not fed, since their cache rows were known."""
        return self.counters.cached_prompt_tokens

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second after the first call's; of all, if that gave all."""
        return self.counters.tokens_per_second(len(self.tokens))

    @property
    def token_seconds(self) -> float:
        """Mean seconds per token at that speed."""
        return 1 / self.tokens_per_second if self.tokens_per_second else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values."""
        out: dict[str, Any] = {
            "text": self.text,
            "tokens": self.tokens,
            "logprobs": [_number(x) for x in self.logprobs],
            "finish_reason": self.finish_reason,
            "stopped_by": self.stopped_by,
            "prompt_tokens": self.prompt_tokens,
            "model_version": self.model_version,
            "score": _number(self.score),
            "seed": self.seed,
            "tokens_per_second": self.tokens_per_second,
            **vars(self.counters),
        }
        if self.top_logprobs:
            out["top_logprobs"] = [
                [[token, _number(x)] for token, x in step] for step in self.top_logprobs
            ]
        if self.prompt_logprobs is not None:
            out["prompt_logprobs"] = [_number(x) for x in self.prompt_logprobs]
        if self.alternatives:
            out["alternatives"] = [other.to_dict() for other in self.alternatives]
        return out


def _number(x: float | None) -> float | None:
    """JSON has no NaN and no infinities."""
    return None if x is None or x != x or x in (float("inf"), -float("inf")) else x


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text.

    ``logprobs`` has one entry for each of ``tokens``; the first, which nothing comes
    before, is NaN. So has ``top_logprobs``, where asked for: the likeliest tokens of
    the distribution that each token was drawn from, none for the first.
    ``cached_tokens`` of them were known to the client's prefix cache, which had
    ``cached_bytes`` of rows for them.
    """

    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    cached_tokens: int = 0
    cached_bytes: int = 0

    @property
    def greedy(self) -> list[bool]:
        """Whether greedy decoding would have chosen each token, the first left out.

        Of equally likely tokens it takes the lowest id. Empty where ``top_logprobs``
        weren't asked for.
        """
        steps = zip(self.tokens, self.top_logprobs, strict=False)
        return [step[0][0] == token for token, step in steps if step]

    @property
    def greedy_agreement(self) -> float:
        """Share of tokens that are greedy; NaN where nothing is known of any."""
        return sum(self.greedy) / len(self.greedy) if self.greedy else math.nan

    @property
    def total(self) -> float:
        """Log-probability of all tokens after the first, in nats."""
        return math.fsum(self.logprobs[1:])

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability; NaN for a single token."""
        count = len(self.logprobs) - 1
        return math.exp(-self.total / count) if count else math.nan

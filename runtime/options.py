"""What a caller may ask for, as small frozen objects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict

from ..models.generation.logits_processors import LogitsProcessor
from .contract import TOP_LOGPROBS
from .errors import InvalidRequest
from .option_checks import INT32_MAX, check_number, check_seconds, check_whole
from .sampling import GREEDY, Sampling

MOST_SEQUENCES = 4096
"""Most beams, or samples of one prompt."""

_LARGEST_BIAS = 1e30  # added to a logit, far from where float32 ends

Prompt = str | Sequence[int]
"""Text, or token ids taken as they are."""


@dataclass(frozen=True, kw_only=True)
class Beams:
    """Beam search: ``width`` sequences are followed, ``returned`` of them
    returned.

    A finished sequence scores its summed log-probability divided by (new tokens) **
    ``length_penalty``. ``early_stopping`` True ends at ``width`` finished sequences,
    False when the best running one can't win at its present length, "never" when it
    can't win at any length.
    """

    width: int = 4
    returned: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        check_whole("a beam search's width", self.width, 1, MOST_SEQUENCES)
        check_whole("returned", self.returned, 1, self.width)
        check_number("length_penalty", self.length_penalty, -100, 100)


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Rules on which tokens may come.

    ``no_repeat_ngram`` n forbids any n tokens in a row to come twice, the prompt
    included (0 is off). ``bad_words`` are texts or id sequences never produced.
    ``forced`` maps the number of new tokens so far to the token that must come next.
    ``min_new_tokens`` keeps stop tokens away until then. ``logit_bias`` is added to the
    ids' logits; −inf forbids.
    """

    no_repeat_ngram: int = 0
    bad_words: Sequence[Prompt] = ()
    forced: Mapping[int, int] = field(default_factory=dict)
    min_new_tokens: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_whole("no_repeat_ngram", self.no_repeat_ngram, 0)
        check_whole("min_new_tokens", self.min_new_tokens, 0)
        for token, bias in self.logit_bias.items():
            _check_id("logit_bias", token)
            check_number("logit_bias", bias, -math.inf, _LARGEST_BIAS)
        for step, token in self.forced.items():
            check_whole("a step of forced", step, 0)
            _check_id("forced", token)


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """All options of one request; what ``Client.generate`` takes as keywords.

    Attributes:
        max_new_tokens: where to end at the latest.
        sampling: how tokens are chosen; None is greedy.
        beams: beam search instead.
        stop: strings that end the text (they are cut off).
        stop_token_ids: ids that end it; None means the model's end token, () none.
        constraints: rules on which tokens may come.
        processors: further functions on the logits, after the constraints.
        samples: how many continuations to draw; the likeliest comes first.
        top_logprobs: how many likeliest tokens of each step to report.
        echo: whether to report the prompt's log-probabilities as well.
        truncate: "left" drops the oldest tokens of a prompt that is too long;
            None makes it an error.
        timeout: seconds for the whole of it; None waits for ever.
    """

    max_new_tokens: int
    sampling: Sampling | None = None
    beams: Beams | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] | None = None
    constraints: Constraints | None = None
    processors: Sequence[LogitsProcessor] = ()
    samples: int = 1
    top_logprobs: int = 0
    echo: bool = False
    truncate: Literal["left"] | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        check_whole("max_new_tokens", self.max_new_tokens, 1)
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        if any(not isinstance(s, str) or not s for s in self.stop):
            raise InvalidRequest("stop must be strings that aren't empty")
        for token in self.stop_token_ids or ():
            _check_id("stop_token_ids", token)
        check_whole("samples", self.samples, 1, MOST_SEQUENCES)
        if self.samples > 1 and (self.beams or self.sampling_or_greedy.greedy):
            raise InvalidRequest(
                "several samples need sampling with a temperature above 0: "
                "greedy and beam search would repeat themselves"
            )
        if self.beams and self.sampling and not self.sampling.greedy:
            raise InvalidRequest(
                "beam search takes no temperature: give one of the two"
            )
        check_whole("top_logprobs", self.top_logprobs, 0)
        if self.truncate not in (None, "left"):
            raise InvalidRequest(
                f"truncate must be None or 'left', got {self.truncate!r}"
            )
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)

    @property
    def sampling_or_greedy(self) -> Sampling:
        """The sampling, greedy by default."""
        return self.sampling or GREEDY

    def seeded(self) -> GenerationOptions:
        """The same with a seed for certain, so that all prompts share it."""
        return replace(self, sampling=self.sampling_or_greedy.seeded())

    @property
    def needs_logits(self) -> bool:
        """Whether the client must choose the tokens itself, whatever the export."""
        rules = self.constraints or Constraints()
        return bool(
            self.processors
            or self.beams
            or self.top_logprobs > TOP_LOGPROBS
            or rules.no_repeat_ngram
            or rules.bad_words
            or rules.forced
        )

    @property
    def contract_version(self) -> int:
        """The contract version whose graphs choose as these options want it."""
        rules, sampling = self.constraints or Constraints(), self.sampling_or_greedy
        added = (
            self.top_logprobs
            or rules.min_new_tokens
            or rules.logit_bias
            or sampling.min_p
            or sampling.counts_tokens
        )
        return 2 if added else 1


def _check_id(where: str, token: int) -> None:
    """A whole number; whether the model has it is known only when connected."""
    check_whole(f"a token id of {where}", token, -INT32_MAX)


class GenerationKeywords(TypedDict, total=False):
    """The keywords of ``generate`` and ``stream`` besides ``max_new_tokens``.

    They are the attributes of ``GenerationOptions``.
    """

    sampling: Sampling | None
    beams: Beams | None
    stop: Sequence[str]
    stop_token_ids: Sequence[int] | None
    constraints: Constraints | None
    processors: Sequence[LogitsProcessor]
    samples: int
    top_logprobs: int
    echo: bool
    truncate: Literal["left"] | None
    timeout: float | None

"""The state of one sequence while it is generated."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as GenericSequence

import numpy as np

from ...models.generation import logits_processors as rules
from ...models.generation.logits_processors import LogitsProcessor
from ...models.generation.sampling import log_softmax
from ...models.generation.sampling_params import SamplingParams
from ..options import Constraints, GenerationOptions
from ..results import Chunk, Counters, FinishReason, Generation, TopLogprobs
from ..sampling import Sampling, draw, likeliest, modify
from .kv_cache import KVCache
from .logits_processors import apply
from .served_model import ServedModel
from .session_cache import SessionCache
from .session_pool import Slot
from .stop_strings import IncrementalText, StopText

_MOST_LOSSES = 2  # so that clients that take each other's slots both get on

Clock = Callable[[], float]
TextMaker = Callable[[], IncrementalText | None]


def no_text() -> None:
    """For a model without a tokenizer: tokens stay tokens."""


class Sequence:
    """One prompt and its continuation: tokens, cache, and when it ends.

    The first ``len(cache)`` of ``tokens`` are in the cache; the rest is pending and
    goes with the next calls.

    Args:
        prompt: token ids, at least one.
        options: what was asked for; ``sampling`` and ``stop_ids`` are what became of
            its own once the seed was drawn and the model's end token known.
        make_text: makes what turns tokens into text, afresh for each replay.
        bad_words: token ids of the constraints' bad words.
        index: the prompt's place in the request.
        streaming: whether its chunks should come soon, rather than in few calls.
        version: the model version that computed the cache, None before there is one.
        clock: seconds, on the same clock as deadlines.
    """

    def __init__(
        self,
        prompt: GenericSequence[int],
        options: GenerationOptions,
        *,
        sampling: Sampling,
        stop_ids: GenericSequence[int],
        make_text: TextMaker = no_text,
        bad_words: GenericSequence[GenericSequence[int]] = (),
        index: int = 0,
        streaming: bool = False,
        version: int | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.tokens = list(prompt)
        self.prompt_tokens = len(prompt)
        self.options = options
        self.sampling = sampling
        self.stop_ids = tuple(stop_ids)
        self.index = index
        self.streaming = streaming
        self.cache: KVCache | SessionCache | None = None
        self.explicit = False  # whether it goes on without sessions, where there are
        self._losses = 0  # slots of servers that were taken from it
        self.version = version
        self.model_id = ""  # of the cache's model, as replies name it
        self.sought_prefix: str | None = None  # what identity it was looked for under
        self.remembered = 0  # tokens whose rows the prefix cache has been given
        self.logprobs: list[float] = []
        self.top_logprobs: list[TopLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self.stopped_by: int | str | None = None
        self.text = ""
        self.counters = Counters()
        self.cancelled = False
        self._make_text = make_text
        self._stop_text = StopText(make_text(), options.stop)
        self._bad_words = bad_words
        self._constraints = options.constraints or Constraints()
        self._processors = _processors(options, bad_words, len(prompt))
        self._clock = clock
        self._begin = clock()
        self._first_call = 0  # number of the call that gave the first token
        self._shown = 0  # characters and tokens that chunks have told
        self._told = 0

    @property
    def cached(self) -> int:
        """Number of tokens in the cache."""
        return 0 if self.cache is None else len(self.cache)

    @property
    def slot(self) -> Slot | None:
        """The server's slot that its cache is in."""
        return self.cache.slot if isinstance(self.cache, SessionCache) else None

    @property
    def pending(self) -> int:
        """Number of tokens that have not been fed."""
        return len(self.tokens) - self.cached

    @property
    def generated(self) -> int:
        """Number of new tokens."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def remaining(self) -> int:
        """Number of new tokens still allowed."""
        return self.options.max_new_tokens - self.generated

    @property
    def bias(self) -> Mapping[int, float]:
        """What is added to ids' logits."""
        return self._constraints.logit_bias

    def in_graph(self, model: ServedModel) -> bool:
        """Whether the model's graph can choose its tokens."""
        new_enough = model.manifest.contract_version >= self.options.contract_version
        return new_enough and not self.options.needs_logits

    def params(self) -> SamplingParams:
        """The row's inputs of ``generate_{N}`` that say how tokens are chosen."""
        least = self._constraints.min_new_tokens
        return self.sampling.params(
            min_new_tokens=max(least - self.generated, 0),
            top_logprobs=self.options.top_logprobs,
        )

    def history(self, model: ServedModel | None = None) -> list[int]:
        """What penalties look at, as the contract has it; empty where there are none.

        Graphs of contract version 1 have the repetition penalty alone, and take ids.
        """
        repeated = self.sampling.repetition_penalty != 1
        prompt = self.tokens[: self.prompt_tokens] if repeated else []
        if not (repeated or self.sampling.counts_tokens):
            return []
        if model is not None and model.manifest.contract_version < 2:
            return sorted(set(self.tokens))
        told = [-2 - token for token in sorted(set(prompt))]
        return told + self.tokens[self.prompt_tokens :]

    @property
    def deadline(self) -> float | None:
        """When the caller's patience ends, on the sequence's clock."""
        timeout = self.options.timeout
        return None if timeout is None else self._begin + timeout

    def forget(self) -> None:
        """Drop the cache: its model version is gone. All tokens become pending."""
        if self.cache is not None:
            self.cache.discard()
        self.cache, self.version, self.model_id = None, None, ""
        self.sought_prefix, self.remembered = None, 0

    def begin_after(self, prefix: KVCache) -> None:
        """Take the rows of its first tokens from the prefix cache."""
        self.cache, self.remembered = prefix, len(prefix)
        self.counters.cached_prompt_tokens = min(len(prefix), self.prompt_tokens)
        self.counters.cached_bytes += sum(rows.nbytes for rows in prefix.blocks())

    def take_slot(self, cache: SessionCache) -> None:
        """Go on in a server's slot."""
        assert cache.slot is not None
        self.cache = cache
        self.version, self.model_id = cache.slot.version, cache.slot.model_id
        if not self.generated:
            known = min(len(cache), self.prompt_tokens)
            self.counters.cached_prompt_tokens = known

    def lose_slot(self, *, evicted: bool = False) -> None:
        """Its slot is not its own any more: all tokens become pending."""
        if isinstance(self.cache, SessionCache):
            self.cache.discard(evicted=evicted)
        self.counters.session_losses += 1
        self._losses += 1
        self.forget()
        if self._losses >= _MOST_LOSSES:
            self.use_explicit_cache()

    def use_explicit_cache(self) -> None:
        """Go on without sessions, though the model has some."""
        self.explicit = True
        self.counters.session_fallbacks += 1
        if isinstance(self.cache, SessionCache):
            self.forget()

    def leave_slot(self) -> None:
        """Release its slot, if it has one; nothing more is generated."""
        if isinstance(self.cache, SessionCache):
            self.cache.close(self.tokens)
            self.cache = None

    def continue_from(self, sibling: Sequence) -> None:
        """Take what is cached of the same prompt."""
        self.cache = None if sibling.cache is None else sibling.cache.fork()
        self.version, self.model_id = sibling.version, sibling.model_id
        self.sought_prefix = sibling.sought_prefix
        self.remembered = sibling.remembered
        self.counters.cached_prompt_tokens = sibling.counters.cached_prompt_tokens

    def processed(self, logits: np.ndarray) -> np.ndarray:
        """Logits ``[V]`` after the penalties, the constraints and the processors."""
        early = self.generated < self._constraints.min_new_tokens
        out = modify(
            logits,
            self.sampling,
            history=self.history(),
            bias=self.bias,
            forbidden=self.stop_ids if early else (),
        )
        return apply(self._processors, self.tokens, out)

    def choose(self, logits: np.ndarray) -> None:
        """Take the next token from the raw logits ``[V]``."""
        token = draw(self.processed(logits), self.sampling, len(self.tokens))
        logprobs = log_softmax(logits)
        if count := self.options.top_logprobs:
            ids = likeliest(logits, count)
            self.report(ids, logprobs[ids])
        self.accept(token, float(logprobs[token]))

    def report(self, ids: np.ndarray, logprobs: np.ndarray) -> None:
        """Note the likeliest tokens of the step whose token is accepted next."""
        pairs = zip(ids.tolist(), logprobs.tolist(), strict=True)
        self.top_logprobs.append(list(pairs))

    def accept(self, token: int, logprob: float) -> None:
        """Add a token, and end the sequence if that ends it."""
        self.tick()
        self.grow(token, logprob)
        self.text += self._stop_text.add(token)
        if token in self.stop_ids:
            self._end("stop", token)
        elif self._stop_text.matched is not None:
            self._end("stop", self._stop_text.matched)
        elif self.remaining <= 0:
            self._end("length")

    def grow(self, token: int, logprob: float) -> None:
        """Add a token and nothing else."""
        self.tokens.append(token)
        self.logprobs.append(logprob)

    def tick(self) -> None:
        """Note that a token came now."""
        counters, now = self.counters, self._clock() - self._begin
        if not counters.first_token_seconds:
            counters.first_token_seconds, self._first_call = now, counters.calls
        counters.first_tokens += counters.calls == self._first_call
        counters.seconds = now

    def fork(self) -> Sequence:
        """Another that goes on from here on its own; the two count their cost together.

        It has no text of its own until ``replay``.
        """
        other = copy.copy(self)
        other.tokens = self.tokens.copy()
        other.logprobs = self.logprobs.copy()
        other.cache = None if self.cache is None else self.cache.fork()
        return other

    def replay(self, token: int, logprob: float) -> Sequence:
        """Another without a cache that took the same tokens and then this one."""
        other = Sequence(
            self.tokens[: self.prompt_tokens],
            self.options,
            sampling=self.sampling,
            stop_ids=self.stop_ids,
            make_text=self._make_text,
            bad_words=self._bad_words,
            index=self.index,
            version=self.version,
            clock=self._clock,
        )
        before = zip(self.tokens[self.prompt_tokens :], self.logprobs, strict=True)
        for taken in (*before, (token, logprob)):
            other.accept(*taken)
        return other

    def cancel(self) -> None:
        """Ask for the end, which comes after the running call; safe from any thread."""
        self.cancelled = True

    def end_if_cancelled(self) -> bool:
        """End with what there is, where that was asked for."""
        if self.cancelled and self.finish_reason is None:
            self._end("cancelled")
        return self.finish_reason == "cancelled"

    def chunk(self) -> Chunk:
        """What came since the last chunk."""
        begin, self._told = self._told, self.generated
        shown, self._shown = self._shown, len(self.text)
        new = self.tokens[self.prompt_tokens + begin :]
        return Chunk(
            text=self.text[shown:],
            tokens=new,
            logprobs=self.logprobs[begin:],
            top_logprobs=self.top_logprobs[begin:],
            finish_reason=self.finish_reason,
            index=self.index,
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generated,
            generation_tps=self.counters.tokens_per_second(self.generated),
            model_version=self.version or 0,
        )

    def generation(self) -> Generation:
        """The result; the sequence must have ended."""
        assert self.finish_reason is not None
        count = max(1, len(self.logprobs))
        return Generation(
            text=self.text,
            tokens=self.tokens[self.prompt_tokens :],
            logprobs=self.logprobs,
            finish_reason=self.finish_reason,
            prompt_tokens=self.prompt_tokens,
            model_version=self.version or 0,
            stopped_by=self.stopped_by,
            top_logprobs=self.top_logprobs,
            score=float(np.sum(self.logprobs)) / count,
            seed=None if self.sampling.greedy else self.sampling.seed,
            counters=self.counters,
            index=self.index,
        )

    def _end(self, reason: FinishReason, by: int | str | None = None) -> None:
        self.text += self._stop_text.finish()
        self.finish_reason, self.stopped_by = reason, by
        if self.cache is not None:
            self.cache.truncate(len(self.tokens))


def _processors(
    options: GenerationOptions,
    bad_words: GenericSequence[GenericSequence[int]],
    prompt_tokens: int,
) -> list[LogitsProcessor]:
    """The rules that no graph knows, and the caller's own functions."""
    chosen: list[rules.Rule] = []
    if constraints := options.constraints:
        if constraints.no_repeat_ngram:
            chosen.append(rules.no_repeat_ngram(constraints.no_repeat_ngram))
        if bad_words:
            chosen.append(rules.bad_words(bad_words))
        if constraints.forced:
            chosen.append(rules.forced_tokens(constraints.forced, prompt_tokens))
    processors = [rules.for_one_row(rule, prompt_tokens) for rule in chosen]
    return [*processors, *options.processors]

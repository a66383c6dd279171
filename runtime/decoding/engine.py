"""What both clients share: from prompts and options to tasks for the decode loop."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as GenericSequence
from dataclasses import replace

import numpy as np

from ...models.tokenizer import Detokenizer, Tokenizer, TokenizerError
from ..contract import TOP_LOGPROBS, tokens_per_call
from ..errors import InvalidRequest, PromptTooLong
from ..option_checks import check_seconds, check_whole
from ..options import GenerationOptions, Prompt
from ..results import Generation, Score
from ..transports.base import Call
from . import scoring
from .beam_search import beam_search
from .deadlines import deadline_in
from .kv_cache import KVCache
from .loop import generate_samples, generate_sequences
from .model_versions import ModelVersions
from .prompts import as_list
from .sequence import Sequence
from .task import Task

DEFAULT_ROWS = 32
"""Rows of one call where the export names no batch sizes."""


class Engine:
    """One connected model: its versions and its tokenizer."""

    def __init__(
        self, versions: ModelVersions, tokenizer: Tokenizer | None, max_rows: int | None
    ) -> None:
        if max_rows is not None:
            check_whole("max_rows", max_rows, 1)
        self.versions = versions
        self.tokenizer = tokenizer
        sizes = versions.current.manifest.batch_sizes
        limit = sizes[-1] if sizes else max_rows or DEFAULT_ROWS
        self.capacity = min(max_rows or limit, limit)

    def encode(self, prompt: Prompt, *, special: bool = True) -> list[int]:
        """Token ids of text, or checked ids as they are.

        Raises:
            InvalidRequest: no tokenizer, no tokens, an id out of range, or a text that
                can't be encoded.
        """
        if isinstance(prompt, str):
            tokenizer = self._need_tokenizer()
            try:
                return tokenizer.encode(prompt, add_special_tokens=special)
            except TokenizerError as error:
                raise InvalidRequest(str(error)) from None
        vocabulary = self.versions.current.manifest.vocab_size
        try:
            ids = [operator.index(token) for token in prompt]
        except TypeError as error:
            raise InvalidRequest(
                "a prompt is text or a sequence of token ids, which are whole numbers, "
                f"got {type(prompt).__name__} ({error})"
            ) from None
        if not ids:
            raise InvalidRequest("a prompt of token ids needs at least one, got none")
        for token in ids:
            if not 0 <= token < vocabulary:
                raise InvalidRequest(
                    f"token ids must be 0 to {vocabulary - 1}, got {token}"
                )
        return ids

    def fitted(self, tokens: list[int], options: GenerationOptions) -> list[int]:
        """The prompt within the model's positions, truncated where that is allowed."""
        limit = self.versions.current.positions
        room = limit - options.max_new_tokens
        if len(tokens) <= room:
            return tokens
        bos = self.versions.current.manifest.bos_token_id
        head = [bos] if tokens[0] == bos else []
        if options.truncate == "left" and room > len(head):
            return head + tokens[len(tokens) - room + len(head) :]
        raise PromptTooLong(
            f"{len(tokens)} prompt tokens and {options.max_new_tokens} new ones exceed "
            f"the model's {limit} positions: shorten the prompt, ask for fewer tokens, "
            "or have its beginning dropped (truncate='left', --truncate-left)"
        )

    def sequence(
        self,
        prompt: GenericSequence[int],
        options: GenerationOptions,
        *,
        index: int = 0,
        streaming: bool = False,
        sample: int = 0,
    ) -> Sequence:
        """The state of one sequence, ready for the loop."""
        manifest = self.versions.current.manifest
        if options.stop:
            self._need_tokenizer()
        stop_ids = options.stop_token_ids
        constraints = options.constraints
        sequence = Sequence(
            prompt,
            options,
            sampling=options.sampling_or_greedy.seeded(sample),
            stop_ids=[manifest.eos_token_id] if stop_ids is None else stop_ids,
            make_text=self._text,
            bad_words=[
                word
                for bad in (constraints.bad_words if constraints else ())
                for word in self._spellings(bad)
            ],
            index=index,
            streaming=streaming,
        )
        self._check_ids(sequence, options, manifest.vocab_size)
        return sequence

    def generate(
        self, prompts: Iterable[Prompt], options: GenerationOptions
    ) -> Task[list[Generation]]:
        """A task that gives one ``Generation`` per prompt, in order."""
        options = options.seeded()
        encoded = [self.fitted(self.encode(p), options) for p in as_list(prompts)]
        samples = [
            [
                self.sequence(ids, options, index=i, sample=sample)
                for sample in range(options.samples)
            ]
            for i, ids in enumerate(encoded)
        ]
        echoed: list[Score] = []
        if options.echo:
            deadline = samples[0][0].deadline if samples else None
            limits = scoring.Limits(self.versions, self.capacity, deadline)
            echoed = yield from scoring.score(encoded, limits)
        if options.beams:
            results = yield from self._search([one for (one,) in samples])
        elif options.samples > 1:
            results = yield from self._sample(samples)
        else:
            only: Iterator[Sequence] = (one for (one,) in samples)
            yield from generate_sequences(only, self.versions, self.capacity)
            results = [one.generation() for (one,) in samples]
        for i, scored in enumerate(echoed):
            results[i] = replace(results[i], prompt_logprobs=scored.logprobs)
        return results

    def _search(self, sequences: GenericSequence[Sequence]) -> Task[list[Generation]]:
        results = []
        for sequence in sequences:
            results.append((yield from beam_search(sequence, self.versions)))
        return results

    def _sample(
        self, samples: GenericSequence[GenericSequence[Sequence]]
    ) -> Task[list[Generation]]:
        """Each prompt's samples, the likeliest with the others as alternatives."""
        for siblings in samples:
            yield from generate_samples(siblings, self.versions, self.capacity)
        return [_ranked(siblings) for siblings in samples]

    def many(
        self, prompts: Iterable[Prompt], options: GenerationOptions
    ) -> tuple[Task[None], dict[int, Sequence]]:
        """A task that reads prompts as it has room for them, and what it has read."""
        options = options.seeded()
        sequences: dict[int, Sequence] = {}

        def source() -> Iterator[Sequence]:
            for i, prompt in enumerate(prompts):
                ids = self.fitted(self.encode(prompt), options)
                sequences[i] = self.sequence(ids, options, index=i)
                yield sequences[i]

        return generate_sequences(source(), self.versions, self.capacity), sequences

    def stream(
        self, prompt: Prompt, options: GenerationOptions
    ) -> tuple[Task[None], Sequence]:
        """A task for one prompt whose chunks should come soon, and its sequence."""
        return self.resume(self.fitted(self.encode(prompt), options), options)

    def resume(
        self,
        tokens: GenericSequence[int],
        options: GenerationOptions,
        *,
        cache: KVCache | None = None,
        version: int | None = None,
        model_id: str = "",
    ) -> tuple[Task[None], Sequence]:
        """``stream`` of tokens whose first ones are in a cache already."""
        if options.beams or options.samples > 1 or options.echo:
            raise InvalidRequest(
                "beam search, several samples and echo can't be streamed: use generate"
            )
        sequence = self.sequence(tokens, options, streaming=True)
        if cache is not None:
            sequence.cache, sequence.version = cache, version
            sequence.model_id = model_id
        sequence.counters.cached_prompt_tokens = sequence.cached
        return generate_sequences(iter([sequence]), self.versions, 1), sequence

    def kept_in_sessions(self, tokens: GenericSequence[int]) -> int:
        """How many of the first tokens some server's slot holds the cache of."""
        pool = self.versions.sessions
        return 0 if pool is None else pool.held(tokens)

    @property
    def session_use(self) -> float | None:
        """What share of the servers' slots sequences have; None without sessions."""
        pool, manifest = self.versions.sessions, self.versions.current.manifest
        if pool is None or not manifest.sessions:
            return None
        return pool.leased / (manifest.sessions["slots"] * pool.servers)

    def score(
        self, texts: Iterable[Prompt], top_logprobs: int, timeout: float | None
    ) -> Task[list[Score]]:
        """A task that gives each text's log-probabilities."""
        check_whole("top_logprobs", top_logprobs, 0, TOP_LOGPROBS)
        limits = self._limits(timeout)
        return scoring.score(self._whole(texts), limits, top=top_logprobs)

    def embed(
        self, texts: Iterable[Prompt], pooled: bool, timeout: float | None
    ) -> Task[list[np.ndarray]]:
        """A task that gives each text's last hidden states, or their mean."""
        limits = self._limits(timeout)
        return scoring.embed(self._whole(texts), limits, pooled=pooled)

    def most_rows(self, call: Call) -> int:
        """Most rows of a call that is joined of calls like this one."""
        model = self.versions.of(call.version)
        new = call.inputs["input_ids"].shape[1]
        if call.signature.startswith("session_"):
            cached = int(np.max(call.inputs["cache_length"]))
            within = model.rows_within_limit(max(new, cached))
            fits = min(model.rows_that_fit(0, 0), within)
            return min(self.capacity, model.whole_batch(fits))
        cached = call.inputs["cache"].shape[1] if "cache" in call.inputs else 0
        if call.signature in ("score", "embed"):
            rows_back = call.signature == "score" and not call.outputs
            return scoring.most_rows(
                model, new, self.capacity, cached, new_cache=rows_back
            )
        generated = tokens_per_call(call.signature) or 0
        fits = model.rows_that_fit(new, cached, generated=generated)
        return min(self.capacity, fits)

    def padded_rows(self, call: Call, rows: int) -> int:
        """B for ``rows`` joined rows of calls like this one."""
        return self.versions.of(call.version).padded_rows(rows)

    def _limits(self, timeout: float | None) -> scoring.Limits:
        if timeout is not None:
            check_seconds("timeout", timeout)
        return scoring.Limits(self.versions, self.capacity, deadline_in(timeout))

    def _whole(self, texts: Iterable[Prompt]) -> list[list[int]]:
        limit = self.versions.current.manifest.max_positions
        encoded = [self.encode(text) for text in as_list(texts)]
        for ids in encoded:
            if len(ids) > limit:
                raise PromptTooLong(
                    f"a text of {len(ids)} tokens exceeds the model's {limit} "
                    "positions: shorten it"
                )
        return encoded

    def _text(self) -> Detokenizer | None:
        return Detokenizer(self.tokenizer) if self.tokenizer else None

    def _spellings(self, word: Prompt) -> list[list[int]]:
        """A bad word's tokens: a text is also forbidden after a space."""
        if not isinstance(word, str):
            return [self.encode(word)]
        spelled = [self.encode(w, special=False) for w in (word, " " + word.lstrip())]
        return [ids for ids in spelled if ids]

    def _check_ids(
        self, sequence: Sequence, options: GenerationOptions, vocabulary: int
    ) -> None:
        constraints = options.constraints
        named = {"stop_token_ids": sequence.stop_ids}
        if constraints:
            named["constraints.forced"] = tuple(constraints.forced.values())
            named["constraints.logit_bias"] = tuple(constraints.logit_bias)
        for name, ids in named.items():
            if wrong := [i for i in ids if not 0 <= i < vocabulary]:
                raise InvalidRequest(
                    f"{name} must hold ids from 0 to {vocabulary - 1}, got {wrong[0]}"
                )
        bias = constraints.logit_bias if constraints else {}
        if sum(x == -math.inf for x in bias.values()) >= vocabulary:
            raise InvalidRequest(
                "constraints.logit_bias forbids every token: leave one out"
            )

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequest(
                "text needs a tokenizer and this export holds none: pass "
                "tokenizer=DIRECTORY, or prompts as token ids and no stop strings"
            )
        return self.tokenizer


def _ranked(siblings: GenericSequence[Sequence]) -> Generation:
    ranked = sorted(
        (sequence.generation() for sequence in siblings),
        key=lambda g: -(g.score or 0.0),
    )
    return replace(ranked[0], alternatives=ranked[1:])

"""``POST /v1/completions``, as OpenAI's API has it."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from itertools import accumulate
from typing import Any

from ..results import Generation, Score, TopLogprobs
from .api_errors import bad_field
from .bodies import CompletionBody, one_by_one
from .choices import Choice, Event, Runner, choices, truncated
from .served import Served
from .usage import usage, usage_so_far

Json = dict[str, Any]


class Completion:
    """One request and the answers to it.

    Args:
        body: what was asked.
        prompts: its prompts as token ids.
        served: the model.
        runner: runs its continuations.
        user: whose it is.

    Raises:
        ApiError: what was asked can't be done.
    """

    @classmethod
    async def of(
        cls, body: CompletionBody, served: Served, runner: Runner, user: str
    ) -> Completion:
        """Reads the prompts; raises ``ApiError`` and ``InvalidRequest``."""
        _check(body)
        texts = one_by_one(body.prompt)
        runner.check(body, len(texts) * (body.best_of or body.n))
        prompts = [
            await served.encode(text, special=body.add_special_tokens) for text in texts
        ]
        return cls(body, prompts, served, runner, user)

    def __init__(
        self,
        body: CompletionBody,
        prompts: Sequence[list[int]],
        served: Served,
        runner: Runner,
        user: str,
    ) -> None:
        self._body, self._served, self._runner = body, served, runner
        self._user = user
        room = served.positions - body.max_tokens
        self._prompts = [truncated(body, prompt, room) for prompt in prompts]
        self._choices = choices(
            body,
            served,
            self._prompts,
            each=body.best_of or body.n,
            max_new_tokens=max(1, body.max_tokens),
            top_logprobs=body.logprobs or 0,
            operation="text_completion",
            user=user,
        )
        self._head: Json = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }

    @property
    def wants_stream(self) -> bool:
        """Whether events are asked for rather than one answer."""
        return self._body.stream

    async def whole(self) -> Json:
        """The answer in one piece."""
        body, served = self._body, self._served
        echoed = await self._echoed()
        results: list[Generation] = []
        if body.max_tokens:
            results = await self._runner.whole(served, self._choices)
        answer: list[Json] = []
        for place, prompt in enumerate(self._prompts):
            best = self._best(results, place)
            for generation in best or [None] * body.n:
                score = echoed[place] if echoed else None
                choice = self._choice(prompt, generation, score)
                answer.append({"index": len(answer), **choice})
        return {**self._head, "choices": answer, "usage": self._usage(results)}

    async def streamed(self) -> AsyncIterator[Json]:
        """The answer's events."""
        body, results = self._body, list[Generation]()
        echoed = await self._echoed()
        if body.echo:
            for choice in self._choices:
                score = echoed[choice.index // body.n] if echoed else None
                yield self._event(choice, self._choice(choice.prompt, None, score))
        events = self._runner.streamed(self._served, self._choices)
        if not body.max_tokens:
            return
        begun = set(range(len(self._choices))) if body.echo else set[int]()
        async for event in events:
            delta = self._delta(event)
            if body.return_token_ids and event.choice.index not in begun:
                delta["prompt_token_ids"] = event.choice.prompt
            begun.add(event.choice.index)
            told = usage_so_far(body.stream_options, event.chunk)
            yield {**self._event(event.choice, delta), **told}
            if event.generation:
                results.append(event.generation)
        if body.stream_options.include_usage:
            yield {**self._head, "choices": [], "usage": self._usage(results)}

    def _best(self, results: Sequence[Generation], place: int) -> Sequence[Generation]:
        """A prompt's results: the ``n`` likeliest of ``best_of``, likeliest first."""
        body = self._body
        each = body.best_of or body.n
        own = results[place * each : (place + 1) * each]
        if each > body.n:
            own = sorted(own, key=lambda g: -(g.score or -math.inf))[: body.n]
        return own

    async def _echoed(self) -> list[Score]:
        """The prompts' own log-probabilities, where they are asked for."""
        body = self._body
        if not body.echo or body.logprobs is None:
            return []
        place = self._runner.place(self._served, self._user, body.priority)
        async with place as left:
            return await self._served.client.score(
                self._prompts, top_logprobs=body.logprobs, timeout=left
            )

    def _choice(
        self, prompt: list[int], generation: Generation | None, score: Score | None
    ) -> Json:
        """A choice of the answer; without a generation it is the echo alone."""
        body, served = self._body, self._served
        listed = TokenList(served)
        text = ""
        if body.echo:
            text = served.text(prompt)
            if score is not None:
                listed.add(prompt, score.logprobs, score.top_logprobs)
        if generation is not None:
            text += generation.text
            listed.add(generation.tokens, generation.logprobs, generation.top_logprobs)
        choice: Json = {
            "text": text,
            "logprobs": None if body.logprobs is None else listed.as_json(),
            "finish_reason": generation.finish_reason if generation else "length",
            "stop_reason": generation.stopped_by if generation else None,
        }
        if body.return_token_ids:
            choice["prompt_token_ids"] = prompt
            choice["token_ids"] = generation.tokens if generation else []
        return choice

    def _delta(self, event: Event) -> Json:
        """A choice of an event."""
        body, chunk = self._body, event.chunk
        listed = TokenList(self._served)
        listed.add(chunk.tokens, chunk.logprobs, chunk.top_logprobs)
        delta: Json = {
            "text": chunk.text,
            "logprobs": None if body.logprobs is None else listed.as_json(),
            "finish_reason": chunk.finish_reason,
            "stop_reason": event.generation.stopped_by if event.generation else None,
        }
        if body.return_token_ids:
            delta["token_ids"] = chunk.tokens
        return delta

    def _event(self, choice: Choice, content: Json) -> Json:
        return {**self._head, "choices": [{"index": choice.index, **content}]}

    def _usage(self, results: Sequence[Generation]) -> Json:
        each = self._body.best_of or self._body.n
        return usage(sum(map(len, self._prompts)), results, each=each)


class TokenList:
    """Tokens with their log-probabilities, as completions list them."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._pieces: list[str] = []
        self._logprobs: list[float | None] = []
        self._top: list[dict[str, float] | None] = []

    def add(
        self,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        top: Sequence[TopLogprobs],
    ) -> None:
        """More of them; NaN is a first token, which has no probability."""
        for i, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            piece = self._served.piece(token)
            self._pieces.append(piece)
            if math.isnan(logprob):
                self._logprobs.append(None)
                self._top.append(None)
                continue
            likeliest = dict(top[i] if i < len(top) else [])
            # Of a token that is among them, programs compare the two numbers.
            logprob = likeliest.setdefault(token, logprob) if likeliest else logprob
            self._logprobs.append(logprob)
            named = {self._served.piece(other): x for other, x in likeliest.items()}
            self._top.append(named or None)

    def as_json(self) -> Json:
        """``tokens``, ``token_logprobs``, ``top_logprobs`` and ``text_offset``."""
        ends = accumulate(map(len, self._pieces), initial=0)
        return {
            "tokens": self._pieces,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._top,
            "text_offset": list(ends)[:-1],
        }


def _check(body: CompletionBody) -> None:
    """Raise ``ApiError`` for fields that don't go together."""
    if body.best_of is not None:
        if body.best_of < body.n:
            raise bad_field("best_of", f"best_of must be at least n = {body.n}")
        if body.stream:
            raise bad_field("best_of", "best_of can't be streamed: leave it out")
    if not body.max_tokens and not body.echo:
        raise bad_field("max_tokens", "max_tokens must be at least 1, or echo be true")

"""From a request's fields to the continuations it asks for, and their running."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from ..async_tasks import all_results
from ..options import Constraints, GenerationKeywords
from ..results import Chunk, Generation
from ..sampling import Sampling
from .admission import Admission
from .api_errors import bad_field
from .bodies import Sampled
from .metrics import GenerationClock, Metrics
from .served import Served
from .tracing import Tracing


@dataclass(frozen=True)
class Choice:
    """One continuation to make.

    Attributes:
        index: its place in the answer.
        prompt: token ids.
        max_new_tokens: where to end at the latest.
        options: ``AsyncClient.generate``'s keywords.
        operation: what asked for it, as OpenTelemetry's conventions name it.
        user: whose it is, for the queue.
        priority: the lowest goes first.
    """

    index: int
    prompt: list[int]
    max_new_tokens: int
    options: GenerationKeywords
    operation: str
    user: str
    priority: int


@dataclass(frozen=True)
class Event:
    """A part of a streamed choice; with its last one comes the whole."""

    choice: Choice
    chunk: Chunk
    generation: Generation | None


def choices(
    body: Sampled,
    served: Served,
    prompts: Sequence[list[int]],
    *,
    each: int,
    max_new_tokens: int,
    top_logprobs: int,
    operation: str,
    user: str,
) -> list[Choice]:
    """``each`` continuations of each prompt, in the answer's order.

    Those of one prompt differ in their seeds, which count up from the request's.
    """
    seed = secrets.randbits(63) if body.seed is None else body.seed
    stop_ids = list(body.stop_token_ids)
    if not body.ignore_eos:
        stop_ids.append(served.manifest.eos_token_id)
    return [
        Choice(
            index=place * each + i,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            options=GenerationKeywords(
                sampling=_sampling(body, seed + i),
                stop=body.stops,
                stop_token_ids=stop_ids,
                constraints=Constraints(
                    min_new_tokens=min(body.min_tokens, max_new_tokens),
                    logit_bias=body.logit_bias,
                ),
                top_logprobs=top_logprobs,
            ),
            operation=operation,
            user=user,
            priority=body.priority,
        )
        for place, prompt in enumerate(prompts)
        for i in range(each)
    ]


def truncated(body: Sampled, prompt: list[int], room: int) -> list[int]:
    """The prompt's end, as ``truncate_prompt_tokens`` asks (vLLM's; -1 fits it)."""
    keep = body.truncate_prompt_tokens
    if keep is None:
        return prompt
    if keep == -1:
        keep = max(1, room)
    if keep == 0:
        raise bad_field("truncate_prompt_tokens", "keep at least 1 token, or -1 to fit")
    return prompt[-keep:]


def _sampling(body: Sampled, seed: int) -> Sampling:
    return Sampling(
        temperature=body.temperature,
        top_k=max(0, body.top_k),
        top_p=body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        seed=seed % 2**64,
    )


class Runner:
    """Runs choices in their turn and measures them.

    Args:
        admission: the queue.
        metrics: where the figures go.
        tracing: where the spans go.
        seconds: how long one may take, waiting included.
    """

    def __init__(
        self,
        admission: Admission,
        metrics: Metrics,
        tracing: Tracing,
        *,
        seconds: float,
    ) -> None:
        self._admission, self._metrics = admission, metrics
        self._tracing, self._seconds = tracing, seconds

    def check(self, body: Sampled, count: int) -> None:
        """Raise ``ApiError`` 400 for what no gateway does, or this one never could.

        Args:
            body: of a request.
            count: of the continuations that it asks for.
        """
        if not body.stream and "stream_options" in body.model_fields_set:
            raise bad_field("stream_options", "stream_options needs stream: true")
        if count > self._admission.capacity:
            raise bad_field(
                "n",
                f"the request asks for {count} continuations, and this gateway takes "
                f"{self._admission.capacity} at a time: send fewer prompts, or a "
                "smaller n",
            )

    def place(
        self, served: Served, user: str, priority: int
    ) -> AbstractAsyncContextManager[float | None]:
        """A place for work of this user on a model; gives the seconds that are left."""
        return self._admission.place(user, priority, self._seconds, model=served.name)

    async def whole(
        self, served: Served, choices: Sequence[Choice]
    ) -> list[Generation]:
        """Every choice's result, in order; the first failure ends the others."""
        return await all_results([self._one(served, choice) for choice in choices])

    async def streamed(
        self, served: Served, choices: Sequence[Choice]
    ) -> AsyncIterator[Event]:
        """Chunks of all choices as they come.

        Generations go on at their own pace whatever the reader's, so that a slow one
        holds no place; what waits for it is bounded by ``max_new_tokens``.
        """
        events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

        async def produce(choice: Choice) -> None:
            try:
                async with self._turn(served, choice) as (clock, left):
                    stream = served.client.stream(
                        choice.prompt,
                        max_new_tokens=choice.max_new_tokens,
                        **_within(choice.options, left),
                    )
                    async with stream:
                        async for chunk in stream:
                            if chunk.tokens:
                                clock.first_token()
                            result = stream.generation if chunk.finish_reason else None
                            events.put_nowait(Event(choice, chunk, result))
                    clock.ended(stream.generation)
                events.put_nowait(None)
            except Exception as error:
                events.put_nowait(error)

        tasks = [asyncio.create_task(produce(choice)) for choice in choices]
        running = len(tasks)
        try:
            while running:
                event = await events.get()
                if event is None:
                    running -= 1
                elif isinstance(event, Exception):
                    raise event
                else:
                    yield event
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, served: Served, choice: Choice) -> Generation:
        async with self._turn(served, choice) as (clock, left):
            (result,) = await served.client.generate(
                [choice.prompt],
                max_new_tokens=choice.max_new_tokens,
                **_within(choice.options, left),
            )
            clock.first_token(result.counters.first_token_seconds)
            clock.ended(result)
        return result

    @asynccontextmanager
    async def _turn(
        self, served: Served, choice: Choice
    ) -> AsyncIterator[tuple[GenerationClock, float | None]]:
        """A place; gives the clock and the seconds that are left."""
        with self._tracing.generation(choice.operation, served.name) as span:
            clock = self._metrics.clock(served.name, span)
            async with self.place(served, choice.user, choice.priority) as left:
                clock.started()
                yield clock, left


def _within(options: GenerationKeywords, seconds: float | None) -> GenerationKeywords:
    limited = options.copy()
    limited["timeout"] = seconds
    return limited

"""A conversation: its cache stays between turns, so that only new tokens are fed.

with Client(target) as client:
    talk = client.conversation()
    for line in sys.stdin:
        for chunk in talk.say(line, max_new_tokens=64):
            print(chunk.text, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .decoding.engine import Engine
from .decoding.kv_cache import KVCache
from .decoding.sequence import Sequence
from .decoding.task import Task
from .errors import OptserveError
from .options import GenerationKeywords, GenerationOptions, Prompt
from .results import Chunk, Generation
from .telemetry import Telemetry, streamed, streamed_async
from .transports.base import AsyncTransport, Transport

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _Turns:
    """What was said so far, and its cache; for both kinds of conversation."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokens: list[int] = []
        self._cache: KVCache | None = None
        self._version: int | None = None
        self._model_id = ""
        self._sequence: Sequence | None = None
        self._speaking = False

    @property
    def tokens(self) -> list[int]:
        """All tokens so far, both sides'."""
        return list(self._tokens)

    @property
    def cached_tokens(self) -> int:
        """How many of them the next turn needn't feed."""
        if self._cache is None:
            return self._engine.kept_in_sessions(self._tokens)
        return len(self._cache)

    @property
    def generation(self) -> Generation:
        """The last turn's whole result.

        Raises:
            OptserveError: there is none yet, or it has not ended.
        """
        if self._sequence is None or self._sequence.finish_reason is None:
            raise OptserveError("no turn has ended yet: read one to its end first")
        return self._sequence.generation()

    def cancel(self) -> None:
        """End the turn after the call that runs now; what was said stays."""
        if self._sequence is not None:
            self._sequence.cancel()

    def reset(self) -> None:
        """Forget everything."""
        if self._speaking:
            raise OptserveError("a turn is under way: read or close it first")
        self._tokens, self._cache, self._version, self._sequence = [], None, None, None

    @contextmanager
    def _turn(
        self, prompt: Prompt, options: GenerationOptions
    ) -> Generator[tuple[Task[None], Sequence], None, None]:
        """The task of one turn; keeps what has come, however it ends."""
        if self._speaking:
            raise OptserveError("a turn is under way: read or close it first")
        said = self._engine.encode(prompt, special=not self._tokens)
        whole = self._tokens + said
        tokens = self._engine.fitted(whole, options)
        kept = tokens is whole
        task, sequence = self._engine.resume(
            tokens,
            options,
            cache=self._cache if kept else None,
            version=self._version if kept else None,
            model_id=self._model_id if kept else "",
        )
        self._sequence, self._speaking = sequence, True
        try:
            yield task, sequence
        finally:
            self._speaking = False
            self._tokens = sequence.tokens
            # A slot was released, and is recognised by its tokens.
            kept = sequence.cache
            self._cache = kept if isinstance(kept, KVCache) else None
            self._version = sequence.version
            self._model_id = sequence.model_id


class Conversation(_Turns):
    """A conversation over a ``Client``; one turn at a time."""

    def __init__(
        self, engine: Engine, transport: Transport, telemetry: Telemetry
    ) -> None:
        super().__init__(engine)
        self._transport, self._telemetry = transport, telemetry

    def say(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        **options: Unpack[GenerationKeywords],
    ) -> Generator[Chunk, None, None]:
        """Add to the conversation and give the answer as it comes.

        A conversation that grows beyond the model's positions raises
        ``PromptTooLong``, or loses its beginning with ``truncate="left"``.
        """
        request = GenerationOptions(max_new_tokens=max_new_tokens, **options)
        with self._turn(prompt, request) as (task, sequence):
            yield from streamed(task, sequence, self._transport, self._telemetry)


class AsyncConversation(_Turns):
    """A conversation over an ``AsyncClient``; one turn at a time."""

    def __init__(
        self, engine: Engine, transport: AsyncTransport, telemetry: Telemetry
    ) -> None:
        super().__init__(engine)
        self._transport, self._telemetry = transport, telemetry

    async def say(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        **options: Unpack[GenerationKeywords],
    ) -> AsyncGenerator[Chunk, None]:
        """``Conversation.say`` for asyncio."""
        request = GenerationOptions(max_new_tokens=max_new_tokens, **options)
        with self._turn(prompt, request) as (task, sequence):
            chunks = streamed_async(task, sequence, self._transport, self._telemetry)
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                await chunks.aclose()

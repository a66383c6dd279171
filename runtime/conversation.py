"""A conversation: its cache stays between turns, so that only new tokens are fed.

with Client(target) as client:
    talk = client.conversation()
    for line in sys.stdin:
        for piece in talk.say(line, max_new_tokens=64):
            print(piece.text, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .decoding.kv_cache import RowCache
from .decoding.loop import Work
from .decoding.sequence import Row
from .decoding.session import Core
from .errors import OptserveError
from .options import OptionKeywords, Options, Prompt
from .results import Generation, Piece
from .telemetry import Telemetry, streamed, streamed_async
from .transports.base import AsyncTransport, Transport

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _Turns:
    """What was said so far, and its cache; for both kinds of conversation."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._tokens: list[int] = []
        self._cache: RowCache | None = None
        self._version: int | None = None
        self._row: Row | None = None
        self._speaking = False

    @property
    def tokens(self) -> list[int]:
        """All tokens so far, both sides'."""
        return list(self._tokens)

    @property
    def cached_tokens(self) -> int:
        """How many of them the next turn needn't feed."""
        return 0 if self._cache is None else len(self._cache)

    @property
    def generation(self) -> Generation:
        """The last turn's whole result.

        Raises:
            OptserveError: there is none yet, or it has not ended.
        """
        if self._row is None or self._row.finish_reason is None:
            raise OptserveError("no turn has ended yet: read one to its end first")
        return self._row.generation()

    def cancel(self) -> None:
        """End the turn after the call that runs now; what was said stays."""
        if self._row is not None:
            self._row.cancel()

    def reset(self) -> None:
        """Forget everything."""
        if self._speaking:
            raise OptserveError("a turn is under way: read or close it first")
        self._tokens, self._cache, self._version, self._row = [], None, None, None

    @contextmanager
    def _turn(
        self, prompt: Prompt, options: Options
    ) -> Generator[tuple[Work[None], Row], None, None]:
        """The work of one turn; keeps what it has made, however it ends."""
        if self._speaking:
            raise OptserveError("a turn is under way: read or close it first")
        said = self._core.encode(prompt, special=not self._tokens)
        whole = self._tokens + said
        tokens = self._core.fitted(whole, options)
        kept = tokens is whole
        work, row = self._core.resume(
            tokens,
            options,
            cache=self._cache if kept else None,
            version=self._version if kept else None,
        )
        self._row, self._speaking = row, True
        try:
            yield work, row
        finally:
            self._speaking = False
            self._tokens = row.tokens
            self._cache, self._version = row.cache, row.version


class Conversation(_Turns):
    """A conversation over a ``Client``; one turn at a time."""

    def __init__(self, core: Core, transport: Transport, telemetry: Telemetry) -> None:
        super().__init__(core)
        self._transport, self._telemetry = transport, telemetry

    def say(
        self, prompt: Prompt, *, max_new_tokens: int, **options: Unpack[OptionKeywords]
    ) -> Generator[Piece, None, None]:
        """Add to the conversation and give the answer as it comes.

        A conversation that grows beyond the model's positions raises
        ``PromptTooLong``, or loses its beginning with ``truncate="left"``.
        """
        wanted = Options(max_new_tokens=max_new_tokens, **options)
        with self._turn(prompt, wanted) as (work, row):
            yield from streamed(work, row, self._transport, self._telemetry)


class AsyncConversation(_Turns):
    """A conversation over an ``AsyncClient``; one turn at a time."""

    def __init__(
        self, core: Core, transport: AsyncTransport, telemetry: Telemetry
    ) -> None:
        super().__init__(core)
        self._transport, self._telemetry = transport, telemetry

    async def say(
        self, prompt: Prompt, *, max_new_tokens: int, **options: Unpack[OptionKeywords]
    ) -> AsyncGenerator[Piece, None]:
        """``Conversation.say`` for asyncio."""
        wanted = Options(max_new_tokens=max_new_tokens, **options)
        with self._turn(prompt, wanted) as (work, row):
            pieces = streamed_async(work, row, self._transport, self._telemetry)
            try:
                async for piece in pieces:
                    yield piece
            finally:
                await pieces.aclose()

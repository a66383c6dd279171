"""The asyncio client: the same loop, many generations at a time.

async with AsyncClient("127.0.0.1:8500", model="opt") as client:
    async for piece in client.stream("Good morrow", max_new_tokens=64):
        print(piece.text, end="", flush=True)
    results = await client.generate(prompts, max_new_tokens=32)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Coroutine,
    Iterable,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..models.tokenizer import Tokenizer
from .contract import Manifest
from .conversation import AsyncConversation
from .decoding.driver import run_async
from .decoding.loop import Work
from .decoding.scheduler import Merging
from .decoding.sequence import Row
from .decoding.served_signatures import compared
from .decoding.session import Core, left, moment, open_core, several
from .errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    OptserveError,
)
from .options import OptionKeywords, Options, Prompt
from .results import Generation, Piece, Score
from .telemetry import Operation, open_telemetry, streamed_async
from .transports.base import AsyncTransport
from .transports.resolve import (
    Target,
    TransportKeywords,
    open_async_transport,
    open_tokenizer,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
_NO_TIME = 1e-9  # seconds; a deadline that has passed


class AsyncClient:
    """``Client`` for asyncio, for one event loop.

    Generations run side by side; their calls are joined where they meet (``merging``).
    At most ``max_active`` run at a time and hold a cache, the others wait their turn,
    and a stream goes on only as its pieces are taken: memory is bounded. A ``timeout``
    counts from the request, waiting for a turn included.

    Args:
        target, model, label, tokenizer, connect_timeout, wait, telemetry, transport,
            options: as of ``Client``.
        max_rows: most rows of a joined call; by default what the export was made for.
        max_active: most generations under way.
        in_flight: joined calls under way at a time; 2 for each address by default.

    Connects at ``async with``, or at the first call.
    """

    def __init__(
        self,
        target: Target = (),
        *,
        model: str = "opt",
        label: str = "",
        tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
        max_rows: int | None = None,
        max_active: int = 64,
        in_flight: int | None = None,
        connect_timeout: float | None = 30.0,
        wait: float | None = None,
        telemetry: bool | None = None,
        transport: AsyncTransport | None = None,
        **options: Unpack[TransportKeywords],
    ) -> None:
        for name, value in (("max_active", max_active), ("in_flight", in_flight)):
            if value is not None and value < 1:
                raise InvalidRequest(f"{name} must be 1 or more, got {value}")
        self._tokenizer = open_tokenizer(tokenizer)
        self._telemetry = open_telemetry(telemetry, model)
        self._max_rows = max_rows
        self._connect_timeout, self._wait = connect_timeout, wait
        self._open = lambda: (
            transport or open_async_transport(target, model, label, dict(options))
        )
        addresses = len(target) if isinstance(target, list | tuple) else 1
        self._in_flight = in_flight or 2 * max(1, addresses)
        self._max_active = max_active
        self._slots = asyncio.Semaphore(max_active)
        self._lock = asyncio.Lock()
        self._core: Core | None = None
        self._transport: AsyncTransport | None = None
        self._closed = False

    async def generate(
        self,
        prompts: Iterable[Prompt],
        *,
        max_new_tokens: int,
        **options: Unpack[OptionKeywords],
    ) -> list[Generation]:
        """Continue each prompt, all side by side; one ``Generation`` each, in order."""
        wanted = Options(max_new_tokens=max_new_tokens, **options)
        wanted = replace(wanted, sampling=wanted.chosen.seeded())
        work = [self._one(p, wanted, i) for i, p in enumerate(several(prompts))]
        return await _all(work)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        **options: Unpack[OptionKeywords],
    ) -> AsyncStream:
        """Continue one prompt and give its text as it comes.

        Leave it early through ``async with`` or ``aclose``: that cancels its call.
        """
        wanted = Options(max_new_tokens=max_new_tokens, **options)
        return AsyncStream(self, prompt, wanted)

    async def generate_many(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        *,
        max_new_tokens: int,
        **options: Unpack[OptionKeywords],
    ) -> AsyncIterator[Generation]:
        """Continue any number of prompts; gives each result when it is there.

        A prompt is read when there is room for it, so the source may be endless, and
        results not taken yet count as under way. ``index`` tells which is which.
        """
        wanted = Options(max_new_tokens=max_new_tokens, **options)
        wanted = replace(wanted, sampling=wanted.chosen.seeded())
        source = enumerate_any(prompts)
        tasks: set[asyncio.Task[Generation]] = set()
        done: set[asyncio.Task[Generation]] = set()
        more = True
        try:
            while more or tasks:
                while more and len(tasks) < self._max_active:
                    item = await anext(source, None)
                    more = item is not None
                    if item is not None:
                        work = self._one(item[1], wanted, item[0])
                        tasks.add(asyncio.create_task(work))
                if tasks:
                    done, tasks = await asyncio.wait(
                        tasks, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        yield task.result()
        finally:
            await _cancel(tasks | done)

    async def score(
        self, texts: Iterable[Prompt], *, timeout: float | None = None
    ) -> list[Score]:
        """How likely the model finds each text (``Score.perplexity``)."""
        core = await self.connect()
        return await self._run("score", core.score(texts, timeout))

    async def embed(
        self, texts: Iterable[Prompt], *, timeout: float | None = None
    ) -> list[np.ndarray]:
        """The last hidden states of each text, ``[tokens, E]`` float32."""
        core = await self.connect()
        return await self._run("embed", core.embed(texts, timeout))

    async def conversation(self) -> AsyncConversation:
        """A conversation, which keeps its cache between turns."""
        core = await self.connect()
        assert self._transport is not None
        return AsyncConversation(core, self._transport, self._telemetry)

    async def describe(self) -> Manifest:
        """What the served model says of itself."""
        return (await self.connect()).catalog.current.manifest

    async def connect(self) -> Core:
        """Learn what is served, once; raises as ``Client``."""
        if self._closed:
            raise Cancelled("this client is closed: make another one")
        async with self._lock:
            if self._core is None:
                self._core = await self._connect()
            return self._core

    async def _connect(self) -> Core:
        transport = self._open()
        try:
            until_ready = getattr(transport, "wait_until_ready", None)
            if self._wait is not None and until_ready:
                await until_ready(self._wait)
            deadline = moment(self._connect_timeout)
            work = open_core(self._tokenizer, self._max_rows, deadline)
            core = await run_async(work, transport)
            if metadata := getattr(transport, "metadata", None):
                found = core.catalog.current
                with compared(found) as answers:
                    answers.append(
                        await metadata(version=found.version, timeout=left(deadline))
                    )
        except BaseException:
            await transport.close()
            raise
        core.catalog.leave_rows()
        self._transport = Merging(
            transport,
            limit=core.most_rows,
            size=core.padded_rows,
            in_flight=self._in_flight,
        )
        return core

    async def close(self) -> None:
        """Cancel what is under way and release the connections."""
        self._closed = True
        if self._transport is not None:
            await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _one(self, prompt: Prompt, options: Options, index: int) -> Generation:
        core = await self.connect()
        async with self._slot(options) as left_options:
            with self._telemetry.operation("generate") as operation:
                work = core.generate([prompt], left_options)
                (result,) = await run_async(work, self._watched(operation))
                operation.ended([result])
        return replace(result, index=index)

    @asynccontextmanager
    async def _slot(self, options: Options) -> AsyncIterator[Options]:
        """A place among the active ones; gives the options with the time left."""
        deadline = moment(options.timeout)
        try:
            await asyncio.wait_for(self._slots.acquire(), options.timeout)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(
                f"{self._max_active} other generations were under way for "
                f"{options.timeout} s: allow more time, send fewer at once, or raise "
                "max_active"
            ) from None
        try:
            if deadline is not None:
                options = replace(options, timeout=left(deadline) or _NO_TIME)
            yield options
        finally:
            self._slots.release()

    async def _run(self, name: str, work: Work[T]) -> T:
        with self._telemetry.operation(name) as operation:
            return await run_async(work, self._watched(operation))

    def _watched(self, operation: Operation) -> AsyncTransport:
        assert self._transport is not None  # every caller has connected
        return operation.over_async(self._transport)

    async def _pieces(
        self, prompt: Prompt, options: Options, started: list[Row]
    ) -> AsyncGenerator[Piece, None]:
        core = await self.connect()
        assert self._transport is not None
        async with self._slot(options) as left_options:
            work, row = core.stream(prompt, left_options)
            started.append(row)
            pieces = streamed_async(work, row, self._transport, self._telemetry)
            try:
                async for piece in pieces:
                    yield piece
            finally:
                await pieces.aclose()


class AsyncStream:
    """An asynchronous iterator of ``Piece``; also the handle that ends it early."""

    def __init__(self, client: AsyncClient, prompt: Prompt, options: Options) -> None:
        self._rows: list[Row] = []
        self._pieces = client._pieces(prompt, options, self._rows)

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        """Drop it; a call under way is cancelled with its task."""
        await self._pieces.aclose()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def cancel(self) -> None:
        """End it after the call that runs now, with a last piece."""
        for row in self._rows:
            row.cancel()

    @property
    def generation(self) -> Generation:
        """The whole result.

        Raises:
            OptserveError: the stream has not ended.
        """
        if not self._rows or self._rows[0].finish_reason is None:
            raise OptserveError("the stream has not ended: read it to its end first")
        return self._rows[0].generation()


async def enumerate_any(
    items: Iterable[T] | AsyncIterable[T],
) -> AsyncIterator[tuple[int, T]]:
    """``enumerate`` of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        i = 0
        async for item in items:
            yield i, item
            i += 1
    else:
        for pair in enumerate(items):
            yield pair


async def _all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The values in order; the first failure cancels the others and is raised."""
    tasks = {asyncio.ensure_future(one): i for i, one in enumerate(work)}
    try:
        if tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        return [task.result() for task in tasks]
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """End those that run; of all, take the failures that nobody else looks at."""
    several = list(tasks)
    for task in several:
        task.cancel()
    await asyncio.gather(*several, return_exceptions=True)

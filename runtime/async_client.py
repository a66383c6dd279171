"""The asyncio client: the same loop, many generations at a time.

async with AsyncClient("127.0.0.1:8500", model="opt") as client:
    async for chunk in client.stream("Good morrow", max_new_tokens=64):
        print(chunk.text, end="", flush=True)
    results = await client.generate(prompts, max_new_tokens=32)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterable,
)
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..models.tokenizer import Tokenizer
from .async_stream import AsyncStream
from .async_tasks import all_results, cancel_all, enumerate_any
from .contract import Manifest
from .conversation import AsyncConversation
from .decoding.deadlines import check_waits, deadline_in, time_left
from .decoding.driver import run_async
from .decoding.engine import Engine
from .decoding.model_versions import IDENTITY
from .decoding.opening import open_engine
from .decoding.prefix_cache import PrefixCache, as_prefix_cache
from .decoding.prompts import as_list
from .decoding.sequence import Sequence
from .decoding.served_model import ServedModel
from .decoding.session_pool import Sessions, check_sessions, open_pool
from .decoding.signature_check import check_signatures
from .decoding.task import Task
from .errors import (
    Cancelled,
    DeadlineExceeded,
    IncompatibleModel,
    ServerError,
)
from .option_checks import check_whole
from .options import GenerationKeywords, GenerationOptions, Prompt
from .results import Chunk, Generation, Score
from .telemetry import open_telemetry, streamed_async
from .transports.base import AsyncTransport
from .transports.batching import DynamicBatcher
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

    Generations run side by side; their calls are joined where they meet
    (``transports/batching.py``).
    At most ``max_active`` run at a time and hold a cache, the others wait their turn,
    and a stream goes on only as its chunks are taken: memory is bounded. A ``timeout``
    counts from the request, waiting for a turn included.

    Args:
        target, model, label, tokenizer, connect_timeout, wait, telemetry, prefix_cache,
            sessions, transport, options: as of ``Client``.
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
        prefix_cache: int | PrefixCache | None = None,
        sessions: Sessions = "auto",
        transport: AsyncTransport | None = None,
        **options: Unpack[TransportKeywords],
    ) -> None:
        check_waits(connect_timeout, wait)
        check_whole("max_active", max_active, 1)
        if in_flight is not None:
            check_whole("in_flight", in_flight, 1)
        self._tokenizer = open_tokenizer(tokenizer)
        self._sessions: Sessions = sessions
        self._prefixes = as_prefix_cache(prefix_cache)
        self._telemetry = open_telemetry(telemetry, model)
        self._max_rows = max_rows
        self._connect_timeout, self._wait = connect_timeout, wait
        self._open = lambda: (
            transport
            or open_async_transport(target, model, label, dict(options), IDENTITY)
        )
        addresses = len(target) if isinstance(target, list | tuple) else 1
        self._in_flight = in_flight or 2 * max(1, addresses)
        self._max_active = max_active
        self._slots = asyncio.Semaphore(max_active)
        self._lock = asyncio.Lock()
        self._engine: Engine | None = None
        self._transport: AsyncTransport | None = None
        self._closed = False

    async def generate(
        self,
        prompts: Iterable[Prompt],
        *,
        max_new_tokens: int,
        **options: Unpack[GenerationKeywords],
    ) -> list[Generation]:
        """Continue each prompt, all side by side; one ``Generation`` each, in order."""
        request = GenerationOptions(max_new_tokens=max_new_tokens, **options).seeded()
        return await all_results(
            [self._one(p, request, i) for i, p in enumerate(as_list(prompts))]
        )

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        **options: Unpack[GenerationKeywords],
    ) -> AsyncStream:
        """Continue one prompt and give its text as it comes.

        Leave it early through ``async with`` or ``aclose``: that cancels its call.
        """
        request = GenerationOptions(max_new_tokens=max_new_tokens, **options)
        started: list[Sequence] = []
        return AsyncStream(self._chunks(prompt, request, started), started)

    async def generate_many(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        *,
        max_new_tokens: int,
        **options: Unpack[GenerationKeywords],
    ) -> AsyncIterator[Generation]:
        """Continue any number of prompts; gives each result when it is there.

        A prompt is read when there is room for it, so the source may be endless, and
        results not taken yet count as under way. ``index`` tells which is which.
        """
        request = GenerationOptions(max_new_tokens=max_new_tokens, **options).seeded()
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
                        generation = self._one(item[1], request, item[0])
                        tasks.add(asyncio.create_task(generation))
                if tasks:
                    done, tasks = await asyncio.wait(
                        tasks, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        yield task.result()
        finally:
            await cancel_all(tasks | done)

    async def score(
        self,
        texts: Iterable[Prompt],
        *,
        top_logprobs: int = 0,
        timeout: float | None = None,
    ) -> list[Score]:
        """``Client.score`` for asyncio."""
        engine = await self.connect()
        task = engine.score(texts, top_logprobs, timeout)
        with self._telemetry.operation("score") as operation:
            scores = await run_async(task, self._connected(), operation.observe)
            operation.scored(scores)
        return scores

    async def embed(
        self,
        texts: Iterable[Prompt],
        *,
        pooled: bool = False,
        timeout: float | None = None,
    ) -> list[np.ndarray]:
        """``Client.embed`` for asyncio."""
        engine = await self.connect()
        return await self._run("embed", engine.embed(texts, pooled, timeout))

    async def conversation(self) -> AsyncConversation:
        """A conversation, which keeps its cache between turns."""
        engine = await self.connect()
        return AsyncConversation(engine, self._connected(), self._telemetry)

    async def describe(self) -> Manifest:
        """What the served model says of itself."""
        return (await self.connect()).versions.current.manifest

    async def check_ready(self, timeout: float | None = None) -> None:
        """Ask now whether a server has the model, within ``timeout`` seconds.

        Raises:
            Unavailable: none has.
        """
        await self.connect()
        await self._connected().wait_until_ready(timeout)

    @property
    def session_use(self) -> float | None:
        """What share of the servers' sessions is in use, 0 to 1; None without any."""
        return None if self._engine is None else self._engine.session_use

    async def connect(self) -> Engine:
        """Learn what is served, once; raises as ``Client``."""
        if self._closed:
            raise Cancelled("this client is closed: make another one")
        async with self._lock:
            if self._engine is None:
                self._engine = await self._connect()
            return self._engine

    async def _connect(self) -> Engine:
        transport = self._open()
        try:
            if self._wait is not None:
                await transport.wait_until_ready(self._wait)
            deadline = deadline_in(self._connect_timeout)
            task = open_engine(
                self._tokenizer,
                self._max_rows,
                deadline,
                self._prefixes,
                open_pool(self._sessions, transport.targets),
            )
            engine = await run_async(task, transport)
            model = engine.versions.current
            check_sessions(self._sessions, model)
            await _check_signatures(model, transport, time_left(deadline))
        except BaseException:
            await transport.close()
            raise
        engine.versions.leave_rows()
        self._transport = DynamicBatcher(
            transport,
            limit=engine.most_rows,
            size=engine.padded_rows,
            in_flight=self._in_flight,
        )
        return engine

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

    async def _one(
        self, prompt: Prompt, request: GenerationOptions, index: int
    ) -> Generation:
        engine = await self.connect()
        async with self._slot(request) as remaining:
            with self._telemetry.operation("generate") as operation:
                task = engine.generate([prompt], remaining)
                transport = self._connected()
                (result,) = await run_async(task, transport, operation.observe)
                operation.ended([result])
        return replace(result, index=index)

    @asynccontextmanager
    async def _slot(
        self, request: GenerationOptions
    ) -> AsyncIterator[GenerationOptions]:
        """A place among the active ones; gives the options with the time left."""
        deadline = deadline_in(request.timeout)
        try:
            await asyncio.wait_for(self._slots.acquire(), request.timeout)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(
                f"{self._max_active} other generations were under way for "
                f"{request.timeout} s: allow more time, send fewer at once, or raise "
                "max_active"
            ) from None
        try:
            if deadline is not None:
                request = replace(request, timeout=time_left(deadline) or _NO_TIME)
            yield request
        finally:
            self._slots.release()

    async def _run(self, name: str, task: Task[T]) -> T:
        with self._telemetry.operation(name) as operation:
            return await run_async(task, self._connected(), operation.observe)

    def _connected(self) -> AsyncTransport:
        assert self._transport is not None  # every caller has connected
        return self._transport

    async def _chunks(
        self, prompt: Prompt, request: GenerationOptions, started: list[Sequence]
    ) -> AsyncGenerator[Chunk, None]:
        engine = await self.connect()
        async with self._slot(request) as remaining:
            task, sequence = engine.stream(prompt, remaining)
            started.append(sequence)
            chunks = streamed_async(task, sequence, self._connected(), self._telemetry)
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                await chunks.aclose()


async def _check_signatures(
    model: ServedModel, transport: AsyncTransport, timeout: float | None
) -> None:
    """As ``Client._check_signatures``."""
    listed = None
    with suppress(ServerError, IncompatibleModel):
        listed = await transport.metadata(version=model.version, timeout=timeout)
    if listed is not None:
        check_signatures(model, listed)

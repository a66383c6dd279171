"""The blocking client.

with Client("127.0.0.1:8500", model="opt") as client:
    for chunk in client.stream("Good morrow", max_new_tokens=64):
        print(chunk.text, end="", flush=True)
    first, second = client.generate(["Once", [2, 713, 16]], max_new_tokens=32)
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..models.tokenizer import Tokenizer
from .contract import Manifest
from .conversation import Conversation
from .decoding.deadlines import check_waits, deadline_in, time_left
from .decoding.driver import drive, run
from .decoding.model_versions import IDENTITY
from .decoding.opening import open_engine
from .decoding.prefix_cache import PrefixCache, as_prefix_cache
from .decoding.sequence import Sequence
from .decoding.session_pool import Sessions, check_sessions, open_pool
from .decoding.signature_check import check_signatures
from .decoding.task import Task
from .errors import Cancelled, IncompatibleModel, OptserveError, ServerError
from .options import GenerationKeywords, GenerationOptions, Prompt
from .results import Chunk, Generation, Score
from .telemetry import open_telemetry, streamed
from .transports.base import Transport
from .transports.resolve import (
    Target,
    TransportKeywords,
    open_tokenizer,
    open_transport,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


class Client:
    """Drives one served model. Safe to use from several threads.

    Args:
        target: an address (``HOST:PORT``, ``unix:PATH``, ``dns:///…``), a list of them,
            an export's folder (in this process, needs ``optserve[serve]``) or a
            ``.tflite`` file or the folder that holds it (``optserve[edge]``).
        model: the model's name on the server.
        label: the version label to follow (TensorFlow Serving's ``version_label``, as
            "stable"); by default the newest version. What has begun on a version stays
            there when the label moves, since caches are of one version.
        tokenizer: a tokenizer, or its directory; by default the export's own.
        max_rows: most rows of one call; by default what the export was made for.
        connect_timeout: seconds for learning what is served.
        wait: seconds to wait first for a server that has the model ready (by its
            model status); None asks once.
        telemetry: OpenTelemetry spans and metrics; None: where the program uses it.
        prefix_cache: reuse of what prompts have in common: bytes of cache rows to keep
            in memory, or a ``PrefixCache``, which several clients may share and which
            may keep them in a folder. Needs an export that names its checkpoint.
        sessions: whether the server keeps the caches, where the export has sessions:
            "auto" uses them if it has, True insists on it, False sends caches along.
        transport: a transport of your own instead of what ``target`` means.
        options: the transport's options: the fields of ``connection.Connection`` for
            servers (TLS, metadata, retries …), ``threads`` for a model in this process.

    Raises:
        IncompatibleModel: the served model was not exported by this project, or by
            another version of it, or has no sessions where they are insisted on.
        Unavailable, DeadlineExceeded: no server answered in time.
    """

    def __init__(
        self,
        target: Target = (),
        *,
        model: str = "opt",
        label: str = "",
        tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
        max_rows: int | None = None,
        connect_timeout: float | None = 30.0,
        wait: float | None = None,
        telemetry: bool | None = None,
        prefix_cache: int | PrefixCache | None = None,
        sessions: Sessions = "auto",
        transport: Transport | None = None,
        **options: Unpack[TransportKeywords],
    ) -> None:
        check_waits(connect_timeout, wait)
        own_prefixes = as_prefix_cache(prefix_cache)
        own_tokenizer = open_tokenizer(tokenizer)
        self._telemetry = open_telemetry(telemetry, model)
        self._transport = transport or open_transport(
            target, model, label, dict(options), IDENTITY
        )
        self._closed = False
        try:
            if wait is not None:
                self._transport.wait_until_ready(wait)
            deadline = deadline_in(connect_timeout)
            pool = open_pool(sessions, self._transport.targets)
            task = open_engine(own_tokenizer, max_rows, deadline, own_prefixes, pool)
            self._engine = run(task, self._transport)
            check_sessions(sessions, self._engine.versions.current)
            self._check_signatures(time_left(deadline))
        except BaseException:
            self._transport.close()
            raise

    def generate(
        self,
        prompts: Iterable[Prompt],
        *,
        max_new_tokens: int,
        **options: Unpack[GenerationKeywords],
    ) -> list[Generation]:
        """Continue each prompt; ``GenerationOptions`` describes the keywords.

        Args:
            prompts: texts, or lists of token ids taken as they are.

        Returns:
            One ``Generation`` per prompt, in order.
        """
        request = GenerationOptions(max_new_tokens=max_new_tokens, **options)
        self._check_open()
        with self._telemetry.operation("generate") as operation:
            task = self._engine.generate(prompts, request)
            results = run(task, self._transport, operation.observe)
            operation.ended(results)
        return results

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        **options: Unpack[GenerationKeywords],
    ) -> Stream:
        """Continue one prompt and give its text as it comes."""
        request = GenerationOptions(max_new_tokens=max_new_tokens, **options)
        task, sequence = self._engine.stream(prompt, request)
        self._check_open()
        chunks = streamed(task, sequence, self._transport, self._telemetry)
        return Stream(chunks, sequence)

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        *,
        max_new_tokens: int,
        **options: Unpack[GenerationKeywords],
    ) -> Iterator[Generation]:
        """Continue any number of prompts; gives each result when it is there.

        ``prompts`` is read as rows become free, so it may be endless, and results come
        in the order of their end: ``index`` says which prompt one belongs to. A
        ``timeout`` counts from a prompt's reading.
        """
        request = GenerationOptions(max_new_tokens=max_new_tokens, **options)
        self._check_open()
        if request.beams or request.samples > 1 or request.echo:
            for i, prompt in enumerate(prompts):
                (result,) = self.generate([prompt], **vars(request))
                yield replace(result, index=i)
            return
        task, sequences = self._engine.many(prompts, request)
        with self._telemetry.operation("generate_many") as operation:
            for chunk in drive(task, self._transport, operation.observe):
                if chunk.finish_reason is not None:
                    result = sequences.pop(chunk.index).generation()
                    operation.ended([result])
                    yield result

    def score(
        self,
        texts: Iterable[Prompt],
        *,
        top_logprobs: int = 0,
        timeout: float | None = None,
    ) -> list[Score]:
        """How likely the model finds each text (``Score.perplexity``).

        With ``top_logprobs`` 1 to 5 each result also has the likeliest tokens of each
        step, and where greedy decoding would have said the same. What several texts
        begin with is computed once, and long texts chunk by chunk.
        """
        task = self._engine.score(texts, top_logprobs, timeout)
        self._check_open()
        with self._telemetry.operation("score") as operation:
            scores = run(task, self._transport, operation.observe)
            operation.scored(scores)
        return scores

    def embed(
        self,
        texts: Iterable[Prompt],
        *,
        pooled: bool = False,
        timeout: float | None = None,
    ) -> list[np.ndarray]:
        """The last hidden states of each text, ``[tokens, E]`` float32; ``pooled``
        their mean, ``[E]``."""
        return self._run("embed", self._engine.embed(texts, pooled, timeout))

    def conversation(self) -> Conversation:
        """A conversation, which keeps its cache between turns."""
        self._check_open()
        return Conversation(self._engine, self._transport, self._telemetry)

    def encode(
        self, prompt: Prompt, options: GenerationOptions | None = None
    ) -> list[int]:
        """The token ids that a prompt is fed as.

        Raises:
            InvalidRequest: not a prompt of this model.
            PromptTooLong: more than ``options`` leave room for.
        """
        ids = self._engine.encode(prompt)
        return self._engine.fitted(ids, options) if options else ids

    def describe(self) -> Manifest:
        """What the served model says of itself."""
        return self._engine.versions.current.manifest

    @property
    def model_version(self) -> int:
        """The newest version that this client knows of."""
        return self._engine.versions.current.version

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer in use, None where there is none."""
        return self._engine.tokenizer

    def close(self) -> None:
        """Release the connections; further calls raise ``Cancelled``."""
        if not self._closed:
            self._closed = True
            self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, name: str, task: Task[T]) -> T:
        self._check_open()
        with self._telemetry.operation(name) as operation:
            return run(task, self._transport, operation.observe)

    def _check_signatures(self, timeout: float | None) -> None:
        """Compare what the server lists with what the manifest promises.

        A refusal to list is passed over: the version is gone again, or a proxy lets
        Predict through only.
        """
        model = self._engine.versions.current
        listed = None
        with suppress(ServerError, IncompatibleModel):
            listed = self._transport.metadata(version=model.version, timeout=timeout)
        if listed is not None:
            check_signatures(model, listed)

    def _check_open(self) -> None:
        if self._closed:
            raise Cancelled("this client is closed: make another one")


class Stream:
    """An iterator of ``Chunk``; also the handle that ends it early."""

    def __init__(
        self, chunks: Generator[Chunk, None, None], sequence: Sequence
    ) -> None:
        self._chunks = chunks
        self._sequence = sequence

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def cancel(self) -> None:
        """End it after the call that runs now; safe from another thread."""
        self._sequence.cancel()

    def close(self) -> None:
        """Drop it; the same thread only."""
        self._chunks.close()

    @property
    def generation(self) -> Generation:
        """The whole result.

        Raises:
            OptserveError: the stream has not ended.
        """
        if self._sequence.finish_reason is None:
            raise OptserveError("the stream has not ended: read it to its end first")
        return self._sequence.generation()

"""The blocking client.

with Client("127.0.0.1:8500", model="opt") as client:
    for piece in client.stream("Good morrow", max_new_tokens=64):
        print(piece.text, end="", flush=True)
    first, second = client.generate(["Once", [2, 713, 16]], max_new_tokens=32)
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..models.tokenizer import Tokenizer
from .contract import Manifest
from .conversation import Conversation
from .decoding.driver import drive, run
from .decoding.loop import Work
from .decoding.sequence import Row
from .decoding.served_signatures import compared
from .decoding.session import left, moment, open_core
from .errors import Cancelled, OptserveError
from .options import OptionKeywords, Options, Prompt
from .results import Generation, Piece, Score
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
        transport: a transport of your own instead of what ``target`` means.
        options: the transport's options: the fields of ``connection.Connection`` for
            servers (TLS, metadata, retries …), ``threads`` for a model in this process.

    Raises:
        IncompatibleModel: the served model was not exported by this project, or by
            another version of it.
        Unavailable, DeadlineExceeded: nobody answered in time.
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
        transport: Transport | None = None,
        **options: Unpack[TransportKeywords],
    ) -> None:
        given = open_tokenizer(tokenizer)
        self._telemetry = open_telemetry(telemetry, model)
        self._transport = transport or open_transport(
            target, model, label, dict(options)
        )
        self._closed = False
        try:
            until_ready = getattr(self._transport, "wait_until_ready", None)
            if wait is not None and until_ready:
                until_ready(wait)
            deadline = moment(connect_timeout)
            self._core = run(open_core(given, max_rows, deadline), self._transport)
            if metadata := getattr(self._transport, "metadata", None):
                found = self._core.catalog.current
                with compared(found) as answers:
                    answers.append(
                        metadata(version=found.version, timeout=left(deadline))
                    )
        except BaseException:
            self._transport.close()
            raise

    def generate(
        self,
        prompts: Iterable[Prompt],
        *,
        max_new_tokens: int,
        **options: Unpack[OptionKeywords],
    ) -> list[Generation]:
        """Continue each prompt; ``Options`` tells the keywords.

        Args:
            prompts: texts, or lists of token ids taken as they are.

        Returns:
            One ``Generation`` per prompt, in order.
        """
        wanted = Options(max_new_tokens=max_new_tokens, **options)
        self._check_open()
        with self._telemetry.operation("generate") as operation:
            work = self._core.generate(prompts, wanted)
            results = run(work, operation.over(self._transport))
            operation.ended(results)
        return results

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        **options: Unpack[OptionKeywords],
    ) -> Stream:
        """Continue one prompt and give its text as it comes."""
        wanted = Options(max_new_tokens=max_new_tokens, **options)
        work, row = self._core.stream(prompt, wanted)
        self._check_open()
        return Stream(streamed(work, row, self._transport, self._telemetry), row)

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        *,
        max_new_tokens: int,
        **options: Unpack[OptionKeywords],
    ) -> Iterator[Generation]:
        """Continue any number of prompts; gives each result when it is there.

        ``prompts`` is read as rows become free, so it may be endless, and results come
        in the order of their end: ``index`` says which prompt one belongs to. A
        ``timeout`` counts from a prompt's reading.
        """
        wanted = Options(max_new_tokens=max_new_tokens, **options)
        self._check_open()
        if wanted.beams or wanted.samples > 1 or wanted.echo:
            for i, prompt in enumerate(prompts):
                (result,) = self.generate([prompt], **vars(wanted))
                yield replace(result, index=i)
            return
        work, rows = self._core.many(prompts, wanted)
        with self._telemetry.operation("generate_many") as operation:
            for piece in drive(work, operation.over(self._transport)):
                if piece.finish_reason is not None:
                    result = rows.pop(piece.index).generation()
                    operation.ended([result])
                    yield result

    def score(
        self, texts: Iterable[Prompt], *, timeout: float | None = None
    ) -> list[Score]:
        """How likely the model finds each text (``Score.perplexity``)."""
        return self._run("score", self._core.score(texts, timeout))

    def embed(
        self, texts: Iterable[Prompt], *, timeout: float | None = None
    ) -> list[np.ndarray]:
        """The last hidden states of each text, ``[tokens, E]`` float32."""
        return self._run("embed", self._core.embed(texts, timeout))

    def conversation(self) -> Conversation:
        """A conversation, which keeps its cache between turns."""
        self._check_open()
        return Conversation(self._core, self._transport, self._telemetry)

    def encode(self, prompt: Prompt, options: Options | None = None) -> list[int]:
        """The token ids that a prompt is fed as.

        Raises:
            InvalidRequest: not a prompt of this model.
            PromptTooLong: more than ``options`` leave room for.
        """
        ids = self._core.encode(prompt)
        return self._core.fitted(ids, options) if options else ids

    def describe(self) -> Manifest:
        """What the served model says of itself."""
        return self._core.catalog.current.manifest

    @property
    def model_version(self) -> int:
        """The newest version that this client knows of."""
        return self._core.catalog.current.version

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer in use, None where there is none."""
        return self._core.tokenizer

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

    def _run(self, name: str, work: Work[T]) -> T:
        self._check_open()
        with self._telemetry.operation(name) as operation:
            return run(work, operation.over(self._transport))

    def _check_open(self) -> None:
        if self._closed:
            raise Cancelled("this client is closed: make another one")


class Stream:
    """An iterator of ``Piece``; also the handle that ends it early."""

    def __init__(self, pieces: Generator[Piece, None, None], row: Row) -> None:
        self._row = row
        self._pieces = pieces

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def cancel(self) -> None:
        """End it after the call that runs now; safe from another thread."""
        self._row.cancel()

    def close(self) -> None:
        """Drop it; the same thread only."""
        self._pieces.close()

    @property
    def generation(self) -> Generation:
        """The whole result.

        Raises:
            OptserveError: the stream has not ended.
        """
        if self._row.finish_reason is None:
            raise OptserveError("the stream has not ended: read it to its end first")
        return self._row.generation()

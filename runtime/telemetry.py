"""Spans, metrics and log lines of what the client does; never prompts or secrets.

With ``opentelemetry-api`` (``optserve[telemetry]``) each operation is a span whose
children are its calls, and generations count in the metrics that OpenTelemetry's
conventions for generative models name (``gen_ai.*``). Without it, or where the program
doesn't use it, nothing is imported and nothing is paid.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .decoding.driver import drive, drive_async
from .decoding.loop import Work
from .decoding.sequence import Row
from .errors import InvalidRequest
from .results import Generation, Piece
from .transports.base import AsyncTransport, Call, Reply, Transport

_log = logging.getLogger("optserve.client")


class Telemetry:
    """Log lines only; ``OpenTelemetry`` adds spans and metrics."""

    @contextmanager
    def operation(self, name: str) -> Iterator[Operation]:
        """One call of a client's method, from its beginning to its end."""
        try:
            yield Operation()
        except Exception as error:
            _log.info("%s failed: %s", name, type(error).__name__)
            raise


class Operation:
    """What is under way; its transports tell of each call."""

    def over(self, transport: Transport) -> Transport:
        """The transport, watched."""
        return _Watched(transport, self)

    def over_async(self, transport: AsyncTransport) -> AsyncTransport:
        """The transport, watched."""
        return _WatchedAsync(transport, self)

    def ended(self, generations: Iterable[Generation]) -> None:
        """Note results."""
        for result in generations:
            if result.rebuilds:
                _log.warning(
                    "a generation's cache was built again %d times: its model version "
                    "went away, %d serves it now",
                    result.rebuilds,
                    result.model_version,
                )
            _log.info(
                "generation: %d prompt tokens, %d new, first after %.3f s, all after "
                "%.3f s, %s, version %d",
                result.prompt_tokens,
                len(result.tokens),
                result.counters.first_token_seconds,
                result.counters.seconds,
                result.finish_reason,
                result.model_version,
            )

    @contextmanager
    def calling(self, call: Call) -> Iterator[list[Reply]]:
        """Around one call; the caller adds the reply to the list."""
        replies: list[Reply] = []
        yield replies
        if _log.isEnabledFor(logging.DEBUG):
            for reply in replies:
                _log.debug("%s", _sentence(call, reply))


class OpenTelemetry(Telemetry):
    """Spans and metrics through the program's own providers."""

    def __init__(self, model: str) -> None:
        from opentelemetry import metrics, trace

        self._model = model
        self._trace = trace
        self.tracer = trace.get_tracer("optserve")
        meter = metrics.get_meter("optserve")
        self.tokens = meter.create_histogram("gen_ai.client.token.usage", "{token}")
        self.duration = meter.create_histogram("gen_ai.client.operation.duration", "s")
        self.first = meter.create_histogram("gen_ai.client.time_to_first_token", "s")
        self.per_token = meter.create_histogram(
            "gen_ai.client.time_per_output_token", "s"
        )
        self.call = meter.create_histogram("optserve.client.call.duration", "s")
        self.sent = meter.create_counter("optserve.client.sent", "By")
        self.received = meter.create_counter("optserve.client.received", "By")
        self.retries = meter.create_counter("optserve.client.retries", "{retry}")
        self.rebuilds = meter.create_counter("optserve.client.rebuilds", "{rebuild}")

    @property
    def attributes(self) -> dict[str, str]:
        """What every metric and span carries."""
        return {
            "gen_ai.provider.name": "optserve",
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.model": self._model,
        }

    @contextmanager
    def operation(self, name: str) -> Iterator[Operation]:
        """A span for the operation."""
        kind = self._trace.SpanKind.CLIENT
        span = self.tracer.start_span(
            f"{name} {self._model}", kind=kind, attributes=self.attributes
        )
        try:
            with super().operation(name):
                yield _Spans(self, span, self._trace.set_span_in_context(span))
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
            raise
        finally:
            span.end()


class _Spans(Operation):
    def __init__(self, telemetry: OpenTelemetry, span: Any, context: Any) -> None:
        self._telemetry, self._span, self._context = telemetry, span, context
        self._input = self._output = 0

    def ended(self, generations: Iterable[Generation]) -> None:
        several = list(generations)
        super().ended(several)
        for result in several:
            self._measure(result)
        self._input += sum(result.prompt_tokens for result in several)
        self._output += sum(len(result.tokens) for result in several)
        self._span.set_attributes(
            {
                "gen_ai.usage.input_tokens": self._input,
                "gen_ai.usage.output_tokens": self._output,
            }
        )
        if several:
            self._span.set_attribute(
                "gen_ai.response.finish_reasons", [g.finish_reason for g in several]
            )

    def _measure(self, result: Generation) -> None:
        telemetry, common = self._telemetry, self._telemetry.attributes
        kinds = (("input", result.prompt_tokens), ("output", len(result.tokens)))
        for kind, count in kinds:
            telemetry.tokens.record(count, {**common, "gen_ai.token.type": kind})
        telemetry.duration.record(result.counters.seconds, common)
        telemetry.first.record(result.counters.first_token_seconds, common)
        if result.token_seconds:
            telemetry.per_token.record(result.token_seconds, common)
        if result.rebuilds:
            telemetry.rebuilds.add(result.rebuilds, common)

    @contextmanager
    def calling(self, call: Call) -> Iterator[list[Reply]]:
        telemetry = self._telemetry
        attributes = {"optserve.signature": call.signature, "optserve.rows": call.rows}
        with (
            telemetry.tracer.start_as_current_span(
                f"call {call.signature}",
                context=self._context,
                attributes=attributes,
                record_exception=False,
                set_status_on_exception=False,
            ) as span,
            super().calling(call) as replies,
        ):
            yield replies
            for reply in replies:
                told = {
                    "optserve.model_version": reply.version,
                    "optserve.bytes_sent": reply.bytes_sent,
                    "optserve.bytes_received": reply.bytes_received,
                    "optserve.retries": reply.retries,
                    "server.address": reply.target,
                }
                span.set_attributes(told)
                name = {"optserve.signature": call.signature}
                telemetry.call.record(reply.seconds, name)
                telemetry.sent.add(reply.bytes_sent, name)
                telemetry.received.add(reply.bytes_received, name)
                if reply.retries:
                    telemetry.retries.add(reply.retries, name)


class _Watched:
    def __init__(self, transport: Transport, operation: Operation) -> None:
        self._transport, self._operation = transport, operation

    def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        with self._operation.calling(call) as replies:
            replies.append(self._transport.call(call, timeout=timeout))
        return replies[0]

    def close(self) -> None:
        self._transport.close()


class _WatchedAsync:
    def __init__(self, transport: AsyncTransport, operation: Operation) -> None:
        self._transport, self._operation = transport, operation

    async def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        with self._operation.calling(call) as replies:
            replies.append(await self._transport.call(call, timeout=timeout))
        return replies[0]

    async def close(self) -> None:
        await self._transport.close()


def streamed(
    work: Work[None], row: Row, transport: Transport, telemetry: Telemetry
) -> Generator[Piece, None, None]:
    """The pieces of a row's work, as an operation of its own."""
    with telemetry.operation("stream") as operation:
        yield from drive(work, operation.over(transport))
        operation.ended([row.generation()])


async def streamed_async(
    work: Work[None], row: Row, transport: AsyncTransport, telemetry: Telemetry
) -> AsyncGenerator[Piece, None]:
    """``streamed`` for asyncio."""
    with telemetry.operation("stream") as operation:
        pieces = drive_async(work, operation.over_async(transport))
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()
        operation.ended([row.generation()])


def open_telemetry(wanted: bool | None, model: str) -> Telemetry:
    """OpenTelemetry where it is wanted; None means where the program uses it.

    Raises:
        InvalidRequest: wanted, and not installed.
    """
    if wanted is None:
        wanted = "opentelemetry" in sys.modules
    if not wanted:
        return Telemetry()
    try:
        return OpenTelemetry(model)
    except ImportError:
        raise InvalidRequest(
            "telemetry needs the OpenTelemetry API: pip install 'optserve[telemetry]'"
        ) from None


def _sentence(call: Call, reply: Reply) -> str:
    return (
        f"{call.signature}: {call.rows} rows in {1000 * reply.seconds:.1f} ms, "
        f"{reply.bytes_sent} bytes sent, {reply.bytes_received} received, "
        f"{reply.retries} retries, version {reply.version}"
    )

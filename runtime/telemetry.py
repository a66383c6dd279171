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

from .decoding.driver import ObservedCall, drive, drive_async
from .decoding.sequence import Sequence
from .decoding.task import Task
from .errors import InvalidRequest
from .results import Chunk, Generation, Score
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
    """What is under way; ``observe`` goes around each of its calls."""

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

    def scored(self, scores: Iterable[Score]) -> None:
        """Note what the prefix cache knew of texts."""

    @contextmanager
    def observe(self, call: Call) -> Iterator[ObservedCall]:
        """Around one call (``driver.Observe``)."""
        observed = ObservedCall()
        yield observed
        if observed.reply and _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s", _sentence(call, observed.reply))


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
        self.session_losses = meter.create_counter(
            "optserve.client.session_losses", "{slot}"
        )
        self.session_fallbacks = meter.create_counter(
            "optserve.client.session_fallbacks", "{generation}"
        )
        self.cached = meter.create_counter("optserve.client.cached_tokens", "{token}")
        self.cached_bytes = meter.create_counter("optserve.client.cached", "By")

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
        self._input = self._output = self._cached = 0

    def ended(self, generations: Iterable[Generation]) -> None:
        results = list(generations)
        super().ended(results)
        for result in results:
            self._measure(result)
        self._input += sum(result.prompt_tokens for result in results)
        self._output += sum(len(result.tokens) for result in results)
        self._cached += sum(result.cached_prompt_tokens for result in results)
        self._span.set_attributes(
            {
                "gen_ai.usage.input_tokens": self._input,
                "gen_ai.usage.output_tokens": self._output,
                "gen_ai.usage.cache_read.input_tokens": self._cached,
            }
        )
        if results:
            self._span.set_attribute(
                "gen_ai.response.finish_reasons", [g.finish_reason for g in results]
            )

    def scored(self, scores: Iterable[Score]) -> None:
        for score in scores:
            self._count_cached(score.cached_tokens, score.cached_bytes)

    def _count_cached(self, tokens: int, size: int) -> None:
        if tokens:
            self._telemetry.cached.add(tokens, self._telemetry.attributes)
            self._telemetry.cached_bytes.add(size, self._telemetry.attributes)

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
        if result.counters.session_losses:
            telemetry.session_losses.add(result.counters.session_losses, common)
        if result.counters.session_fallbacks:
            telemetry.session_fallbacks.add(result.counters.session_fallbacks, common)
        self._count_cached(result.cached_prompt_tokens, result.counters.cached_bytes)

    @contextmanager
    def observe(self, call: Call) -> Iterator[ObservedCall]:
        attributes = {"optserve.signature": call.signature, "optserve.rows": call.rows}
        with (
            self._telemetry.tracer.start_as_current_span(
                f"call {call.signature}",
                context=self._context,
                attributes=attributes,
                record_exception=False,
                set_status_on_exception=False,
            ) as span,
            super().observe(call) as observed,
        ):
            yield observed
            if observed.reply:
                self._measure_call(span, call, observed.reply)

    def _measure_call(self, span: Any, call: Call, reply: Reply) -> None:
        span.set_attributes(
            {
                "optserve.model_version": reply.version,
                "optserve.bytes_sent": reply.bytes_sent,
                "optserve.bytes_received": reply.bytes_received,
                "optserve.retries": reply.retries,
                "server.address": reply.target,
            }
        )
        telemetry, name = self._telemetry, {"optserve.signature": call.signature}
        telemetry.call.record(reply.seconds, name)
        telemetry.sent.add(reply.bytes_sent, name)
        telemetry.received.add(reply.bytes_received, name)
        if reply.retries:
            telemetry.retries.add(reply.retries, name)


def streamed(
    task: Task[None], sequence: Sequence, transport: Transport, telemetry: Telemetry
) -> Generator[Chunk, None, None]:
    """The chunks of a sequence's task, as an operation of its own."""
    with telemetry.operation("stream") as operation:
        yield from drive(task, transport, operation.observe)
        operation.ended([sequence.generation()])


async def streamed_async(
    task: Task[None],
    sequence: Sequence,
    transport: AsyncTransport,
    telemetry: Telemetry,
) -> AsyncGenerator[Chunk, None]:
    """``streamed`` for asyncio."""
    with telemetry.operation("stream") as operation:
        chunks = drive_async(task, transport, operation.observe)
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()
        operation.ended([sequence.generation()])


def open_telemetry(enabled: bool | None, model: str) -> Telemetry:
    """OpenTelemetry where it is enabled; None means where the program uses it.

    Raises:
        InvalidRequest: enabled, and not installed.
    """
    if enabled is None:
        enabled = "opentelemetry" in sys.modules
    if not enabled:
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

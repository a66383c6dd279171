"""OpenTelemetry of a gateway: a span and metrics of each generation that it serves.

Names follow the conventions for generative models (``gen_ai.*``, of which
``gen_ai.server.*`` are a server's). The spans continue the caller's trace
(``traceparent``), and those of the client's calls are below them. No prompt or text is
in any. Where the program doesn't use OpenTelemetry, nothing is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..results import Generation


class Tracing:
    """Nothing; ``OpenTelemetryTracing`` has spans and metrics."""

    def continue_trace(self, headers: Mapping[str, str]) -> None:
        """Let spans of this task, and of those it starts, belong to the caller's."""

    @contextmanager
    def generation(self, operation: str, model: str) -> Iterator[GenerationSpan]:
        """Around one generation, its wait for a place included."""
        yield GenerationSpan()


class GenerationSpan:
    """One generation under way."""

    def ended(self, result: Generation, *, first: float | None, whole: float) -> None:
        """Note what it gave, and seconds until its first token and in all."""


class OpenTelemetryTracing(Tracing):
    """Through the program's own providers."""

    def __init__(self) -> None:
        from opentelemetry import context, metrics, propagate, trace

        self._attach, self._extract = context.attach, propagate.extract
        self._trace = trace
        self._tracer = trace.get_tracer("optserve.gateway")
        meter = metrics.get_meter("optserve.gateway")
        self.duration = meter.create_histogram("gen_ai.server.request.duration", "s")
        self.first = meter.create_histogram("gen_ai.server.time_to_first_token", "s")
        self.each = meter.create_histogram("gen_ai.server.time_per_output_token", "s")

    def continue_trace(self, headers: Mapping[str, str]) -> None:
        self._attach(self._extract(headers))

    @contextmanager
    def generation(self, operation: str, model: str) -> Iterator[GenerationSpan]:
        attributes = {
            "gen_ai.provider.name": "optserve",
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": model,
        }
        span = self._tracer.start_as_current_span(
            f"{operation} {model}",
            kind=self._trace.SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,  # messages may quote what callers sent
            set_status_on_exception=False,
        )
        with span as current:
            try:
                yield _Span(self, current, attributes)
            except Exception as error:
                current.set_attribute("error.type", type(error).__name__)
                current.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
                raise


class _Span(GenerationSpan):
    def __init__(
        self, tracing: OpenTelemetryTracing, span: Any, attributes: Mapping[str, str]
    ) -> None:
        self._tracing, self._span, self._attributes = tracing, span, attributes

    def ended(self, result: Generation, *, first: float | None, whole: float) -> None:
        new = len(result.tokens)
        self._span.set_attributes(
            {
                "gen_ai.usage.input_tokens": result.prompt_tokens,
                "gen_ai.usage.output_tokens": new,
                "gen_ai.usage.cache_read.input_tokens": result.cached_prompt_tokens,
                "gen_ai.response.finish_reasons": [result.finish_reason],
            }
        )
        tracing, common = self._tracing, self._attributes
        tracing.duration.record(whole, common)
        if first is not None:
            tracing.first.record(first, common)
            if new > 1:
                tracing.each.record(max(0.0, (whole - first) / (new - 1)), common)


def open_tracing() -> Tracing:
    """With OpenTelemetry where the program has imported it."""
    return OpenTelemetryTracing() if "opentelemetry" in sys.modules else Tracing()

"""Figures for Prometheus, under vLLM's names where they mean the same.

So dashboards and autoscalers made for vLLM work (its list:
https://docs.vllm.ai/en/latest/usage/metrics.html). Each has the label ``model_name``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ..results import Generation
from .tracing import GenerationSpan

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The gateway's figures in a registry of their own.

    Args:
        models: the names that figures are counted under.
        running, waiting: tell how many generations of a model run and wait now.
        caches: tells what share of its places for caches is in use, 0 to 1.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(
        self,
        models: Sequence[str],
        running: Callable[[str], float],
        waiting: Callable[[str], float],
        caches: Callable[[str], float],
    ) -> None:
        registry = self._registry = CollectorRegistry()
        names = ["model_name"]

        def gauge(name: str, text: str, value: Callable[[str], float]) -> None:
            metric = Gauge(f"vllm:{name}", text, names, registry=registry)
            for model in models:
                metric.labels(model).set_function(partial(value, model))

        def counter(name: str, text: str, more: tuple[str, ...] = ()) -> Counter:
            return Counter(f"vllm:{name}", text, [*names, *more], registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(
                f"vllm:{name}", text, names, buckets=buckets, registry=registry
            )

        gauge("num_requests_running", "Generations under way.", running)
        gauge("num_requests_waiting", "Generations that wait for a place.", waiting)
        gauge(
            "kv_cache_usage_perc",
            "Share of the places for caches in use, 1 is all: servers' sessions, or "
            "generations under way of those that may be.",
            caches,
        )
        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._new = counter("generation_tokens", "Tokens generated.")
        self._queries = counter(
            "prefix_cache_queries", "Prompt tokens looked for in the prefix cache."
        )
        self._hits = counter("prefix_cache_hits", "Prompt tokens that it had.")
        self._ended = counter(
            "request_success", "Generations by why they ended.", ("finished_reason",)
        )
        self._first = histogram(
            "time_to_first_token_seconds", "Until the first token, s.", _FIRST
        )
        self._each = histogram(
            "time_per_output_token_seconds", "Per token after the first, s.", _TOKEN
        )
        self._whole = histogram(
            "e2e_request_latency_seconds", "Of a whole generation, s.", _WHOLE
        )
        self._waited = histogram(
            "request_queue_time_seconds", "Until a place was free, s.", _WHOLE
        )

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)

    def clock(self, model: str, span: GenerationSpan) -> GenerationClock:
        """Measures one generation, from now."""
        return GenerationClock(self, model, span)


class GenerationClock:
    """One generation's times; begun when its request is there."""

    def __init__(self, metrics: Metrics, model: str, span: GenerationSpan) -> None:
        self._metrics, self._model, self._span = metrics, model, span
        self._begin = self._last = time.monotonic()
        self._first: float | None = None

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begin

    def started(self) -> None:
        """It has a place."""
        self._metrics._waited.labels(self._model).observe(self.seconds)

    def first_token(self, after: float | None = None) -> None:
        """Its first token is there, or was so many seconds after its start."""
        if self._first is None:
            self._first = self.seconds if after is None else after
            self._metrics._first.labels(self._model).observe(self._first)

    def ended(self, result: Generation) -> None:
        """It has ended, with this result."""
        metrics, model, new = self._metrics, self._model, len(result.tokens)
        metrics._prompt.labels(model).inc(result.prompt_tokens)
        metrics._queries.labels(model).inc(result.prompt_tokens)
        metrics._hits.labels(model).inc(result.cached_prompt_tokens)
        metrics._new.labels(model).inc(new)
        metrics._ended.labels(model, result.finish_reason).inc()
        metrics._whole.labels(model).observe(self.seconds)
        if self._first is not None and new > 1:
            each = (self.seconds - self._first) / (new - 1)
            metrics._each.labels(model).observe(max(0.0, each))
        self._span.ended(result, first=self._first, whole=self.seconds)

"""What operators see, and that they never see a prompt."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys

import pytest
from optserve.runtime import AsyncClient, Client, ServerError
from optserve.runtime.transports.base import Call

from .numpy_model import AsyncNumpy, NumpyTransport
from .small_tokenizer import SMALL_TOKENIZER

SECRET = "my secret"


@pytest.fixture(scope="module")
def recorded():
    """Exporters that remember; OpenTelemetry's providers are set once a process."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
        InMemorySpanExporter,
    )

    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    return spans, reader


def points(reader) -> dict[str, list]:
    metrics: dict[str, list] = {}
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                metrics[metric.name] = list(metric.data.data_points)
    return metrics


def everything(spans) -> str:
    return " ".join(span.to_json() for span in spans.get_finished_spans())


def test_spans_and_metrics(recorded):
    spans, reader = recorded
    spans.clear()
    transport = NumpyTransport(tokenizer=SMALL_TOKENIZER)
    with Client(transport=transport, model="tiny", telemetry=True) as client:
        client.generate([SECRET, "x"], max_new_tokens=4, stop_token_ids=[])
        list(client.stream(SECRET, max_new_tokens=3, stop_token_ids=[]))
        client.score([SECRET])
    finished = spans.get_finished_spans()
    tops = {span.name: span for span in finished if span.parent is None}
    assert set(tops) == {"generate tiny", "stream tiny", "score tiny"}
    top = tops["generate tiny"]
    assert top.attributes["gen_ai.usage.output_tokens"] == 8
    assert top.attributes["gen_ai.usage.input_tokens"] == 10 + 2
    assert top.attributes["gen_ai.response.finish_reasons"] == ("length", "length")
    calls = [
        s for s in finished if s.parent and s.parent.span_id == top.context.span_id
    ]
    assert {s.name for s in calls} == {"call prefill", "call decode"}
    assert all(s.attributes["optserve.bytes_sent"] > 0 for s in calls)
    metrics = points(reader)
    output = [
        p
        for p in metrics["gen_ai.client.token.usage"]
        if p.attributes["gen_ai.token.type"] == "output"
    ]
    assert sum(p.sum for p in output) == 8 + 3
    for name in (
        "gen_ai.client.operation.duration",
        "gen_ai.client.time_to_first_token",
        "gen_ai.client.time_per_output_token",
        "optserve.client.call.duration",
        "optserve.client.sent",
        "optserve.client.received",
    ):
        assert metrics[name], name
    assert SECRET not in everything(spans)


def test_what_caches_spared_and_what_sessions_lost_is_counted(recorded):
    spans, reader = recorded
    spans.clear()
    prompt = [2, *range(5, 40)]
    for sessions in ({}, {"slots": 1, "positions": 64}):
        transport = NumpyTransport(checkpoint_digest="a" * 64, sessions=sessions)
        options = {"prefix_cache": 1 << 20, "model": "tiny", "telemetry": True}
        with Client(transport=transport, **options) as client:
            client.generate([prompt], max_new_tokens=1)
            if sessions:
                transport.restart()
            client.generate([prompt], max_new_tokens=1)
    totals = {
        name: sum(point.value for point in recorded_points)
        for name, recorded_points in points(reader).items()
        if name.startswith(("optserve.client.cached", "optserve.client.session"))
    }
    assert totals == {
        "optserve.client.cached_tokens": 32,
        "optserve.client.cached": 32 * 4 * 3 * 2 * 4 * 8,
        "optserve.client.session_losses": 1,
    }
    (*_, read) = [s for s in spans.get_finished_spans() if s.parent is None][:2]
    assert read.attributes["gen_ai.usage.cache_read.input_tokens"] == 32


def test_failures_are_marked(recorded):
    spans, _ = recorded
    spans.clear()

    def refuse(call: Call) -> None:
        raise ServerError(f"no {SECRET}", "INTERNAL")

    transport = AsyncNumpy(tokenizer=SMALL_TOKENIZER)

    async def go():
        async with AsyncClient(transport=transport, telemetry=True) as client:
            transport.inner.before = refuse
            with pytest.raises(ServerError):
                await client.generate([SECRET], max_new_tokens=2)

    asyncio.run(go())
    (top,) = [s for s in spans.get_finished_spans() if s.parent is None]
    assert top.attributes["error.type"] == "ServerError"
    assert not top.status.is_ok
    assert SECRET not in everything(spans)


def test_log_lines_tell_of_work_and_never_of_prompts(caplog):
    transport = NumpyTransport(tokenizer=SMALL_TOKENIZER)
    with (
        caplog.at_level(logging.DEBUG, logger="optserve"),
        Client(transport=transport, telemetry=False) as client,
    ):
        stream = client.stream(SECRET, max_new_tokens=5, stop_token_ids=[])
        next(stream)
        transport.versions = {2: transport.model}
        list(stream)
    assert "prefill: 1 rows" in caplog.text
    assert "10 prompt tokens, 5 new" in caplog.text
    assert "built again 1 times" in caplog.text
    assert SECRET not in caplog.text


def test_nothing_is_imported_where_the_program_does_not_use_it():
    script = (
        "import sys; from optserve.runtime.telemetry import open_telemetry as o;"
        "o(None, 'm'); o(False, 'm'); sys.exit('opentelemetry' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

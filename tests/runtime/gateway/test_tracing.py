"""Spans of a gateway, in a process of its own: providers are set once in each."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("opentelemetry.sdk")
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PROGRAM = """
import json, sys
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([reader]))

import httpx
from tests.runtime.gateway.conftest import running

with running() as (address, _), httpx.Client(base_url=address) as http:
    for stream in (False, True):
        body = {"prompt": "my secret", "max_tokens": 4, "ignore_eos": True}
        headers = {"traceparent": sys.argv[1]}
        http.post("/v1/completions", json={**body, "stream": stream}, headers=headers)
names = {
    metric.name: sum(point.count for point in metric.data.data_points)
    for resource in reader.get_metrics_data().resource_metrics
    for scope in resource.scope_metrics
    for metric in scope.metrics
    if metric.name.startswith("gen_ai.server")
}
told = [json.loads(span.to_json(indent=None)) for span in spans.get_finished_spans()]
print(json.dumps({"spans": told, "metrics": names}))
"""


@pytest.fixture(scope="module")
def told():
    words = [sys.executable, "-c", PROGRAM, f"00-{TRACE}-{PARENT}-01"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "secret" not in done.stdout
    return json.loads(done.stdout)


def test_generations_continue_the_callers_trace(told):
    tops = [span for span in told["spans"] if span["kind"] == "SpanKind.SERVER"]
    assert [span["name"] for span in tops] == ["text_completion opt"] * 2
    for span in tops:
        assert span["parent_id"] == f"0x{PARENT}"
        assert span["context"]["trace_id"] == f"0x{TRACE}"
        assert span["attributes"]["gen_ai.operation.name"] == "text_completion"
        assert span["attributes"]["gen_ai.usage.output_tokens"] == 4
        assert span["attributes"]["gen_ai.response.finish_reasons"] == ["length"]


def test_the_clients_spans_are_below(told):
    tops = {
        span["context"]["span_id"]
        for span in told["spans"]
        if span["kind"] == "SpanKind.SERVER"
    }
    below = [span for span in told["spans"] if span["parent_id"] in tops]
    assert {span["name"] for span in below} == {"generate opt", "stream opt"}


def test_the_servers_metrics(told):
    assert told["metrics"] == {
        "gen_ai.server.request.duration": 2,
        "gen_ai.server.time_to_first_token": 2,
        "gen_ai.server.time_per_output_token": 2,
    }

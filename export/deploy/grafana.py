"""A Grafana dashboard of the gateway: vLLM's metric names, so that either's fits.

The file is what Grafana imports (dashboard JSON model, schema version 39). Its data
source is a variable: whichever Prometheus the reader picks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_WIDTH, _HEIGHT = 12, 8  # of a panel, in Grafana's grid of 24 columns
_MODEL = '{model_name=~"$model"}'


@dataclass(frozen=True)
class Panel:
    """A plot: what its lines are called, and Prometheus' expression of each."""

    title: str
    unit: str
    lines: Sequence[tuple[str, str]]


def _rate(name: str, *, by: str = "") -> str:
    total = f"rate(vllm:{name}{_MODEL}[$__rate_interval])"
    return f"sum by ({by}) ({total})" if by else f"sum({total})"


def _quantiles(name: str) -> list[tuple[str, str]]:
    buckets = _rate(f"{name}_bucket", by="le")
    return [
        (f"p{round(100 * q)}", f"histogram_quantile({q}, {buckets})")
        for q in (0.5, 0.95, 0.99)
    ]


def _now(name: str) -> str:
    return f"sum(vllm:{name}{_MODEL})"


PANELS = (
    Panel(
        "Tokens per second",
        "short",
        [
            ("generated", _rate("generation_tokens_total")),
            ("of prompts", _rate("prompt_tokens_total")),
        ],
    ),
    Panel(
        "Requests",
        "short",
        [
            ("running", _now("num_requests_running")),
            ("waiting", _now("num_requests_waiting")),
        ],
    ),
    Panel("Time to first token", "s", _quantiles("time_to_first_token_seconds")),
    Panel("Time per output token", "s", _quantiles("time_per_output_token_seconds")),
    Panel("Whole request", "s", _quantiles("e2e_request_latency_seconds")),
    Panel("Time in the queue", "s", _quantiles("request_queue_time_seconds")),
    Panel(
        "Ended, by reason",
        "reqps",
        [
            (
                "{{finished_reason}}",
                _rate("request_success_total", by="finished_reason"),
            )
        ],
    ),
    Panel(
        "Caches in use, and prompt tokens found in the prefix cache",
        "percentunit",
        [
            ("caches", f"avg(vllm:kv_cache_usage_perc{_MODEL})"),
            (
                "found",
                f"{_rate('prefix_cache_hits_total')} / "
                f"{_rate('prefix_cache_queries_total')}",
            ),
        ],
    ),
)


def dashboard(name: str) -> str:
    """The dashboard of one deployment, as JSON."""
    document = {
        "uid": f"optserve-{name}"[:40],
        "title": f"optserve gateway: {name}",
        "tags": ["optserve"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source(), _model()]},
        "panels": [_panel(i, panel) for i, panel in enumerate(PANELS)],
    }
    return json.dumps(document, indent=2) + "\n"


def _source() -> dict[str, Any]:
    return {"name": "source", "type": "datasource", "query": "prometheus"}


def _model() -> dict[str, Any]:
    query = "label_values(vllm:num_requests_running, model_name)"
    return {
        "name": "model",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "query": {"query": query, "refId": "model"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(i: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "id": i + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": source,
        "gridPos": {
            "x": _WIDTH * (i % 2),
            "y": _HEIGHT * (i // 2),
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0},
            "overrides": [],
        },
        "targets": [
            {
                "refId": chr(65 + j),
                "datasource": source,
                "expr": expr,
                "legendFormat": x,
            }
            for j, (x, expr) in enumerate(panel.lines)
        ],
    }

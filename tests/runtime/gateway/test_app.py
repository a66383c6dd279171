"""The other paths, limits, and callers that go away."""

from __future__ import annotations

import json
import socket
import time

import httpx
import numpy as np
import openai
import pytest
from optserve.runtime import AsyncClient
from optserve.runtime.gateway import GatewaySettings, create_app
from prometheus_client.parser import text_string_to_metric_families

from tests.runtime.numpy_model import AsyncNumpy

from .conftest import MODEL, running, serving


def test_models(http, direct):
    (model,) = http.get("/v1/models").json()["data"]
    assert model["id"] == "opt"
    assert model["max_model_len"] == direct.describe().max_positions
    assert http.get("/v1/models/opt").json() == model
    assert http.get("/v1/models/gpt").status_code == 404
    answer = http.post("/v1/completions", json={"model": "gpt", "prompt": "a"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_are_the_mean_of_the_hidden_states(address, direct, form):
    texts = ["good day", "x"]
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any") as client:
        answer = client.embeddings.create(
            model="opt", input=texts, encoding_format=form
        )
    for item, states in zip(answer.data, direct.embed(texts), strict=True):
        vector = item.embedding
        if isinstance(vector, str):
            import base64

            vector = np.frombuffer(base64.b64decode(vector), "<f4")
        np.testing.assert_allclose(vector, states.mean(axis=0), atol=1e-6)


def test_tokens_there_and_back(http, direct):
    answer = http.post("/tokenize", json={"prompt": "good day"}).json()
    assert answer["tokens"] == direct.encode("good day")
    assert answer["count"] == len(answer["tokens"])
    bare = {"prompt": "good day", "add_special_tokens": False}
    tokens = http.post("/tokenize", json=bare).json()["tokens"]
    assert [2, *tokens] == answer["tokens"]
    text = http.post("/detokenize", json={"tokens": tokens}).json()
    assert text == {"prompt": "good day"}
    info = http.get("/tokenizer_info").json()
    assert info == {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    wrong = http.post("/detokenize", json={"tokens": [10**6]})
    assert wrong.status_code == 400


def test_health_version_and_documentation(http):
    assert http.get("/health").status_code == 200
    assert http.get("/ready").json() == {"status": "ready"}
    assert set(http.get("/version").json()) == {"version"}
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        for method in methods:
            answer = http.request(method, path.format(name="opt"), json={})
            assert answer.status_code in (200, 400), path
    assert {"/v1/completions", "/v1/models/{name}"} < set(document["paths"])
    page = http.get("/docs").text
    assert "/v1/embeddings" in page
    assert "http://" not in page and "https://" not in page  # nothing from elsewhere


def test_the_page_loads_nothing_from_elsewhere(http):
    for path in ("/", "/page.css", "/page.js"):
        answer = http.get(path)
        assert answer.status_code == 200
        assert "http://" not in answer.text and "https://" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_figures_count_what_was_made():
    with running() as (address, _), httpx.Client(base_url=address) as http:
        body = {"prompt": [2, 5, 9], "max_tokens": 4, "ignore_eos": True}
        http.post("/v1/completions", json=body)
        http.post("/v1/completions", json={**body, "stream": True})
        text = http.get("/metrics").text
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }
    assert samples["vllm:generation_tokens_total"] == 8
    assert samples["vllm:prompt_tokens_total"] == 6
    assert samples["vllm:request_success_total"] == 2
    assert samples["vllm:time_to_first_token_seconds_count"] == 2
    assert samples["vllm:time_per_output_token_seconds_count"] == 2
    assert samples["vllm:e2e_request_latency_seconds_count"] == 2
    assert samples["vllm:num_requests_running"] == 0
    assert samples["vllm:num_requests_waiting"] == 0


def test_unknown_paths_methods_and_broken_bodies(http):
    assert http.get("/v2").status_code == 404
    assert http.get("/v1/completions").status_code == 405
    for data in (b"", b"{", b"[]", b'"a"', b"\xff", b"[" * 10_000):
        answer = http.post("/v1/completions", content=data)
        assert answer.status_code == 400
        assert "error" in answer.json()


def test_a_body_beyond_the_limit_is_not_read():
    settings = GatewaySettings(body_limit=2000)
    with running(settings) as (address, _), httpx.Client(base_url=address) as http:
        long = {"prompt": "a" * 3000}
        assert http.post("/v1/completions", json=long).status_code == 413

        def endless():
            for _ in range(10_000):
                yield b"a" * 1000

        with pytest.raises(httpx.WriteError):  # it was cut off long before the end
            answer = http.post("/v1/completions", content=endless())
            assert answer.status_code == 413
            raise httpx.WriteError("read the answer before it was cut off")


def test_a_body_that_does_not_come_ends():
    settings = GatewaySettings(body_seconds=0.2)
    with running(settings) as (address, _):
        host, port = address[7:].split(":")
        with socket.create_connection((host, int(port)), timeout=30) as slow:
            slow.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            assert b" 408 " in slow.recv(1000)


def test_the_queue_is_bounded():
    settings = GatewaySettings(max_active=1, max_queue=0)
    with running(settings, delay=0.5) as (address, _):
        body = {"prompt": "a", "max_tokens": 8, "stream": True}
        with (
            httpx.Client(base_url=address, timeout=60) as http,
            http.stream("POST", "/v1/completions", json=body),
        ):
            answer = http.post("/v1/completions", json=body)
        assert answer.status_code == 429
        assert answer.headers["retry-after"]
        assert answer.json()["error"]["code"] == "queue_full"


@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_that_goes_away_frees_its_place(stream):
    with running(delay=0.2) as (address, transport):
        httpx.get(f"{address}/ready", timeout=30)  # connected from here on
        host, port = address[7:].split(":")
        body = b'{"prompt": "a", "max_tokens": 40, "ignore_eos": true, "stream": %s}'
        body = body % (b"true" if stream else b"false")
        with socket.create_connection((host, int(port)), timeout=30) as caller:
            head = f"Host: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            caller.sendall(b"POST /v1/completions HTTP/1.1\r\n" + head + body)
            while not transport.under_way:
                time.sleep(0.01)
            time.sleep(0.3)
        with httpx.Client(base_url=address) as http:
            deadline = time.monotonic() + 20
            while " 0.0" not in _running(http) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert " 0.0" in _running(http)
        calls = len(transport.inner.calls)
        assert calls < 12
        time.sleep(0.5)
        assert len(transport.inner.calls) == calls  # nobody goes on for it


def _leave_after_asking(address, body):
    """Send a request and go away a moment later."""
    host, port = address[7:].split(":")
    data = json.dumps(body).encode()
    with socket.create_connection((host, int(port)), timeout=30) as caller:
        head = f"Host: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        caller.sendall(b"POST /v1/completions HTTP/1.1\r\n" + head + data)
        time.sleep(0.2)


def test_a_streaming_caller_that_leaves_the_queue_frees_its_place_at_once():
    settings = GatewaySettings(max_active=1)
    with running(settings, delay=0.4) as (address, transport):
        body = {"prompt": "a", "max_tokens": 8, "stream": True, "ignore_eos": True}
        with (
            httpx.Client(base_url=address, timeout=60) as http,
            http.stream("POST", "/v1/completions", json=body) as answer,
        ):
            lines = answer.iter_lines()
            next(lines)
            _leave_after_asking(address, {**body, "prompt": [7]})
            deadline = time.monotonic() + 1
            while _figure(http, "waiting") and time.monotonic() < deadline:
                time.sleep(0.02)
            assert _figure(http, "waiting") == 0
            assert _figure(http, "running") == 1  # the first one goes on
            assert any("[DONE]" in line for line in lines)
        fed = [
            call.inputs.get("input_ids", [[0]])[0][0] for call in transport.inner.calls
        ]
        assert 7 not in fed


def test_figures_are_counted_by_model():
    clients = {
        name: AsyncClient(transport=AsyncNumpy(0.2, **MODEL))
        for name in ("opt", "opt:canary")
    }
    with (
        serving(create_app(clients)) as address,
        httpx.Client(base_url=address, timeout=60) as http,
    ):
        body = {"prompt": "a", "max_tokens": 8, "stream": True, "ignore_eos": True}
        body["model"] = "opt:canary"
        with http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()  # once it is gone, the caller is
            next(lines)
            assert _figure(http, "running", "opt:canary") == 1
            assert _figure(http, "running", "opt") == 0
            assert _figure(http, "waiting", "opt:canary") == 0
            assert any("[DONE]" in line for line in lines)


def _figure(http, name, model="opt"):
    lines = http.get("/metrics").text.splitlines()
    begin = f'vllm:num_requests_{name}{{model_name="{model}"}}'
    line = next(x for x in lines if x.startswith(begin))
    return float(line.split()[-1])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 1}),
        ("/v1/completions", {"prompt": "a"}),
    ],
)
def test_every_request_has_a_deadline(path, body):
    settings = GatewaySettings(request_seconds=0.3)
    with running(settings) as (address, transport), httpx.Client() as http:
        http.get(f"{address}/ready")
        transport.delay = 5.0
        begin = time.monotonic()
        answer = http.post(address + path, json=body, timeout=10)
        assert time.monotonic() - begin < 2
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout"


def _running(http):
    lines = http.get("/metrics").text.splitlines()
    return next(x for x in lines if x.startswith("vllm:num_requests_running{"))


def test_other_origins_may_call_only_where_allowed():
    asked = {"Origin": "http://page", "Access-Control-Request-Method": "POST"}
    for origins, allowed in (((), None), (("http://page",), "http://page")):
        settings = GatewaySettings(allow_origins=origins)
        with running(settings) as (address, _):
            answer = httpx.options(f"{address}/v1/completions", headers=asked)
        assert answer.headers.get("access-control-allow-origin") == allowed

"""HTTP that no client sends gets an error, and the next caller is served."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import numpy as np
import pytest

pytest.importorskip("starlette")
from optserve.runtime.gateway import GatewaySettings
from optserve.runtime.gateway.keys import new_key

from tests.runtime.gateway.conftest import running

from .mutations import TEXTS, VALUES, changed_bytes, changed_json, pick

pytestmark = pytest.mark.fuzz
SETTINGS = {"request_seconds": 2.0, "body_seconds": 0.3, "body_limit": 1 << 16}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SAMPLED = {
    "n": 2,
    "stop": ["x"],
    "seed": 3,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "min_tokens": 1,
    "presence_penalty": 1,
    "logit_bias": {"5": 2},
    "repetition_penalty": 1.2,
    "stop_token_ids": [7],
    "truncate_prompt_tokens": 4,
    "user": "a",
    "priority": 1,
    "return_token_ids": True,
    "ignore_eos": True,
}
BODIES = {
    "/v1/completions": {
        "prompt": ["a", "b"],
        "max_tokens": 3,
        "logprobs": 2,
        **SAMPLED,
    },
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "max_tokens": 3,
        "logprobs": True,
        "top_logprobs": 2,
        **SAMPLED,
    },
    "/v1/embeddings": {"input": ["a", "b"], "encoding_format": "base64"},
    "/tokenize": {"prompt": "a b", "return_token_strs": True},
    "/detokenize": {"tokens": [5, 6]},
}
RIGHT = {
    "prompt": [2, 5],
    "max_tokens": 5,
    "temperature": 0,
    "return_token_ids": True,
    "ignore_eos": True,
}
REFUSALS = {400, 401, 404, 405, 408, 413, 429, 501, 504}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory) -> Iterator[tuple[str, str]]:
    """An address, and the key that lets in."""
    key, entry = new_key("fuzz")
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    keys.write_text(json.dumps({"keys": [entry]}))
    settings = GatewaySettings(keys_file=keys, chat_template=TEMPLATE, **SETTINGS)
    with running(settings) as (address, _):
        yield address, key


@contextmanager
def still_right(address: str, key: str) -> Iterator[None]:
    """Before and after, an ordinary caller gets the same; nothing is left behind."""
    headers = {"Authorization": f"Bearer {key}"}

    def tokens() -> list[int]:
        url = f"{address}/v1/completions"
        answer = httpx.post(url, json=RIGHT, headers=headers, timeout=30)
        return answer.json()["choices"][0]["token_ids"]

    def under_way() -> list[str]:
        lines = httpx.get(f"{address}/metrics").text.splitlines()
        names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
        return [line for line in lines if line.startswith(names)]

    expected = tokens()
    yield
    assert tokens() == expected and len(expected) == 5
    deadline = time.monotonic() + 10
    while any(not x.endswith(" 0.0") for x in under_way()):
        assert time.monotonic() < deadline, under_way()
        time.sleep(0.05)


def checked(status: int, body: bytes) -> str:
    """What became of a request; anything but an answer or a refusal fails."""
    if status == 200:
        return "answered"
    assert status in REFUSALS, (status, body)
    error = json.loads(body)["error"]
    assert error["message"] and "Traceback" not in error["message"]
    assert all(c.isprintable() for c in error["message"]), error
    return str(status)


def test_bodies(fuzz, gateway):
    address, key = gateway
    headers = {"Authorization": f"Bearer {key}"}
    with still_right(address, key), httpx.Client(base_url=address, timeout=30) as http:

        def target(rng: np.random.Generator) -> str:
            path = pick(rng, sorted(BODIES))
            body = dict(BODIES[path])
            if rng.random() < 0.4 and path.startswith("/v1/c"):
                body["stream"] = True
            if rng.random() < 0.1:
                body[pick(rng, TEXTS)] = pick(rng, VALUES)
            data = changed_json(rng, json.dumps(body))
            answer = http.post(path, content=data, headers=headers)
            return checked(answer.status_code, answer.content)

        counts = fuzz(target)
        assert 0 < counts["answered"] < counts.total()


def test_paths_methods_and_keys(fuzz, gateway):
    address, key = gateway
    words = (
        "/v1",
        "models",
        "..",
        "%00",
        "é",
        "tokenize",
        "//",
        "metrics",
        "%2e%2e",
        "?",
    )
    with still_right(address, key), httpx.Client(base_url=address, timeout=30) as http:

        def target(rng: np.random.Generator) -> str:
            path = "/" + "/".join(pick(rng, words) for _ in range(rng.integers(4)))
            path = path if rng.random() < 0.5 else pick(rng, sorted(BODIES))
            method = pick(rng, ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "X"))
            value = changed_bytes(rng, f"Bearer {key}".encode())
            value = bytes(b for b in value if 32 <= b < 127).strip()
            url, headers = address + path, {"Authorization": value}
            answer = http.request(method, url, headers=headers, content=b"{}")
            if method == "HEAD" or answer.status_code == 200:
                assert answer.status_code in REFUSALS | {200}
                return "answered"
            return checked(answer.status_code, answer.content)

        fuzz(target)


def test_bytes_on_the_wire(fuzz, gateway):
    address, key = gateway
    host, port = address[7:].split(":")
    body = json.dumps({**RIGHT, "stream": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    right = head.encode() + body
    with still_right(address, key):

        def target(rng: np.random.Generator) -> str:
            data = changed_bytes(rng, right)
            with socket.create_connection((host, int(port)), timeout=30) as caller:
                caller.sendall(data[: int(rng.integers(1, len(data) + 1))])
                if rng.random() < 0.5:  # leaves at some moment
                    caller.settimeout(float(rng.random()) * 0.02)
                    with suppress(TimeoutError):
                        caller.recv(100)
                    return "left"
                caller.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: caller.recv(1 << 16), b""))
            if not answer:
                return "closed"
            status = int(answer.split()[1])
            assert status == 200 or 400 <= status < 500, answer[:300]
            return f"{status // 100}xx"

        fuzz(target)

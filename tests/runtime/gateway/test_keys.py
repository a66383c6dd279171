"""Who gets in."""

from __future__ import annotations

import hashlib
import json

import httpx
import pytest
from optserve.runtime.errors import InvalidRequest
from optserve.runtime.gateway import GatewaySettings
from optserve.runtime.gateway.api_errors import ApiError
from optserve.runtime.gateway.keys import Keys, new_key

from .conftest import running


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "keys.json"

    def write(*entries):
        path.write_text(json.dumps({"keys": entries}))
        return path

    return write


def test_a_gateway_with_keys_asks_for_one(file):
    key, entry = new_key("team")
    settings = GatewaySettings(keys_file=file(entry))
    with running(settings) as (address, _), httpx.Client(base_url=address) as http:
        body = {"prompt": "a", "max_tokens": 1}
        for headers in (
            {},
            {"Authorization": "Bearer no"},
            {"Authorization": f"Basic {key}"},
            {"Authorization": f"Bearer {entry['sha256']}"},
        ):
            answer = http.post("/v1/completions", json=body, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert http.get("/v1/models", headers=headers).status_code == 401
        right = {"Authorization": f"Bearer {key}"}
        answer = http.post("/v1/completions", json=body, headers=right)
        assert answer.status_code == 200
        assert http.get("/health").status_code == 200


def test_the_file_holds_no_key():
    key, entry = new_key("team", 60)
    assert entry["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert key not in json.dumps(entry)
    assert len({new_key("x")[0] for _ in range(100)}) == 100


def test_a_limit_is_a_keys_own(file):
    now = [0.0]
    (slow, one), (quick, two) = new_key("slow", 2), new_key("quick")
    keys = Keys(file(one, two), clock=lambda: now[0])
    for _ in range(2):
        assert keys.check(f"Bearer {slow}") == "slow"
    with pytest.raises(ApiError) as refused:
        keys.check(f"Bearer {slow}")
    assert refused.value.status == 429
    for _ in range(100):
        assert keys.check(f"Bearer {quick}") == "quick"
    now[0] = 31.0
    assert keys.check(f"Bearer {slow}") == "slow"
    with pytest.raises(ApiError):
        keys.check(f"Bearer {slow}")


def test_a_changed_file_counts_at_once(file, tmp_path):
    (old, one), (new, two) = new_key("old"), new_key("new-name")
    keys = Keys(file(one))
    keys.check(f"Bearer {old}")
    file(two)
    with pytest.raises(ApiError):
        keys.check(f"Bearer {old}")
    assert keys.check(f"Bearer {new}") == "new-name"
    (tmp_path / "keys.json").write_text("{")
    assert keys.check(f"Bearer {new}") == "new-name"  # the last good one
    (tmp_path / "keys.json").unlink()
    with pytest.raises(ApiError):
        keys.check(f"Bearer {new}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"keys": [{}]}',
        '{"keys": [{"name": "a", "sha256": "00"}]}',
        '{"keys": [{"name": "", "sha256": "' + "0" * 64 + '"}]}',
        '{"keys": [{"name": "a", "sha256": "' + "0" * 64 + '", "limit": 3}]}',
        '{"keys": [{"name": "a", "sha256": "'
        + "0" * 64
        + '", "requests_per_minute": 0}]}',
        "[" * 100_000,
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match="not a file of API keys"):
        Keys(path)

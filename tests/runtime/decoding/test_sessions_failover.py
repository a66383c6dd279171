"""Sequences whose slot, replica or version goes, or whose server refuses or lies."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from optserve.runtime import Client, DeadlineExceeded, ServerError
from optserve.runtime.transports.base import Call

from tests.runtime.decoding.session_servers import (
    MODES,
    PROMPTS,
    WARM,
    Servers,
    explicit,
    same,
)
from tests.runtime.numpy_model import NumpyTransport


def test_a_lost_slot_costs_feeding_again_and_is_counted():
    servers = Servers()
    with Client(transport=servers) as client:
        stream = client.stream([2, 5, 6], max_new_tokens=12, stop_token_ids=[])
        chunks = [next(stream)]
        servers.servers[0].restart()
        chunks += [next(stream), *stream]
        result = stream.generation
    (expected,) = explicit([[2, 5, 6]], max_new_tokens=12, stop_token_ids=[])
    assert result.tokens == expected.tokens
    counters = result.counters
    assert (counters.session_losses, counters.session_fallbacks) == (1, 0)
    assert servers.count("session_open") == 2


def test_one_that_loses_twice_goes_on_with_an_explicit_cache():
    servers = Servers(generate=(2,))
    with Client(transport=servers) as client:
        stream = client.stream([2, 5, 6], max_new_tokens=12, stop_token_ids=[])
        for _ in range(3):
            next(stream)
            servers.servers[0].restart()
        rest = list(stream)
        result = stream.generation
        assert rest
        (after,) = client.generate([[2, 5, 6]], max_new_tokens=3)
    (expected,) = explicit([[2, 5, 6]], max_new_tokens=12, stop_token_ids=[])
    assert result.tokens == expected.tokens
    counters = result.counters
    assert (counters.session_losses, counters.session_fallbacks) == (2, 1)
    assert counters.session_calls < counters.calls
    assert servers.count("decode") + servers.count("generate_") > 0
    assert after.counters.session_calls == after.counters.calls


def test_a_lost_replica_costs_one_step():
    servers = Servers(2)
    with Client(transport=servers) as client:
        stream = client.stream([2, 5, 6], max_new_tokens=12, stop_token_ids=[])
        next(stream)
        (target,) = servers.calls[-1].replicas
        servers.down[servers.targets.index(target)] = 10**6
        list(stream)
        result = stream.generation
        assert servers.calls[-1].replicas not in ((target,), ())
        (after,) = client.generate([[2, 5, 6]], max_new_tokens=3)
    (expected,) = explicit([[2, 5, 6]], max_new_tokens=12, stop_token_ids=[])
    assert result.tokens == expected.tokens
    assert result.counters.session_losses == 1
    assert after.counters.session_losses == 0


def test_all_replicas_gone_is_an_error_and_leaves_the_pool_usable():
    servers = Servers(2)
    with Client(transport=servers) as client:
        servers.down = [10**6] * 2
        with pytest.raises(Exception, match="no replica answers"):
            client.generate([[2, 5]], max_new_tokens=3)
        servers.down = [0] * 2
        (result,) = client.generate([[2, 5]], max_new_tokens=3)
    assert result.tokens == explicit([[2, 5]], max_new_tokens=3)[0].tokens
    assert result.counters.session_calls == result.counters.calls


def test_a_version_that_goes_takes_its_sessions_with_it():
    servers = Servers()
    server = servers.servers[0]
    with Client(transport=servers) as client:
        stream = client.stream([2, 5, 6], max_new_tokens=9, stop_token_ids=[])
        next(stream)
        server.versions = {2: server.model}
        server.restart()
        list(stream)
        result = stream.generation
        (after,) = client.generate([[2, 5, 6]], max_new_tokens=3)
    (expected,) = explicit([[2, 5, 6]], max_new_tokens=9, stop_token_ids=[])
    assert (result.tokens, result.model_version) == (expected.tokens, 2)
    assert (result.rebuilds, after.model_version) == (1, 2)
    assert after.counters.session_calls == after.counters.calls


def test_a_newer_version_is_noticed_though_sessions_pin(monkeypatch):
    monkeypatch.setattr("optserve.runtime.decoding.sessions._ASK_AGAIN", 0.0)
    servers = Servers()
    server = servers.servers[0]
    with Client(transport=servers) as client:
        client.generate([[2, 5, 6]], max_new_tokens=3)
        server.versions[2] = server.model
        (result,) = client.generate([[2, 5, 6]], max_new_tokens=3)
    assert result.model_version == 2
    plain = NumpyTransport()
    with Client(transport=plain) as client:
        client.generate([[2, 5, 6]], max_new_tokens=3)
    assert [call.signature for call in plain.calls].count("describe") == 1


def test_what_fails_midway_gives_its_slots_back(monkeypatch):
    monkeypatch.setattr("optserve.runtime.decoding.sessions._PATIENCE", 0.02)
    servers = Servers(sessions={"slots": 2, "positions": 64})

    def refuse(call: Call) -> None:
        if "decode" in call.signature and len(servers.calls) % 2:
            raise DeadlineExceeded("too late")

    with Client(transport=servers) as client:
        for mode in MODES.values():
            servers.servers[0].before = refuse
            for _ in range(3):
                with suppress(DeadlineExceeded):
                    client.generate(PROMPTS[:3], max_new_tokens=3, **mode)
            servers.servers[0].before = None
            after = client.generate(PROMPTS[:3], max_new_tokens=3, timeout=20, **mode)
            assert same(after, explicit(PROMPTS[:3], max_new_tokens=3, **mode))


@pytest.mark.parametrize(
    "signature", ["session_open", "session_decode", "session_generate", "session_"]
)
def test_a_server_that_refuses_sessions_gets_explicit_caches(signature):
    servers = Servers(2, generate=(8,))

    def refuse(call: Call) -> None:
        if call.signature.startswith(signature):
            raise ServerError("the proxy forbids it", "PERMISSION_DENIED")

    for server in servers.servers:
        server.before = refuse
    fallbacks = 0
    with Client(transport=servers) as client:
        for mode in MODES.values():
            actual = client.generate(PROMPTS[:3], max_new_tokens=3, **mode)
            assert same(actual, explicit(PROMPTS[:3], max_new_tokens=3, **mode))
            fallbacks += sum(g.counters.session_fallbacks for g in actual)
    assert fallbacks


@pytest.mark.parametrize("mode", MODES)
def test_a_newer_version_need_not_have_sessions(mode):
    options = {"max_new_tokens": 9, "stop_token_ids": [], **MODES[mode]}
    servers = Servers(generate=(2,))
    (server,) = servers.servers

    def swap(call: Call) -> None:
        if call.signature.startswith("session_") and len(servers.calls) > 5:
            server.versions = {2: server.model}
            server.manifest = NumpyTransport(generate=(2,)).manifest

    server.before = swap
    with Client(transport=servers) as client:
        (result,) = client.generate([[2, 5, 6]], **options)
    assert result.model_version == 2
    assert same([result], explicit([[2, 5, 6]], **options))


@pytest.mark.parametrize(
    "lie",
    [
        {"session_open": ("slot", 99)},
        {"session_open": ("slot", -1)},
        {"session_decode": ("alive", 2)},
        {"session_decode": ("logits", np.nan)},
        {"session_generate": ("count", 9)},
        {"session_copy": ("alive", -1)},
    ],
)
def test_a_replica_that_lies_is_left(lie):
    (signature, (output, value)), *_ = lie.items()

    def tell(call: Call, outputs: dict[str, np.ndarray]) -> None:
        if call.signature.startswith(signature):
            outputs[output][:] = value

    servers = Servers(2, generate=() if "decode" in signature else (2,))
    servers.servers[1].lie = tell
    options = {"max_new_tokens": 4, "samples": 2, "sampling": WARM}
    with Client(transport=servers) as client:
        actual = client.generate(PROMPTS, **options)
    assert same(actual, explicit(PROMPTS, **options))

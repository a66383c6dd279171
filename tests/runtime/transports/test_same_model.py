"""Replicas that serve another model under the same version number, and how lying ones
are left out. Tokens are compared with those of each model alone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import pickle
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from optserve.runtime import (
    AsyncClient,
    Client,
    Ejection,
    MalformedReply,
    Retry,
    Sampling,
)
from optserve.runtime.transports.base import Described
from optserve.runtime.transports.same_model import Votes

from tests.runtime.numpy_model import GOLDEN, MIXED, NumpyOPT, NumpyTransport
from tests.runtime.numpy_server import serving

OPTIONS = {
    "max_new_tokens": 12,
    "stop_token_ids": [],
    "sampling": Sampling(temperature=1.0, seed=3),
}
QUICK = {
    "retry": Retry(connect=0.4, recover=0.4, first_wait=0.02),
    "ejection": Ejection(first=0.05, longest=0.1),
}


@functools.cache
def scaled(name: str) -> NumpyOPT:
    """A model of its own for each name, of one shape."""
    model = NumpyOPT(GOLDEN / "pre_ln")
    embedding = model.weights["decoder.embed_tokens.weight"]
    model.weights["decoder.embed_tokens.weight"] = embedding * (1 + 0.3 * int(name, 16))
    return model


def model(name: str, **options) -> NumpyTransport:
    """A server of it."""
    digest = name * 64
    transport = NumpyTransport(generate=(2,), checkpoint_digest=digest, **options)
    transport.model = scaled(name)
    transport.versions = {1: transport.model}
    return transport


def alone(name: str) -> list[list[int]]:
    with Client(transport=model(name)) as client:
        return [g.tokens for g in client.generate(MIXED, **OPTIONS)]


def blocking(addresses, **options) -> list[list[int]]:
    with Client(addresses, **QUICK, **options) as client:
        return [client.generate([prompt], **OPTIONS)[0].tokens for prompt in MIXED]


def awaiting(addresses, **options) -> list[list[int]]:
    async def go():
        async with AsyncClient(addresses, **QUICK, **options) as client:
            return await client.generate(MIXED, **OPTIONS)

    return [g.tokens for g in asyncio.run(go())]


@pytest.fixture(params=[blocking, awaiting])
def tokens_from(request):
    return request.param


@contextlib.contextmanager
def all_serving(*transports: NumpyTransport):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(serving(transport)) for transport in transports]


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_the_odd_one_of_three_is_left_out_and_named(tokens_from, odd, caplog):
    models = [model("b" if i == odd else "a") for i in range(3)]
    assert alone("a") != alone("b")
    with all_serving(*models) as addresses, caplog.at_level(logging.WARNING):
        assert tokens_from(addresses) == alone("a")
    (line,) = [m for m in caplog.messages if "serves another model" in m]
    assert line.startswith(addresses[odd])


def test_of_two_the_first_named_decides(tokens_from):
    with all_serving(model("b"), model("a")) as addresses:
        assert tokens_from(addresses) == alone("b")


def test_exports_of_one_model_by_other_tools_are_alike(tokens_from, caplog):
    other = model("a", tool_versions={"tensorflow": "9.9"})
    with all_serving(model("a"), other) as addresses:
        assert tokens_from(addresses) == alone("a")
    assert not [m for m in caplog.messages if "another model" in m]


def test_a_model_replaced_under_its_version_number_is_noticed():
    """Another process at the same address: what was said is fed to its model again."""
    options = OPTIONS | {"max_new_tokens": 4}
    first, second = model("a"), model("b")
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(contextlib.ExitStack())
        address = running.enter_context(serving(first))
        client = stack.enter_context(Client(address, retry=Retry(recover=10)))
        talk = client.conversation()
        list(talk.say([2, 5, 9], **options))
        said = talk.tokens
        running.close()
        stack.enter_context(serving(second, address=address))
        list(talk.say([11], **options))
        assert talk.generation.rebuilds == 1
        answer = talk.generation.tokens
    with Client(transport=model("b")) as client:
        (alone_on_it,) = client.generate([[*said, 11]], **options)
    assert answer == alone_on_it.tokens
    assert [c for c in second.calls if c.signature == "generate_2"]
    assert not any(
        np.asarray(c.inputs["cache_length"]).any()
        for c in second.calls
        if c.signature == "generate_2" and c.inputs["input_ids"].shape[1] > 1
    )


def test_nothing_is_compared_twice_on_one_connection():
    transport = model("a")
    with serving(transport) as address, Client(address) as client:
        before = [c.signature for c in transport.calls].count("describe")
        client.generate(MIXED, **OPTIONS)
        assert [c.signature for c in transport.calls].count("describe") == before <= 2


def garbage(call, outputs) -> None:
    """Wrong in ways that only a look at shapes or values finds."""
    if "tokens" in outputs:
        outputs["tokens"] = outputs["tokens"] + 1000
    elif "new_cache" in outputs:
        outputs["new_cache"] = outputs["new_cache"] * np.nan


@pytest.mark.parametrize("liars", [(0,), (0, 2)])
def test_a_replica_that_answers_garbage_is_left_out(tokens_from, liars, caplog):
    models = [model("a", lie=garbage if i in liars else None) for i in range(3)]
    with all_serving(*models) as addresses, caplog.at_level(logging.WARNING):
        assert tokens_from(addresses) == alone("a")
    left_out = [m for m in caplog.messages if "left out for" in m]
    assert {m.split()[1] for m in left_out} == {addresses[i] for i in liars}


def test_garbage_everywhere_names_who_sent_it(tokens_from):
    with (
        serving(model("a", lie=garbage)) as address,
        pytest.raises(MalformedReply, match=f"{address} sent a reply that makes"),
    ):
        tokens_from(address)


class Backward(NumpyTransport):
    """Once there is a version 2, calls for no version in particular are answered as by
    version 1, with garbage."""

    def call(self, call, *, timeout=None):
        reply = super().call(call, timeout=timeout)
        if call.signature == "describe" or call.version or 2 not in self.versions:
            return reply
        wrong = {
            name: np.full([len(array), 3], np.nan, np.float32)
            for name, array in reply.outputs.items()
        }
        return replace(reply, outputs=wrong, version=1)


@pytest.mark.parametrize("liars", [(0,), (0, 2)])
def test_garbage_of_another_version_is_another_replicas_turn(liars):
    """A known version, other than the one that the call was planned for."""
    kinds = [Backward if i in liars else NumpyTransport for i in range(3)]
    models = [kind(checkpoint_digest="a" * 64, generate=(2,)) for kind in kinds]
    options = OPTIONS | {"max_new_tokens": 8}  # four calls, so each replica has a first
    with all_serving(*models) as addresses, Client(addresses, **QUICK) as client:
        first = [client.generate([prompt], **options)[0].tokens for prompt in MIXED]
        for transport in models:
            transport.versions = {2: transport.model} | (
                {1: transport.model} if isinstance(transport, Backward) else {}
            )
        second = [client.generate([prompt], **options)[0] for prompt in MIXED]
        assert [generation.tokens for generation in second] == first
        assert {generation.model_version for generation in second} == {2}
    assert sum(generation.retries for generation in second) > 0


def described(name: str) -> Described:
    description: Any = SimpleNamespace(model_id=name)
    return description


def test_votes():
    votes = Votes(["x:1", "y:1", "z:1"])
    a, b, c, d = map(described, "abcd")
    assert votes.agreed(1) is None
    assert votes.settle(1, {0: a}) == "a"
    assert votes.confirmed(0, 1) and not votes.confirmed(0, 2)
    assert votes.settle(1, {1: b, 0: a}) == "a"  # a draw: as before
    assert not votes.confirmed(1, 1)
    assert votes.settle(1, {2: b, 1: b, 0: a}) == "b"
    assert not votes.confirmed(0, 1) and votes.confirmed(2, 1)
    votes.forget(2)
    assert not votes.confirmed(2, 1) and votes.confirmed(1, 1)
    assert votes.settle(2, {1: d, 0: c}) == "c"  # a draw: the one named first


def test_votes_on_any_number_of_versions_take_little_memory():
    votes = Votes(["x:1", "y:1"])
    for version in range(10_000):
        votes.settle(version, {0: described("a"), 1: described("b")})
    assert votes.agreed(9_999) and votes.confirmed(0, 9_999)
    assert votes.agreed(0) is None and not votes.confirmed(0, 0)
    assert len(pickle.dumps(vars(votes) | {"_lock": None})) < 10_000


def test_clients_that_end_soon_leave_no_traceback_and_no_wait(monkeypatch):
    """gRPC's thread that watches a connection fails on a channel closed meanwhile."""
    failed: list[object] = []
    monkeypatch.setattr("threading.excepthook", failed.append)
    with serving(model("a")) as address:
        for pause in (0, 0, 0, 0.01, 0.02, 0.2):
            client = Client(address)
            time.sleep(pause)
            begin = time.monotonic()
            client.close()
            assert time.monotonic() - begin < 2
        time.sleep(0.3)
    assert not failed

"""Version labels: who is served by which version, and what a move of a label does."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest
from optserve.runtime import AsyncClient, Client, InvalidRequest, ServerError
from optserve.runtime.cli import main
from optserve.runtime.codec import decode_predict_request, decode_status_response
from optserve.runtime.transports.base import Call
from optserve.runtime.transports.connection import Connection
from optserve.runtime.transports.operations import Operations
from optserve.runtime.transports.steps import Attempt

PROMPT = [2, 9, 40, 17]
OPTIONS = {"max_new_tokens": 12, "stop_token_ids": []}
BOTH = (1, 2)


def asked(label: str, version: int | None):
    """What a call with this label says on the wire."""
    operations = Operations(("a:1",), "opt", Connection(), label=label)
    send = next(operations.predict(Call("describe", {}, version=version), None))
    assert isinstance(send, Attempt)
    return decode_predict_request(send.payload).model


def test_only_calls_without_a_version_name_the_label():
    first, pinned, plain = asked("stable", None), asked("stable", 3), asked("", None)
    assert (first.version, first.version_label) == (None, "stable")
    assert (pinned.version, pinned.version_label) == (3, "")
    assert (plain.version, plain.version_label) == (None, "")


def test_the_official_classes_read_the_label():
    pb2 = pytest.importorskip("tensorflow_serving.apis.get_model_status_pb2")
    operations = Operations(("a:1",), "opt", Connection(), label="stable")
    send = next(operations.status(None))
    spec = pb2.GetModelStatusRequest.FromString(send.payload).model_spec
    assert (spec.WhichOneof("version_choice"), spec.version_label) == (
        "version_label",
        "stable",
    )
    assert decode_status_response(b"") == []


def test_labels_are_a_servers(tmp_path):
    with pytest.raises(InvalidRequest, match="version labels are a server's"):
        Client(tmp_path, label="stable")
    with pytest.raises(InvalidRequest, match="a version label is"):
        Client("127.0.0.1:1", label="two\nlines")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Version 1 and version 2 of a model, with other weights."""
    pytest.importorskip("tensorflow")
    from tests.export.exports import exported

    out = tmp_path_factory.mktemp("labels") / "opt"
    shutil.copytree(exported("no_final_ln"), out / "1")  # without `generate_{N}`,
    shutil.copytree(exported("bias_free_gelu"), out / "2")  # which loads quickly
    return out


def configured(export, labels: dict[str, int], versions=BOTH):
    from optserve.runtime.server import ModelOptions, VersionPolicy

    policy = VersionPolicy(versions=versions)
    return {"opt": ModelOptions(str(export), policy, labels)}


@pytest.fixture(scope="module")
def running(export):
    """A server of both versions."""
    from optserve.runtime.server import EmbeddedServer

    with EmbeddedServer(models=configured(export, {}), poll_seconds=60) as server:
        yield server


@pytest.fixture
def server(export, running):
    """The same, both versions loaded and labelled."""
    for labels in ({}, {"stable": 1, "canary": 2}):
        running.manager.reconfigure(configured(export, labels))
    return running


@pytest.fixture
def move(export, server):
    """Moves the labels, as a new models.config does; other versions are unloaded."""

    def move(versions=BOTH, **labels: int) -> None:
        server.manager.reconfigure(configured(export, labels, versions))

    return move


def tokens_of(server, version: int) -> list[int]:
    with Client(server.target, label={1: "stable", 2: "canary"}[version]) as client:
        assert client.model_version == version
        (result,) = client.generate([PROMPT], **OPTIONS)
        assert result.model_version == version
    return result.tokens


def test_a_label_chooses_the_version(server):
    assert tokens_of(server, 1) != tokens_of(server, 2)
    with Client(server.target) as client:
        assert client.model_version == 2
    with Client(server.target, label="stable", wait=5) as client:
        assert client.score([PROMPT])[0].logprobs[1:]
        assert client.describe().checkpoint_digest


def test_an_unknown_label_is_named(server):
    with pytest.raises(ServerError, match="no version labelled 'nightly'"):
        Client(server.target, label="nightly", connect_timeout=5)


def test_a_label_that_moves_takes_new_generations_along_and_no_running_one(
    server, move
):
    first, second = tokens_of(server, 1), tokens_of(server, 2)
    with Client(server.target, label="stable") as client:
        stream = client.stream(PROMPT, **OPTIONS)
        generated = list(next(stream).tokens)
        move(stable=2, canary=2)
        (fresh,) = client.generate([PROMPT], **OPTIONS)
        assert (fresh.tokens, fresh.model_version) == (second, 2)
        generated += [token for chunk in stream for token in chunk.tokens]
        assert (generated, stream.generation.model_version) == (first, 1)
        assert stream.generation.rebuilds == 0
        move(stable=1, canary=2)
        (back,) = client.generate([PROMPT], **OPTIONS)
        assert (back.tokens, back.model_version) == (first, 1)


def test_a_conversation_stays_on_its_version_until_that_is_unloaded(server, move):
    with Client(server.target, label="stable") as client:
        talk = client.conversation()
        list(talk.say(PROMPT, **OPTIONS))
        move(stable=2)
        list(talk.say([30, 31], **OPTIONS))
        assert talk.generation.model_version == 1
        move((2,), stable=2)
        list(talk.say([32], **OPTIONS))
        result = talk.generation
        assert (result.model_version, result.rebuilds) == (2, 1)
        before = talk.tokens[: -len(result.tokens)]
        assert client.generate([before], **OPTIONS)[0].tokens == result.tokens


def test_a_version_unloaded_under_a_generation_is_rebuilt_on_the_labels(server, move):
    with Client(server.target, label="stable") as client:
        stream = client.stream(PROMPT, **OPTIONS)
        generated = list(next(stream).tokens)
        move(stable=2)
        move((2,), stable=2)
        rest = [token for chunk in stream for token in chunk.tokens]
        left = OPTIONS | {"max_new_tokens": OPTIONS["max_new_tokens"] - len(generated)}
        (expected,) = client.generate([PROMPT + generated], **left)
    assert rest == expected.tokens
    assert stream.generation.rebuilds == 1


def test_many_streams_follow_the_label(server):
    first, second = tokens_of(server, 1), tokens_of(server, 2)

    async def go(label: str):
        async with AsyncClient(server.target, label=label) as client:
            return await client.generate([PROMPT] * 6, **OPTIONS)

    for label, tokens in (("stable", first), ("canary", second)):
        assert [g.tokens for g in asyncio.run(go(label))] == [tokens] * 6


def test_the_command_line_takes_a_label(server, capsys):
    arguments = ["describe", "--json", "--target", server.target, "--label"]
    for label, version in (("stable", 1), ("canary", 2)):
        assert main([*arguments, label]) == 0
        assert json.loads(capsys.readouterr().out)["version"] == version
    assert main([*arguments, "nightly"]) == 1
    assert "no version labelled 'nightly'" in capsys.readouterr().err
    assert main(["generate", "--model", "x", "--label", "stable", "a"]) == 1
    assert "--label needs --target" in capsys.readouterr().err

"""A SavedModel in this process, and behind the command line's own server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import numpy as np
import pytest
from optserve.runtime import (
    AsyncClient,
    Cancelled,
    Client,
    InvalidRequest,
    Retry,
    Sampling,
    Unavailable,
    cli,
)
from optserve.runtime.errors import IncompatibleModel, ServerError, VersionGone
from optserve.runtime.transports.base import Call
from optserve.runtime.transports.local import LocalTransport
from optserve.runtime.transports.resolve import is_tflite

from tests.export.exports import exported
from tests.runtime.numpy_model import NumpyTransport
from tests.runtime.test_golden import expected, prompts, until_end

pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def export():
    return exported("pre_ln").parent


@pytest.fixture(scope="module")
def client(export) -> Iterator[Client]:
    with Client(export) as client:
        yield client


def test_a_path_as_target_gives_the_references_tokens(client):
    generations = client.generate(prompts("pre_ln"), max_new_tokens=24)
    assert client.model_version == 1
    for row, tokens in zip(generations, expected("pre_ln")["greedy"], strict=True):
        assert row.tokens == until_end(tokens)


def test_sampling_in_the_graph_equals_sampling_in_the_client(export):
    warm = Sampling(
        temperature=1.3, top_k=40, top_p=0.9, repetition_penalty=1.2, seed=21
    )
    options = {"max_new_tokens": 24, "sampling": warm}
    with Client(export / "1") as client:
        generations = client.generate(prompts("pre_ln"), **options)
    with Client(transport=NumpyTransport()) as client:
        expected = client.generate(prompts("pre_ln"), **options)
    assert [g.tokens for g in generations] == [g.tokens for g in expected]
    np.testing.assert_allclose(generations[0].logprobs, expected[0].logprobs, atol=1e-4)


def test_asyncio_runs_it_in_threads(export):
    async def go():
        async with AsyncClient(export) as client:
            return await client.generate(prompts("pre_ln"), max_new_tokens=24)

    for row, tokens in zip(
        asyncio.run(go()), expected("pre_ln")["greedy"], strict=True
    ):
        assert row.tokens == until_end(tokens)


def test_texts_beyond_the_sizes_compiled_for_are_scored_all_the_same(client):
    texts = [[2, *range(4, 4 + n)] for n in (10, 35)]
    compiled = exported("pre_ln", framework="jax")  # for 16 tokens at most
    with Client(compiled) as other:
        for actual, expected in zip(
            other.score(texts), client.score(texts), strict=True
        ):
            np.testing.assert_allclose(actual.logprobs, expected.logprobs, atol=1e-3)
        for actual, expected in zip(
            other.embed(texts), client.embed(texts), strict=True
        ):
            np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_refusals(export, tmp_path):
    transport = LocalTransport(export)
    row = {"row": np.zeros(1, np.int32)}
    with pytest.raises(IncompatibleModel, match="no signature 'nosig'"):
        transport.call(Call("nosig", row))
    with pytest.raises(VersionGone):
        transport.call(Call("describe", row, version=4))
    with pytest.raises(ServerError):
        transport.call(Call("describe", {"x": row["row"]}))
    transport.close()
    with pytest.raises(Cancelled):
        transport.call(Call("describe", row))
    with pytest.raises(InvalidRequest, match="no exported model"):
        Client(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest, match=r"not a \.tflite"):
        Client(tmp_path / "file")
    with pytest.raises(InvalidRequest, match="no such file or folder"):
        Client(os.fspath(tmp_path / "nothing"))
    with pytest.raises(Unavailable, match="no server answers"):
        Client("unix-abstract:/a/name", retry=Retry(connect=0))


def test_the_newest_version_decides_whether_a_folder_means_a_tflite_file(tmp_path):
    for version, name in (("1", "model.tflite"), ("2", "saved_model.pb")):
        (tmp_path / version).mkdir()
        (tmp_path / version / name).write_text("")
    assert not is_tflite(tmp_path)
    assert is_tflite(tmp_path / "1")
    (tmp_path / "2" / "saved_model.pb").rename(tmp_path / "2" / "model.tflite")
    assert is_tflite(tmp_path)
    assert not is_tflite(tmp_path / "nothing")


def test_the_command_starts_and_stops_its_own_server(export, tmp_path, capfd):
    arguments = ["--model", str(export), "--max-new-tokens", "4", "--quiet", "--json"]
    (tmp_path / "batch").write_text('{"id": 1, "prompt": [2, 5, 6]}\n')
    batch = ["--jsonl", str(tmp_path / "batch")]
    assert cli.main(["generate", *arguments, *batch]) == 0
    out, err = capfd.readouterr()
    assert '"finish_reason": "length"' in out and err == ""
    assert cli.main(["generate", "--model", str(tmp_path), "hello"]) == 1
    err = capfd.readouterr().err
    assert err.startswith("optserve: ") and err.count("\n") == 1

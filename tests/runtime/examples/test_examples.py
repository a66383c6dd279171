"""The programs to start from do what they say, against a server."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from optserve.runtime import Client, Sampling

pytest.importorskip("tensorflow")
from optserve.runtime.server import EmbeddedServer

from tests.export.exports import exported_tiny

EXAMPLES = Path(__file__).parents[3] / "runtime" / "examples"
PROMPT = "ROMEO:"


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with EmbeddedServer(exported_tiny().parent) as server:
        yield server.target


def example(name: str) -> Callable:
    """Its ``main``."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_stream_text(target, capsys):
    example("stream_text")(target, PROMPT)
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=7)
    with Client(target) as client:
        (whole,) = client.generate([PROMPT], max_new_tokens=64, sampling=sampling)
    text, _, cost = capsys.readouterr().out.rpartition("\n[")
    assert text == whole.text
    assert cost.startswith(whole.finish_reason)


def test_many_prompts(target, capsys, tmp_path):
    prompts = [PROMPT, "JULIET:", "", "Good morrow"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    asyncio.run(example("many_prompts")(target, str(tmp_path / "prompts.txt")))
    lines = capsys.readouterr().out.splitlines()
    with Client(target) as client:
        results = client.generate(prompts, max_new_tokens=32)
    assert sorted(lines) == [f"{r.index}: {r.text!r}" for r in results]


def test_likelier_text(target, capsys):
    texts = ("What say you, my lord?", "Wht sya yuo my lrod")
    example("likelier_text")(target, *texts[::-1])
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert [text for _, _, text in rows] == list(texts)
    assert [likeness for _, likeness, _ in rows][1] == "1.000"  # the first to itself


def test_official_stub(target, capsys):
    pytest.importorskip("tensorflow_serving.apis.predict_pb2")
    with Client(target) as client:
        ids = client.encode(PROMPT)
        (expected,) = client.generate([ids], max_new_tokens=12, stop_token_ids=[])
    example("official_stub")(target, ",".join(map(str, ids)), "12")
    assert capsys.readouterr().out.strip() == ",".join(map(str, expected.tokens))

"""The benchmark's engines: each runs with its own interpreter and weighs what it is."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

import pytest

from . import command as bench
from .peers import ENGINES


@pytest.fixture
def engine(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(bytes(4000))
    args = Namespace(peer_python="peer", litert_python="litert", work=tmp_path)
    args.threads = 2
    return lambda name: bench._engine(name, args, checkpoint, print)


@pytest.mark.parametrize("name", ENGINES)
def test_a_peer_runs_with_the_interpreter_that_has_it(engine, name):
    python, *_, which, _, _, threads = engine(name).command
    assert python == ("litert" if name.startswith("litert-torch") else "peer")
    assert (which, threads) == (name, "2")


def test_weights_are_those_of_the_model_that_runs(engine):
    assert engine("litert-torch-opt-int8").weight_bytes == 1000
    assert engine("litert-torch-opt-float32").weight_bytes == 4000
    assert engine("litert-torch-smollm-135m-int8").weight_bytes == 134_515_008


def test_presets_share_nothing(tmp_path, monkeypatch):
    """An export or a peer's model of other shapes would be measured unnoticed."""
    made = []
    run = ["--engines", "optserve-int8,ctranslate2-int8", "--work", str(tmp_path)]
    monkeypatch.setattr(bench, "_checkpoint", lambda preset, work, progress: work)
    monkeypatch.setattr(bench, "_engine", lambda name, args, *_: made.append(args.work))
    monkeypatch.setattr(bench, "memory_bandwidth", lambda threads: 1e9)
    monkeypatch.setattr(bench, "measure", lambda *_, **options: [])
    monkeypatch.setattr(bench, "_report", lambda *_: 0)
    parser = ArgumentParser()
    bench.configure(parser)
    for preset in ("125m", "350m"):
        assert bench.run(parser.parse_args([*run, "--preset", preset])) == 0
    assert len(made) == 4
    assert len(set(made)) == 2
    assert all(path.is_dir() for path in made)

"""What XLA compiled at export: found on this processor, harmless elsewhere."""

from __future__ import annotations

import os

import pytest
from optserve.runtime.server import compiled


@pytest.fixture(autouse=True)
def flags(monkeypatch):
    monkeypatch.setenv(compiled.FLAGS, "--tf_xla_clustering_debug")


def test_what_is_there_is_used_and_not_written(tmp_path):
    folder = compiled.compiled_folder(tmp_path)
    folder.mkdir(parents=True)
    assert compiled.use_compiled(tmp_path)
    assert os.environ[compiled.FLAGS].split() == [
        "--tf_xla_clustering_debug",
        f"--tf_xla_persistent_cache_directory={folder}",
        "--tf_xla_persistent_cache_read_only=true",
    ]
    assert not compiled.use_compiled(tmp_path)  # there is a folder already


def test_another_processors_programs_are_left_alone(tmp_path, monkeypatch):
    here = compiled.compiled_folder(tmp_path)
    here.mkdir(parents=True)
    monkeypatch.setattr(compiled.platform, "machine", lambda: "another")
    assert compiled.compiled_folder(tmp_path) != here
    assert not compiled.use_compiled(tmp_path)
    assert os.environ[compiled.FLAGS] == "--tf_xla_clustering_debug"


def test_another_tensorflows_programs_are_left_alone(tmp_path, monkeypatch):
    compiled.compiled_folder(tmp_path).mkdir(parents=True)
    monkeypatch.setattr(compiled, "version", lambda name: "0.0")
    assert not compiled.use_compiled(tmp_path)

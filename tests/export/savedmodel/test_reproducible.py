"""The same checkpoint and options give the same bytes, anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from optserve.runtime.model_dir import MANIFEST_PATH, folder_digests, read_manifest

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "pre_ln"

EXPORT = """
import json, sys
from optserve.export.options import ExportOptions
from optserve.export.pipeline import export_checkpoint
checkpoint, out, options = sys.argv[1:]
export_checkpoint(checkpoint, out, ExportOptions.from_json(options), verify=False)
"""


def run(out: str, options: str, *, cwd: Path, seed: str) -> None:
    """One export, in a process of its own."""
    cwd.mkdir(parents=True)
    environment = {**os.environ, "PYTHONHASHSEED": seed, "TF_CPP_MIN_LOG_LEVEL": "3"}
    checkpoint = os.path.relpath(GOLDEN, cwd)
    subprocess.run(
        [sys.executable, "-c", EXPORT, checkpoint, out, options],
        cwd=cwd,
        env=environment,
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize(
    "options",
    [
        '{"framework": "tf", "generate": [2]}',
        pytest.param(
            '{"framework": "jax", "generate": [2], "weights": "int8", '
            '"cache": "bfloat16"}',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            '{"framework": "tf", "compiler": "xla", "weights": "bfloat16"}',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_runs_in_two_folders_are_equal(tmp_path, options):
    run("out", options, cwd=tmp_path / "a", seed="1")
    run("../somewhere/else", options, cwd=tmp_path / "b", seed="2")
    first, second = tmp_path / "a" / "out" / "1", tmp_path / "somewhere" / "else" / "1"
    assert folder_digests(first) == folder_digests(second)
    manifests = [(folder / MANIFEST_PATH).read_bytes() for folder in (first, second)]
    assert manifests[0] == manifests[1]
    assert read_manifest(first).tool_versions["tensorflow"]
    # Nothing of the builder's machine is in it.
    package = str(Path(__file__).parents[3]).encode()
    graph = (first / "saved_model.pb").read_bytes()
    for path in (package, str(tmp_path).encode(), b"site-packages"):
        assert path not in graph

"""An export killed at any moment leaves no version; the next one tidies up."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optserve.export.digest import check_files
from optserve.export.layout import read_manifest, versions

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "pre_ln"
KILLS = 10


def start(out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "optserve.runtime.cli", "export", str(GOLDEN)]
    return subprocess.Popen(
        [*command, str(out), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--no-verify",)])
def test_killed_at_random_moments(tmp_path, options):
    begin = time.monotonic()
    assert start(tmp_path / "whole", *options).wait() == 0
    whole = time.monotonic() - begin
    random.seed(0)
    out = tmp_path / "out"
    left_over = 0
    for moment in [random.uniform(0.1, 1.0) for _ in range(KILLS)]:
        export = start(out, *options)
        try:
            export.wait(timeout=moment * whole)
        except subprocess.TimeoutExpired:
            export.kill()
            export.wait()
        # Whatever is there under a number is whole.
        for version in versions(out):
            folder = out / str(version)
            assert check_files(folder, read_manifest(folder)) == []
        left_over += len(list(out.glob(".staging-*")))
    assert left_over  # some were killed in the midst of writing
    before = versions(out)
    assert start(out, *options).wait() == 0
    assert len(versions(out)) == len(before) + 1
    assert not list(out.glob(".staging-*"))

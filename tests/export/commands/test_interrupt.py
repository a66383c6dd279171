"""An export killed at any moment leaves no version; the next one tidies up."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optserve.runtime.model_dir import changed_files, read_manifest, version_folders

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "pre_ln"
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
        for folder in version_folders(out).values():
            assert changed_files(folder, read_manifest(folder)) == []
        left_over += len(list(out.glob(".staging-*")))
    assert left_over  # some were killed in the midst of writing
    before = version_folders(out)
    assert start(out, *options).wait() == 0
    assert len(version_folders(out)) == len(before) + 1
    assert not list(out.glob(".staging-*"))


def processes_of(mark: str) -> set[int]:
    """Those that ``mark`` is in the environment of, which they have from their parent.

    Nothing of one that has ended can be read.
    """
    pids = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                pids.add(int(entry.name))
    return pids


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
def test_the_processes_of_an_export_end_with_it(tmp_path, monkeypatch, number, code):
    out = tmp_path / "out"
    monkeypatch.setenv("EXPORT_TO", str(out))
    mark = f"EXPORT_TO={out}"
    export = start(out)
    deadline = time.monotonic() + 60
    # Itself, the one that writes and the one that is to verify.
    while len(processes_of(mark)) < 3:
        assert time.monotonic() < deadline and export.poll() is None
        time.sleep(0.05)
    export.send_signal(number)
    assert export.wait() == code
    while processes_of(mark):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not version_folders(out)
    if number != signal.SIGKILL:
        assert not out.exists()

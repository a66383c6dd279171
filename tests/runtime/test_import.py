"""The client is light: what a production process pays for importing it."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("tensorflow", "jax", "flax", "torch", "rich", "opentelemetry")
SCRIPT = f"""
import json, sys, time
import numpy, grpc, tokenizers
begin = time.perf_counter()
import optserve.runtime
seconds = time.perf_counter() - begin
print(json.dumps([seconds, [m for m in {HEAVY!r} if m in sys.modules]]))
"""


def test_import_brings_no_framework_and_is_quick():
    best = 9.0
    for _ in range(3):
        out = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
        )
        seconds, heavy = json.loads(out.stdout)
        assert heavy == []
        best = min(best, seconds)
    assert best < 0.25


def test_whole_import_time():
    script = (
        "import time; b = time.perf_counter(); import optserve.runtime; "
        "print(time.perf_counter() - b)"
    )
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", script], capture_output=True, check=True
            ).stdout
        )
        for _ in range(3)
    ]
    assert min(times) < 0.5


def test_exported_members_exist():
    import optserve.runtime as runtime

    for name in runtime.__all__:
        assert getattr(runtime, name) is not None

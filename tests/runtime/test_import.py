"""The client is light: what a production process pays for importing it."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("tensorflow", "jax", "flax", "torch", "rich", "opentelemetry")
SCRIPT = f"""
import json, sys, time
import optserve.runtime
loaded = [m for m in {HEAVY!r} if m in sys.modules]
print(json.dumps([time.process_time(), loaded]))
"""


def test_import_brings_no_framework_and_takes_less_than_half_a_second():
    seconds = []
    for _ in range(3):
        out = subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
        )
        spent, heavy = json.loads(out.stdout)
        assert heavy == []
        seconds.append(spent)  # the processor's, the interpreter's own start included
    assert min(seconds) < 0.5


def test_exported_members_exist():
    import optserve.runtime as runtime

    for name in runtime.__all__:
        assert getattr(runtime, name) is not None

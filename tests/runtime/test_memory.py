"""The allocator keeps large blocks once told to."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from optserve.runtime.memory import keep_freed_memory
assert keep_freed_memory()
size = 100 << 20
def use():
    a = bytearray(size); b = bytearray(size); del b, a
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_large_blocks_are_reused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 1000  # page faults; 1,000,000 if nothing is kept

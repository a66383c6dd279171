"""The allocator keeps large blocks once told to."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

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


RELEASED = """
from optserve.runtime import memory
assert memory.keep_freed_memory()
before = memory.resident_bytes()
block = b"x" * (200 << 20)
del block
kept = memory.resident_bytes() - before
memory.release_freed_memory()
print(kept >> 20, (memory.resident_bytes() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_what_was_kept_can_be_released() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RELEASED], check=True, capture_output=True, text=True
    )
    kept, left = map(int, done.stdout.split())
    assert kept >= 190 and left < 20


HUGE = """
import threading
from pathlib import Path
from optserve.runtime.memory import on_huge_pages
def huge():
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(text.split("AnonHugePages:")[1].split()[0]) >> 10
with on_huge_pages():
    block = bytearray(b"1") * (128 << 20)
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join()
assert block.count(b"1") == len(block)
print(huge())
"""


def _collapses() -> bool:
    release = platform.release().split(".")
    return sys.platform == "linux" and (int(release[0]), int(release[1])) >= (6, 1)


@pytest.mark.skipif(not _collapses(), reason="Linux 6.1 or later only")
def test_large_blocks_move_to_huge_pages() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HUGE], check=True, capture_output=True, text=True
    )
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("a kernel without huge pages")
    assert int(done.stdout) > 100  # MiB

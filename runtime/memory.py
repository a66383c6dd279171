"""What the allocator and the kernel are asked for, where it saves time.

**Freed memory is kept** for the next request, in processes that are ours. A request
with a cache is tens or hundreds of megabytes. glibc gives such a block back to the
kernel when it is freed, and the kernel clears it again page by page when the next
request takes it: 100 MB take 11 ms to fill then instead of 3.

**Huge pages** hold what a model packs when it loads. Every token reads all of it, and
in pages of 4 KiB the processor waits for their addresses: 1 GB took it 46 ms, and 42 in
pages of 2 MiB.

``tests/benchmarks/claims.py freed-memory huge-pages`` measures both; the figures are of
an AMD EPYC (Zen 4) with 2 vCPUs.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_MADV_COLLAPSE = 25  # linux/mman.h, since 6.1
_HUGE_PAGE = 2 << 20
_LARGE = 16 << 20


def keep_freed_memory() -> bool:
    """Let the allocator keep what is freed; True if it will.

    All blocks then come from one heap, and the process stays as large as it ever was.
    It holds for the whole process, so commands call it and the library doesn't;
    applications that send large caches may, first of all. glibc only; elsewhere nothing
    happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    options = {
        _M_ARENA_MAX: 1,
        _M_MMAP_MAX: 0,
        _M_TOP_PAD: 16 << 20,
        _M_TRIM_THRESHOLD: 2**31 - 1,
    }
    return all(mallopt(option, value) for option, value in options.items())


def release_freed_memory() -> None:
    """Return what has been freed to the system, where the C library keeps it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc's


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the system doesn't say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int | None:
    """Memory that a process may still take: the machine's or the container's rest.

    None where the system doesn't say.
    """
    limits = []
    with suppress(OSError):
        text = Path("/proc/meminfo").read_text()
        if match := re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE):
            limits.append(1024 * int(match[1]))
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no such files, or "max"
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        text = (group / "memory.stat").read_text()  # files that may be dropped
        files = re.search(r"^inactive_file (\d+)", text, re.MULTILINE)
        limits.append(max(0, limit - used + int(files[1] if files else 0)))
    return min(limits, default=None)


@contextmanager
def on_huge_pages() -> Iterator[None]:
    """What is allocated inside, in large blocks, moves to huge pages soon afterwards.

    A thread sees to it, for it takes up to some seconds per gigabyte. Linux 6.1 or
    later; elsewhere, and where the kernel has no such pages left, nothing happens.
    """
    before = _large_blocks()
    yield
    blocks = _large_blocks() - before
    if blocks:
        threading.Thread(target=_collapse, args=(blocks,), daemon=True).start()


def _collapse(blocks: set[tuple[int, int]]) -> None:
    with suppress(OSError, AttributeError):
        madvise = ctypes.CDLL(None).madvise
        for start, end in blocks:
            start = -(-start // _HUGE_PAGE) * _HUGE_PAGE
            size = (end - start) // _HUGE_PAGE * _HUGE_PAGE
            where = ctypes.c_void_p(start), ctypes.c_size_t(size)
            for _ in range(3):  # pages that the kernel held at the moment are left out
                if madvise(*where, _MADV_COLLAPSE) == 0:
                    break


def _large_blocks() -> set[tuple[int, int]]:
    """Addresses of this process's own large blocks that are nearly all in use."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return set()
    blocks, start, end = set(), 0, 0
    for line in lines:
        name, *values = line.split()
        if name == "Anonymous:":
            used = 1024 * int(values[0])
            if used >= _LARGE and used >= 0.9 * (end - start):
                blocks.add((start, end))
        elif not name.endswith(":"):  # a block's first line
            start, end = (int(part, 16) for part in name.split("-"))
    return blocks

"""Keep freed memory for the next request, in processes that are ours.

A request with a cache is tens or hundreds of megabytes. glibc gives such a block back
to the kernel when it is freed, and the kernel clears it again page by page when the
next request takes it: with large caches that takes twice as long as sending them.
"""

from __future__ import annotations

import ctypes
import sys

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


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
    wanted = {
        _M_ARENA_MAX: 1,
        _M_MMAP_MAX: 0,
        _M_TOP_PAD: 16 << 20,
        _M_TRIM_THRESHOLD: 2**31 - 1,
    }
    return all(mallopt(option, value) for option, value in wanted.items())

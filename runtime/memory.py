"""Keep freed memory for the next request, in processes that are ours.

A request with a cache is tens of megabytes. glibc gives such a block back to the
kernel when it is freed, and the kernel clears it again page by page when the next
request takes it: with 19 MB requests that doubles the time of a call.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MMAP_MAXIMUM = 32 << 20  # the largest that glibc takes


def keep_freed_memory(size: int = 256 << 20) -> bool:
    """Let the allocator keep up to ``size`` bytes; True if it will.

    It holds for the whole process, so commands call it and the library doesn't;
    applications that send large caches may. glibc only; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _MMAP_MAXIMUM) and mallopt(_M_TRIM_THRESHOLD, size)
    )

"""Memory goes back to the system when large calls have ended."""

from __future__ import annotations

import threading

from ..memory import release_freed_memory, resident_bytes
from .aligned_buffers import BUFFERS
from .grpc_front import Workers

_LOOK_SECONDS = 2.0
_LARGE = 4 << 20  # bytes of a message
_GROWTH, _SLACK = 1.1, 32 << 20


class MemoryWatch:
    """Looks at the process's size, and releases what is freed while no one needs it.

    The allocator keeps freed blocks for the next large request, which would otherwise
    wait for the kernel to clear them (``runtime/memory.py``). When there has been no
    large message for two looks, the next one may wait.
    """

    def __init__(self, workers: Workers, stopping: threading.Event) -> None:
        self._workers = workers
        self._stopping = stopping
        self._settled = self._lowest = self._quiet_looks = 0
        self._large_since = False

    def start(self) -> None:
        """Begin to look, until ``stopping`` is set."""
        threading.Thread(target=self._run, name="optserve-memory", daemon=True).start()

    def look(self) -> None:
        """Look once."""
        if self._workers.largest_message() >= _LARGE:
            self._large_since, self._quiet_looks = True, 0
            return
        self._quiet_looks += 1
        size = resident_bytes()
        # What was measured while a large message arrived is not a level to return to.
        level = self._lowest if self._large_since else self._settled
        if self._quiet_looks >= 2 and size > _GROWTH * level + _SLACK:
            BUFFERS.clear()
            release_freed_memory()
            self._settled = resident_bytes()
            self._lowest = min(self._lowest or self._settled, self._settled)
            self._large_since = False

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            self.look()

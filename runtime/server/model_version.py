"""One version of a model: its state, the calls that use it, its files' fingerprint."""

from __future__ import annotations

import contextlib
import enum
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .servable import Servable
from .serving_error import ServingError, as_serving_error


class State(enum.IntEnum):
    """Life of a version; numbers as in ``get_model_status.proto``."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass
class Version:
    """One version: where it is in its life, and the calls under way."""

    number: int
    state: State = State.START
    error: ServingError | None = None
    servable: Servable | None = None
    fingerprint: frozenset[tuple[str, int, int]] = frozenset()
    _calls: int = 0
    _idle: threading.Condition = field(default_factory=threading.Condition)

    @contextlib.contextmanager
    def lease(self) -> Iterator[Servable | None]:
        """The servable, kept in memory until the block ends; None if it isn't there."""
        with self._idle:
            servable = self.servable if self.state is State.AVAILABLE else None
            if servable is not None:
                self._calls += 1
        try:
            yield servable
        finally:
            if servable is not None:
                with self._idle:
                    self._calls -= 1
                    self._idle.notify_all()

    def fail(self, error: Exception) -> None:
        """End before it ever served; ``error`` says why."""
        self.error = as_serving_error(error)
        self.state = State.END

    def unload(self) -> None:
        """Refuse new calls, wait for those under way, free the memory."""
        with self._idle:
            if self.state is not State.AVAILABLE:
                return
            self.state = State.UNLOADING
            self._idle.wait_for(lambda: not self._calls)
            servable, self.servable = self.servable, None
        try:
            if servable is not None:
                servable.close()
        finally:
            self.state = State.END


def fingerprint(folder: Path) -> frozenset[tuple[str, int, int]]:
    """Changes with any file, so that a version that was still being copied, or has
    been repaired, is tried again. What can't be read has none."""
    entries = set()
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(root, name)
            with contextlib.suppress(OSError):
                entry = os.stat(path)
                entries.add((path, entry.st_size, entry.st_mtime_ns))
    return frozenset(entries)

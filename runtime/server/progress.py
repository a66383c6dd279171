"""What a server says while a version becomes ready: each step, and how long it took."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .serving_error import stopping

log = logging.getLogger("optserve.server")

_WORTH_A_LINE = 1.0  # seconds
_AT_LEAST_EVERY = 5.0  # seconds


class Progress:
    """The steps of one version, each said on the log when it has ended.

    Short steps share a line, so that a file of a thousand warm-up requests doesn't
    print a thousand. ``stopping`` set gives up at the next step.
    """

    def __init__(self, model: str, version: int, stopping: threading.Event) -> None:
        self._model, self._version, self._stopping = model, version, stopping
        self._last_line = time.monotonic()

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Around one step; an exception leaves without a line.

        Raises:
            ServingError: CANCELLED, the server is stopping.
        """
        if self._stopping.is_set():
            raise stopping()
        begin = time.monotonic()
        yield
        now = time.monotonic()
        seconds = now - begin
        if seconds >= _WORTH_A_LINE or now - self._last_line >= _AT_LEAST_EVERY:
            self._last_line = now
            self._say(what, seconds)

    def found(self, answers: Mapping[str, bool]) -> None:
        """Say what the version has found out about the processor, if anything."""
        for what, answer in answers.items():
            log.info(
                "version %d of model %s: %s: %s",
                self._version,
                self._model,
                what,
                "yes" if answer else "no",
                extra={
                    "model": self._model,
                    "version": self._version,
                    "found": what,
                    "answer": answer,
                },
            )

    def _say(self, what: str, seconds: float) -> None:
        log.info(
            "version %d of model %s: %s after %.1f s",
            self._version,
            self._model,
            what,
            seconds,
            extra={
                "model": self._model,
                "version": self._version,
                "step": what,
                "seconds": round(seconds, 3),
            },
        )

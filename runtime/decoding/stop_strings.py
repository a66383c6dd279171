"""Text as it becomes certain, ended by stop strings that never show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class IncrementalText(Protocol):
    """What turns tokens into text bit by bit (``models.tokenizer``)."""

    def add(self, ids: Sequence[int]) -> str:
        """The text that became certain."""
        ...

    def finish(self) -> str:
        """The rest."""
        ...


class StopText:
    """Passes text on, holding back what may be the beginning of a stop string."""

    def __init__(self, text: IncrementalText | None, stops: Sequence[str]) -> None:
        self._source = text
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None
        """The stop string that came, None while there is none."""

    def add(self, token: int) -> str:
        """The text that may be shown now; sets ``matched``."""
        if self._source is None or self.matched is not None:
            return ""
        self._held += self._source.add([token])
        if not self._stops:
            return self._release(len(self._held))
        places = [(self._held.find(stop), stop) for stop in self._stops]
        matches = [(at, stop) for at, stop in places if at >= 0]
        if matches:
            at, self.matched = min(matches, key=lambda match: match[0])
            shown, self._held = self._held[:at], ""
            return shown
        return self._release(len(self._held) - self._open())

    def finish(self) -> str:
        """What was held back, where no stop string came."""
        if self._source is None or self.matched is not None:
            return ""
        return self._release(len(self._held)) + self._source.finish()

    def _release(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown

    def _open(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0

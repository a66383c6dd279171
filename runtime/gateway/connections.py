"""HTTP connections that nobody can hold for nothing: uvicorn's, with limits."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class BoundedConnection(H11Protocol):
    """A connection that ends where its caller sends no request, or takes no answer.

    uvicorn bounds the time between requests only: a head that comes byte by byte, or
    never, would hold its connection for good. The application bounds the body's time.

    Attributes:
        request_seconds: from the connection's beginning, or from the end of an answer,
            until a request's head is there as a whole.
        answer_seconds: how long a caller may take nothing of an answer.
        most_idle: connections that wait for a request; of more than that one ends
            that never brought one, if there is any, the one that has waited longest.
    """

    request_seconds = 30.0
    answer_seconds = 60.0
    most_idle = 512

    _waiting_since = 0.0
    _request_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A connection is there."""
        super().connection_made(transport)
        self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        """Some bytes of it."""
        super().data_received(data)
        if self._answering:
            self._stop_waiting_for_request()

    def on_response_complete(self) -> None:
        """An answer has been written; the next request may be here already."""
        super().on_response_complete()
        if not self._answering:
            self._wait_for_request()

    def pause_writing(self) -> None:
        """The answer comes quicker than the caller takes it."""
        super().pause_writing()
        self._expect_less(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Most of it was taken."""
        super().resume_writing()
        self._stop_waiting_for_caller()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        super().connection_lost(exc)
        self._stop_waiting_for_request()
        self._stop_waiting_for_caller()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_request(self) -> None:
        self._stop_waiting_for_request()
        self._waiting_since = time.monotonic()  # the loop's own clock stands still
        seconds = self.request_seconds
        self._request_timer = self.loop.call_later(seconds, self.transport.close)
        if len(self.connections) > self.most_idle:
            _close_oldest(self.connections, self.most_idle)

    def _stop_waiting_for_request(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _expect_less(self, unsent: int) -> None:
        """Look later whether the caller has taken some of the unsent bytes."""

        def look() -> None:
            left = self.transport.get_write_buffer_size()
            if left < unsent:
                self._expect_less(left)
            else:
                self.transport.abort()

        self._answer_timer = self.loop.call_later(self.answer_seconds, look)

    def _stop_waiting_for_caller(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None


def _close_oldest(connections: Any, most_idle: int) -> None:
    """Close one connection if more than so many wait: one that never brought a request
    before the others, whose callers may send their next one this moment."""
    waiting = [c for c in connections if c._request_timer is not None]
    if len(waiting) > most_idle:
        first = min(waiting, key=lambda c: (c.cycle is not None, c._waiting_since))
        first.transport.abort()

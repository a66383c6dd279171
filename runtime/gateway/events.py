"""Server-sent events, as OpenAI streams its answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from ..printable import json_text
from .api_errors import as_api_error
from .receiving import unless_disconnected

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def event_response(
    events: AsyncIterator[dict[str, Any]], request: Request
) -> StreamingResponse:
    """An answer that sends each of them.

    Waits for the first one, so that what is refused by then has its own status.

    Raises:
        ClientDisconnect: the caller went away first, which has ended the events.
    """
    first = await unless_disconnected(request, _first(events))
    body = _lines(first, events)
    return StreamingResponse(body, media_type="text/event-stream", headers=_HEADERS)


async def _first(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(events, None)


async def _lines(
    first: dict[str, Any] | None, events: AsyncIterator[dict[str, Any]]
) -> AsyncGenerator[str, None]:
    try:
        if first is not None:
            yield _line(first)
        async for event in events:
            yield _line(event)
    except Exception as error:
        yield _line(as_api_error(error).body())
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
    yield "data: [DONE]\n\n"


def _line(event: dict[str, Any]) -> str:
    return f"data: {json_text(event)}\n\n"

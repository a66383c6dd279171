"""The page at ``/``: three files that load nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def page_routes() -> list[Route]:
    """The page's paths."""
    names = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
    return [_route(path, name) for path, name in names.items()]


def _route(path: str, name: str) -> Route:
    content = files(__package__ or "").joinpath(name).read_bytes()
    kind = _TYPES[name.rpartition(".")[2]]

    async def endpoint(_request: Request) -> Response:
        return Response(content, headers=_HEADERS, media_type=kind)

    return Route(path, endpoint)

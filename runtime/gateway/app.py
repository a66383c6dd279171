"""The gateway as an ASGI application: which path is answered by what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import __version__
from ..async_client import AsyncClient
from ..printable import json_text
from . import bodies, documentation, tokenization
from .admission import Admission
from .api_errors import ApiError, as_api_error
from .bodies import Body, read_body
from .chat import Chat, ChatTemplate
from .choices import Runner
from .completions import Completion
from .embeddings import embeddings
from .events import event_response
from .keys import Keys
from .metrics import Metrics
from .page import page_routes
from .receiving import receive_body, unless_disconnected
from .served import Models
from .settings import GatewaySettings
from .tracing import open_tracing

B = TypeVar("B", bound=Body)
Handler = Callable[[B, str, Request], Awaitable[Response]]


class Json(JSONResponse):
    """JSON without NaN, and safe to print."""

    def render(self, content: Any) -> bytes:
        return json_text(content).encode()


@dataclass(frozen=True)
class Endpoint:
    """A path, what its body is like, and what it does."""

    path: str
    body: type[Body]
    summary: str


ENDPOINTS = (
    Endpoint("/v1/completions", bodies.CompletionBody, "Continue prompts."),
    Endpoint("/v1/chat/completions", bodies.ChatBody, "Continue a conversation."),
    Endpoint("/v1/embeddings", bodies.EmbeddingBody, "Vectors of texts."),
    Endpoint("/tokenize", bodies.TokenizeBody, "Token ids of a text."),
    Endpoint("/detokenize", bodies.DetokenizeBody, "The text of token ids."),
)
READ_PATHS = {
    "/v1/models": "The models that are served.",
    "/v1/models/{name}": "One of them.",
    "/tokenizer_info": "A tokenizer's special tokens.",
    "/health": "Whether the gateway runs.",
    "/ready": "Whether servers have every model: 503 while one is missing.",
    "/version": "The gateway's version.",
    "/metrics": "Figures for Prometheus.",
}
"""What GET answers, and with what."""


def create_app(
    clients: Mapping[str, AsyncClient], settings: GatewaySettings | None = None
) -> Starlette:
    """An application that serves these models.

    Args:
        clients: by the name that requests give, ``opt`` or ``opt:label``; closed when
            the application shuts down.
        settings: limits and files.

    Raises:
        InvalidRequest: the file of keys or the template is wrong.
    """
    gateway = _Gateway(clients, settings or GatewaySettings())
    return gateway.app()


class _Gateway:
    def __init__(
        self, clients: Mapping[str, AsyncClient], settings: GatewaySettings
    ) -> None:
        self._settings = settings
        self._keys = Keys(settings.keys_file)
        source = settings.chat_template
        self._template = None if source is None else ChatTemplate(source)
        self._models = Models(clients)
        admission = Admission(most=settings.max_active, most_waiting=settings.max_queue)
        self._metrics = Metrics(
            self._models.names,
            admission.running_of,
            admission.waiting_of,
            lambda model: self._models.cache_use(
                model, admission.running_of(model) / settings.max_active
            ),
        )
        self._tracing = open_tracing()
        self._runner = Runner(
            admission, self._metrics, self._tracing, seconds=settings.request_seconds
        )

    def app(self) -> Starlette:
        """The application."""
        handlers: dict[str, Handler[Any]] = {
            "/v1/completions": self._complete,
            "/v1/chat/completions": self._chat,
            "/v1/embeddings": self._embed,
            "/tokenize": self._tokenize,
            "/detokenize": self._detokenize,
        }
        posts = [
            Route(e.path, self._posted(e.body, handlers[e.path]), methods=["POST"])
            for e in ENDPOINTS
        ]
        gets = {
            "/v1/models": self._list,
            "/v1/models/{name}": self._one_model,
            "/tokenizer_info": self._tokenizer_info,
            "/health": self._health,
            "/ready": self._ready,
            "/version": self._version,
            "/metrics": self._figures,
            "/openapi.json": self._openapi,
            "/docs": self._docs,
        }
        routes = [Route(path, self._got(get)) for path, get in gets.items()]
        app = Starlette(
            routes=[*posts, *routes, *page_routes()],
            lifespan=self._lifespan,
            middleware=self._middleware(),
            exception_handlers={HTTPException: _unknown},
        )
        app.router.redirect_slashes = False  # to wherever the caller's Host says
        return app

    def _middleware(self) -> list[Middleware]:
        if not self._settings.allow_origins:
            return []
        return [
            Middleware(
                CORSMiddleware,
                allow_origins=list(self._settings.allow_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
            )
        ]

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        connecting = asyncio.create_task(self._models.connect())
        try:
            yield
        finally:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            await self._models.close()

    def _posted(
        self, kind: type[B], handler: Handler[B]
    ) -> Callable[[Request], Awaitable[Response]]:
        """An endpoint that checks the key, reads the body and answers failures."""
        settings = self._settings

        async def endpoint(request: Request) -> Response:
            try:
                self._tracing.continue_trace(request.headers)
                key = self._keys.check(request.headers.get("authorization"))
                data = await receive_body(
                    request, limit=settings.body_limit, seconds=settings.body_seconds
                )
                return await handler(read_body(kind, data), key, request)
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception as error:
                return as_api_error(error).response()

        return endpoint

    def _got(
        self, get: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                return await get(request)
            except Exception as error:
                return as_api_error(error).response()

        return endpoint

    async def _complete(
        self, body: bodies.CompletionBody, key: str, request: Request
    ) -> Response:
        served = await self._models.get(body.model)
        user = f"{key}/{body.user}"
        completion = await Completion.of(body, served, self._runner, user)
        return await _answer(completion, request)

    async def _chat(
        self, body: bodies.ChatBody, key: str, request: Request
    ) -> Response:
        served = await self._models.get(body.model)
        user = f"{key}/{body.user}"
        chat = await Chat.of(body, self._template, served, self._runner, user)
        return await _answer(chat, request)

    async def _embed(
        self, body: bodies.EmbeddingBody, key: str, request: Request
    ) -> Response:
        served = await self._models.get(body.model)

        async def answer() -> Any:
            user = f"{key}/{body.user}"
            async with self._runner.place(served, user, body.priority) as left:
                return await embeddings(body, served, timeout=left)

        return Json(await unless_disconnected(request, answer()))

    async def _tokenize(
        self, body: bodies.TokenizeBody, _key: str, _request: Request
    ) -> Response:
        served = await self._models.get(body.model)
        return Json(await tokenization.tokenize(body, served))

    async def _detokenize(
        self, body: bodies.DetokenizeBody, _key: str, _request: Request
    ) -> Response:
        served = await self._models.get(body.model)
        return Json(tokenization.detokenize(body, served))

    async def _tokenizer_info(self, request: Request) -> Response:
        self._keys.check(request.headers.get("authorization"))
        served = await self._models.get(request.query_params.get("model", ""))
        return Json(tokenization.tokenizer_info(served))

    async def _list(self, request: Request) -> Response:
        self._keys.check(request.headers.get("authorization"))
        listed = [await self._about(name) for name in self._models.names]
        return Json({"object": "list", "data": listed})

    async def _one_model(self, request: Request) -> Response:
        self._keys.check(request.headers.get("authorization"))
        return Json(await self._about(request.path_params["name"]))

    async def _about(self, name: str) -> dict[str, Any]:
        """A model as listed; raises ``ApiError`` 404."""
        served = await self._models.get(name)
        return {
            "id": name,
            "object": "model",
            "created": self._models.created,
            "owned_by": "optserve",
            "root": name,
            "max_model_len": served.positions,
        }

    async def _health(self, _request: Request) -> Response:
        return Json({"status": "ok"})

    async def _ready(self, _request: Request) -> Response:
        if (missing := await self._models.missing()) is not None:
            message = f"the model {missing!r} is not served at the moment"
            raise ApiError(503, message, kind="server_error")
        return Json({"status": "ready"})

    async def _version(self, _request: Request) -> Response:
        return Json({"version": __version__})

    async def _figures(self, _request: Request) -> Response:
        kind = self._metrics.content_type
        return Response(self._metrics.text(), headers={"Content-Type": kind})

    async def _openapi(self, _request: Request) -> Response:
        return Json(documentation.openapi(ENDPOINTS, READ_PATHS))

    async def _docs(self, _request: Request) -> Response:
        return Response(
            documentation.page(ENDPOINTS, READ_PATHS), media_type="text/html"
        )


async def _answer(request_made: Completion | Chat, request: Request) -> Response:
    if request_made.wants_stream:
        return await event_response(request_made.streamed(), request)
    return Json(await unless_disconnected(request, request_made.whole()))


async def _unknown(_request: Request, error: Exception) -> Response:
    """404 and 405 in the form of all others."""
    assert isinstance(error, HTTPException)
    kind = "the path is not served" if error.status_code == 404 else error.detail
    return ApiError(error.status_code, f"{kind}: see /docs").response()

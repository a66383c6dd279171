"""The models behind a gateway: a client and a tokenizer for each name."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from ...models.tokenizer import Tokenizer
from ..async_client import AsyncClient
from ..contract import Manifest
from ..decoding.engine import Engine
from ..errors import OptserveError
from ..options import Prompt
from .api_errors import ApiError

_READY_SECONDS = 2.0
_LOOK_AGAIN = 1.0
_LONG = 4096  # characters, or tokens
_log = logging.getLogger("optserve.gateway")


class Served:
    """One model as requests name it: ``opt``, or ``opt:canary`` for a label."""

    def __init__(self, name: str, client: AsyncClient, engine: Engine) -> None:
        self.name, self.client, self._engine = name, client, engine

    @property
    def manifest(self) -> Manifest:
        """Of the version that is served now."""
        return self._engine.versions.current.manifest

    @property
    def positions(self) -> int:
        """Most tokens of a prompt and its continuation."""
        return self._engine.versions.current.positions

    @property
    def tokenizer(self) -> Tokenizer:
        """For text.

        Raises:
            ApiError: 400, this model has none.
        """
        if self._engine.tokenizer is None:
            raise ApiError(
                400, "this model is served without a tokenizer: send token ids"
            )
        return self._engine.tokenizer

    async def encode(self, prompt: Prompt, *, special: bool = True) -> list[int]:
        """Token ids of text, or checked ids; raises ``InvalidRequest``.

        A long text, which takes seconds, is read in a thread; between short ones, of
        which there may be many, others get their turn.
        """
        if len(prompt) < _LONG:
            await asyncio.sleep(0)
            return self._engine.encode(prompt, special=special)
        return await asyncio.to_thread(self._engine.encode, prompt, special=special)

    def piece(self, token: int) -> str:
        """A token by itself as text.

        A part of a character is ``bytes:\\xe2\\x82``, as in OpenAI's API, and an id
        without a text ``token_id:7``, so that no two tokens look alike.
        """
        tokenizer = self._engine.tokenizer
        data = tokenizer.token_bytes(token, False) if tokenizer else b""
        try:
            return data.decode() or f"token_id:{token}"
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def text(self, tokens: list[int]) -> str:
        """Tokens as text, special ones included."""
        return self.tokenizer.decode(tokens, skip_special_tokens=False)


class Models:
    """All models of a gateway; each connects when it is first asked for.

    Args:
        clients: by name; requests that name none get the first.
    """

    def __init__(self, clients: Mapping[str, AsyncClient]) -> None:
        self._clients = dict(clients)
        self.created = int(time.time())
        self._looking = asyncio.Lock()
        self._looked, self._missing = -_LOOK_AGAIN, None

    @property
    def names(self) -> list[str]:
        """As requests give them."""
        return list(self._clients)

    async def get(self, name: str) -> Served:
        """The model of this name, connected.

        Raises:
            ApiError: 404, no such model here.
            OptserveError: it can't be reached.
        """
        name = name or self.names[0]
        client = self._clients.get(name)
        if client is None:
            raise ApiError(
                404,
                f"the model {name[:80]!r} is not served here: use one of "
                f"{', '.join(self.names)}",
                param="model",
                code="model_not_found",
            )
        return Served(name, client, await client.connect())

    async def connect(self) -> None:
        """Connect to each, so that the first requests needn't; the log says how."""
        for name in self.names:
            begin = time.monotonic()
            try:
                await self.get(name)
            except OptserveError as error:
                _log.warning("model %s: %s", name, error)
            else:
                seconds = time.monotonic() - begin
                _log.info("model %s is ready after %.1f s", name, seconds)

    async def missing(self) -> str | None:
        """A model that no server has now, None if all are there; asked once at a time.

        However many ask: what was found counts for ``_LOOK_AGAIN`` seconds.
        """
        async with self._looking:
            if time.monotonic() >= self._looked + _LOOK_AGAIN:
                self._missing = await self._look()
                self._looked = time.monotonic()
            return self._missing

    async def _look(self) -> str | None:
        for name, client in self._clients.items():
            try:
                await asyncio.wait_for(
                    client.check_ready(_READY_SECONDS), _READY_SECONDS
                )
            except (OptserveError, asyncio.TimeoutError):
                return name
        return None

    def cache_use(self, name: str, otherwise: float) -> float:
        """The share of this model's sessions in use; ``otherwise`` without any."""
        share = self._clients[name].session_use
        return otherwise if share is None else share

    async def close(self) -> None:
        """End what is under way and release the connections."""
        for client in self._clients.values():
            await client.close()

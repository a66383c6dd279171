"""The models behind a gateway: there or gone, at this moment."""

from __future__ import annotations

import asyncio

from optserve.runtime import AsyncClient, Unavailable
from optserve.runtime.gateway.served import _LOOK_AGAIN, Models

from tests.runtime.numpy_model import AsyncNumpy


class Server(AsyncNumpy):
    """One that may be away, and counts how often it was asked."""

    away, asked = False, 0

    async def wait_until_ready(self, timeout=None):
        self.asked += 1
        if self.away:
            raise Unavailable("nobody answers")


def test_a_model_that_goes_away_is_missing_until_it_is_back():
    async def go():
        servers = {"opt": Server(), "tiny": Server()}
        models = Models({n: AsyncClient(transport=t) for n, t in servers.items()})
        found = [await models.missing()]
        for away in (True, False):
            servers["tiny"].away = away
            await asyncio.sleep(_LOOK_AGAIN)
            found += await asyncio.gather(*(models.missing() for _ in range(50)))
        await models.close()
        return found, servers["tiny"].asked

    found, asked = asyncio.run(go())
    assert found == [None] + ["tiny"] * 50 + [None] * 50
    assert asked == 3  # however many ask


def test_a_server_that_does_not_answer_is_missing(monkeypatch):
    class Stalled(Server):
        async def wait_until_ready(self, timeout=None):
            await asyncio.sleep(60)

    async def go():
        models = Models({"opt": AsyncClient(transport=Stalled())})
        monkeypatch.setattr("optserve.runtime.gateway.served._READY_SECONDS", 0.1)
        return await models.missing()

    assert asyncio.run(go()) == "opt"

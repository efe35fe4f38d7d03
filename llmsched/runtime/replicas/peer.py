"""What a gateway asks the leader over HTTP: news of what is committed, what runs right now, and answers for clients.

The paths below /internal are for gateways only. They know each other by the secret in the lease, which whoever may read
the database may read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import aiohttp
import httpx

from llmsched.model.records import Leader
from llmsched.runtime.hub import Hub
from llmsched.runtime.replicas.feed import decode
from llmsched.runtime.transport import transport_for

log = logging.getLogger(__name__)

FEED = "/internal/feed"
LIVE = "/internal/jobs/{id}"
#: Marks a request that another gateway has passed on.
RELAYED = "x-llmsched-relayed"

#: Seconds to reach the leader, and for what it has in memory.
CONNECT = 1.0
ANSWER = 2.0
#: Seconds between attempts to reach it.
_PAUSE = 0.1

FAILURES = (httpx.HTTPError, aiohttp.ClientError, TimeoutError, ValueError)


class Peer:
    """The gateway that leads, seen from one that follows. leader: who it is; None: nobody known, or this one.

    patience: seconds without a sign of life after which its news is no longer waited for.
    """

    def __init__(self, leader: Callable[[], Leader | None], hub: Hub, *, patience: float) -> None:
        self._leader = leader
        self._hub = hub
        self._patience = patience
        self._clients: dict[str, httpx.AsyncClient] = {}
        self._hears = asyncio.Event()

    async def follow(self) -> None:
        """Tells this gateway's listeners, while there are any, what the leader commits; runs until it is cancelled."""
        while True:
            leader = self._leader()
            if leader is not None and self._hub.listeners:
                try:
                    await self._listen(leader)
                except FAILURES as error:
                    log.info("the leader's news ended", extra={"leader": leader.url, "error": str(error)})
                finally:
                    self._hears.clear()
            await asyncio.sleep(_PAUSE)

    async def hears(self) -> None:
        """Returns when the leader's news comes in, or after a while without."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER):
                await self._hears.wait()

    async def _listen(self, leader: Leader) -> None:
        limits = httpx.Timeout(self._patience, connect=CONNECT)
        request = self._client(leader).build_request("GET", FEED, headers=_proof(leader), timeout=limits)
        response = await self._client(leader).send(request, stream=True)
        try:
            if response.status_code != 200:
                return
            self._hub.lapse()  # what was committed before is in the store
            self._hears.set()
            async for line in response.aiter_lines():
                if not self._hub.listeners:
                    return
                if line:
                    events, tenants = decode(line)
                    self._hub.publish(events, tenants.__getitem__)
        finally:
            await response.aclose()

    async def live(self, job: str) -> dict[str, Any]:
        """What the leader has in memory of a job; nothing where it does not say."""
        leader = self._leader()
        if leader is None:
            return {}
        try:
            response = await self._client(leader).get(
                LIVE.format(id=job), headers=_proof(leader), timeout=httpx.Timeout(ANSWER, connect=CONNECT)
            )
            found: dict[str, Any] = response.json() if response.status_code == 200 else {}
        except FAILURES:
            return {}
        return found

    async def ask(
        self, leader: Leader, method: str, path: str, headers: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> httpx.Response:
        """A client's request, passed on; close the answer when it is read. Raises one of FAILURES."""
        client = self._client(leader)
        limits = httpx.Timeout(None, connect=CONNECT)
        passed = [*headers, (RELAYED.encode(), b"1")]
        return await client.send(
            client.build_request(method, path, headers=passed, content=body, timeout=limits), stream=True
        )

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    def _client(self, leader: Leader) -> httpx.AsyncClient:
        if leader.url not in self._clients:
            self._clients[leader.url] = httpx.AsyncClient(base_url=leader.url, transport=transport_for(leader.url))
        return self._clients[leader.url]


def _proof(leader: Leader) -> dict[str, str]:
    return {"authorization": f"Bearer {leader.secret}"}

"""The service behind a real socket, in this event loop: for clients that speak HTTP themselves, and go away."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from tests.integration.service import InProcessService, in_process_service, until


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are pytest's


@asynccontextmanager
async def served(folder: Path, **settings: Any) -> AsyncIterator[tuple[InProcessService, str]]:
    """The service and the URL it is at. settings: as for `in_process_service`."""
    async with in_process_service(folder, **settings) as service, serving(service) as url:
        yield service, url


@asynccontextmanager
async def serving(service: InProcessService) -> AsyncIterator[str]:
    """A socket in front of a service that runs already."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(service.app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started, what="the server")
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, timeout=30.0) as http:
            inner, service.http = service.http, http
            try:
                yield url
            finally:
                service.http = inner
                server.should_exit = True
                await task


async def jobs_of(service: InProcessService, application: str, *, count: int = 1) -> list[dict[str, Any]]:
    """The jobs of an observed application, newest first, once so many are stored."""
    while True:
        found: list[dict[str, Any]] = (await service.get(f"/v1/jobs?application={application}")).json()["items"]
        if len(found) >= count:
            return found
        await asyncio.sleep(0.01)

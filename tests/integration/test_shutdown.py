"""SIGTERM: exit 0 in bounded time, nothing lost, streams end so that their clients come back; and the other ends.

The engines run in this process, so that what the service did to them can be seen after its end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from llmsched.runtime.emulator import EmulatedEngine, emulated
from llmsched.workloads import WORKLOADS
from tests.integration.databases import postgres, postgres_url
from tests.integration.service import Event, RunningService, a_recording, events_of, running_service, until

__all__ = ["postgres", "postgres_url"]
JOBS = [a_recording(application, seed=k) for k, application in enumerate(WORKLOADS["mixed-nodoc"] * 2)]


async def submit_all(service: RunningService) -> list[str]:
    return [(await service.submit(recording=recording))["id"] for recording in JOBS]


async def read_stream(service: RunningService, id: str) -> list[Event]:
    """What one connection to a job's stream says until the service ends it, or is gone."""
    text = ""
    with suppress(httpx.HTTPError):
        async with service.http.stream("GET", f"/v1/jobs/{id}/events", timeout=30) as answer:
            async for chunk in answer.aiter_text():
                text += chunk
    return events_of(text[: text.rfind("\n\n") + 2])


async def check_all_finish(service: RunningService, ids: list[str]) -> None:
    """Every job completes, and its story has every number once."""
    for id, story in zip(ids, await asyncio.gather(*(service.story(id) for id in ids)), strict=True):
        assert [number for number, _, _ in story] == list(range(1, len(story) + 1)), id
        assert story[-1][1] == "job.completed", story[-1]


def settings(engine: EmulatedEngine, **more: Any) -> dict[str, Any]:
    return {"engines": [engine.url], "workers": 4} | more


async def test_what_runs_is_finished_when_it_ends_within_the_grace(tmp_path: Path) -> None:
    async with (
        emulated(speed=10.0, max_batch=4) as engine,
        running_service(tmp_path, **settings(engine, speed=10, grace=20)) as service,
    ):
        ids = await submit_all(service)
        await until(lambda: engine.server.running == 4)
        began = time.monotonic()
        assert await service.terminate() == 0
        assert time.monotonic() - began < 10.0, "it waited for more than what was running"
        assert engine.requests["abort"] == 0
        taken = len(engine.request_ids)
        assert engine.server.running == engine.server.waiting == 0
        await service.restart()
        await check_all_finish(service, ids)
        asked = engine.request_ids
        assert {i.rsplit("-", 1)[1] for i in asked[:taken]}.isdisjoint(i.rsplit("-", 1)[1] for i in asked[taken:])


async def test_what_takes_longer_than_the_grace_goes_on_in_the_next_process(tmp_path: Path) -> None:
    """However often somebody asks it to stop."""
    async with (
        emulated(speed=0.5, max_batch=4) as engine,
        running_service(tmp_path, **settings(engine, speed=20, grace=1)) as service,
    ):
        ids = await submit_all(service)
        await until(lambda: engine.server.running == 4)
        streams = [asyncio.create_task(read_stream(service, id)) for id in ids]
        began = time.monotonic()
        os.kill(service.pid, signal.SIGTERM)
        await until(lambda: "Shutting down" in service.log)
        os.kill(service.pid, signal.SIGINT)
        os.kill(service.pid, signal.SIGINT)
        assert await service.terminate() == 0
        assert time.monotonic() - began < 1.0 + 4.0
        assert "Traceback" not in service.log
        await until(lambda: engine.server.running == engine.server.waiting == 0, 2.0)
        assert engine.requests["abort"] > 0
        for story in await asyncio.gather(*streams):
            assert story == [] or not story[-1][1].startswith(("job.completed", "job.failed", "job.cancelled"))

    async with (
        emulated(speed=100.0, max_batch=8) as faster,
        running_service(tmp_path, **settings(faster, speed=100)) as service,
    ):
        await check_all_finish(service, ids)


async def test_a_signal_while_it_starts_ends_it_at_once(tmp_path: Path) -> None:
    async with emulated(speed=100.0) as engine, running_service(tmp_path, **settings(engine, speed=100)) as service:
        ids = await submit_all(service)
        await service.kill9()
        for sign in ("", "Waiting for application startup"):
            said = len(service.log)
            starting = asyncio.create_task(service.start())
            await until(lambda s=sign, n=said: service.is_running and s in service.log[n:])  # type: ignore[misc]
            assert await service.terminate(5) in (0, -signal.SIGTERM)
            with suppress(AssertionError):  # "ended at once", unless it was quick enough to listen
                await starting
        await service.restart()
        await check_all_finish(service, ids)


async def test_a_service_whose_store_was_taken_over_stops_by_itself(tmp_path: Path, postgres_url: str) -> None:
    """Two services must not run the same jobs: who lost the store ends with status 1, for its supervisor to see."""
    async with (
        emulated(speed=1.0, max_batch=4) as engine,
        running_service(tmp_path, store=postgres_url, **settings(engine)) as service,
    ):
        await service.submit(recording=JOBS[0])
        await until(lambda: engine.server.running > 0)
        connection = await asyncpg.connect(postgres_url)
        await connection.execute("UPDATE lease SET epoch = epoch + 1, renewed_at = renewed_at + 60")
        await connection.close()
        with suppress(httpx.HTTPError, AssertionError):  # a write, which finds out, unless the next renewal does
            await service.submit(recording=JOBS[1])
        await until(lambda: not service.is_running, 15.0, what="the end of the service")
        assert await service.terminate() == 1
        assert "taken over" in service.log or "another gateway leads" in service.log
        await until(lambda: engine.server.running == 0, 2.0)
        await service.gone(5.0)

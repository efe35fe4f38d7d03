"""Three gateways on one PostgreSQL under load, whose leader is killed or frozen again and again.

Clients send jobs to any gateway, with a key, until one has accepted them, and follow their events on whichever gateway
answers. At the end every job must have completed, with every event once and in order, and no committed stage may have
been asked of the engine again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import rig
from rig import Figure

from llmsched.runtime.emulator import EmulatedEngine, emulated
from llmsched.store.store import Store
from tests.integration.followers import Follower, check_story, task_of
from tests.integration.service import RunningService, a_recording, running_service, until

#: Kills and freezes of a leader, and seconds between two jobs.
BLOWS, EVERY = 50, 0.2
#: Requests that an emulated engine remembers.
KEPT = 10_000
#: Seconds in which a leader has to be replaced.
GOAL = 5.0


async def measure(quick: bool) -> list[Figure]:
    with TemporaryDirectory(prefix="llmsched-growth-") as folder, rig.database(durable=True) as url:
        async with emulated(speed=10.0, max_batch=8) as engine, AsyncExitStack() as stack:
            three = []
            for number in range(3):
                home = Path(folder, str(number))
                home.mkdir()  # noqa: ASYNC240 (before anything is measured)
                settings = {"store": url, "engines": [engine.url], "speed": 10, "workers": 4}
                three.append(await stack.enter_async_context(running_service(home, **settings)))
            return await Ring(three, engine, url).run(4 if quick else BLOWS)


class Ring:
    def __init__(self, gateways: list[RunningService], engine: EmulatedEngine, url: str) -> None:
        self._gateways = gateways
        self._engine = engine
        self._url = url
        self._random = Random(7)
        self._recordings: dict[str, dict[str, Any]] = {}
        self._accepted: dict[str, str] = {}
        self._followers: dict[str, Follower] = {}
        #: Moments at which clients heard that a stage is over.
        self._heard = 0.0

    async def run(self, blows: int) -> list[Figure]:
        load = asyncio.create_task(self._load())
        await until(lambda: len(self._accepted) >= 5)
        led: list[float] = []
        served: list[float] = []
        again = 0
        for number in range(blows):
            committed, asked = await self._committed(), len(self._engine.request_ids)
            to_lead, to_serve = await self._blow(freeze=number % 2 == 1)
            led.append(to_lead)
            served.append(to_serve)
            if len(self._engine.request_ids) >= KEPT:
                raise RuntimeError(f"the engine keeps {KEPT:,} requests, and there were more: take fewer blows")
            again += len({task_of(id) for id in self._engine.request_ids[asked:]} & committed)
        load.cancel()
        await asyncio.wait([load])
        lost = await self._lost()
        return [
            Figure("leaders killed or frozen", blows, ""),
            Figure("jobs accepted meanwhile", len(self._accepted), ""),
            Figure("until another gateway leads, median", median(led), "s"),
            Figure("until another gateway leads, longest", max(led), "s", GOAL),
            Figure("until clients hear of the next completed stage, median", median(served), "s"),
            Figure("until clients hear of the next completed stage, longest", max(served), "s"),
            Figure("jobs lost, or with an event too few or too many", lost, "", 0.0),
            Figure("committed stages that ran again", again, "", 0.0),
        ]

    async def _load(self) -> None:
        while True:
            key = f"key-{len(self._recordings)}"
            self._recordings[key] = recording = a_recording("code_generation", seed=len(self._recordings))
            while key not in self._accepted:
                with suppress(httpx.HTTPError):
                    body = {"application": recording["app"], "recording": recording}
                    gateway, headers = self._random.choice(self._gateways), {"Idempotency-Key": key}
                    answer = await gateway.post("/v1/jobs", json=body, headers=headers, timeout=2.0)
                    if answer.status_code == 202:
                        self._accepted[key] = answer.json()["id"]
                await asyncio.sleep(0.02)
            order = self._random.sample(self._gateways, 3)
            self._followers[key] = Follower([*order], self._accepted[key], on_stage=self._hear)
            await asyncio.sleep(EVERY)

    def _hear(self) -> None:
        self._heard = time.monotonic()

    async def _blow(self, *, freeze: bool) -> tuple[float, float]:
        """Seconds until another gateway leads, and until clients hear of a stage that it completed."""
        leader = await self._leader(self._gateways)
        os.kill(leader.pid, signal.SIGSTOP if freeze else signal.SIGKILL)
        began = time.monotonic()
        await self._leader([gateway for gateway in self._gateways if gateway is not leader])
        led = time.monotonic() - began
        await until(lambda: self._heard >= began + led, 60, what="the next completed stage")
        served = self._heard - began
        if freeze:
            os.kill(leader.pid, signal.SIGCONT)
        await until(lambda: not leader.is_running, 30, what="the end of the leader that was")
        await leader.restart(ready=False)
        await asyncio.sleep(0.5)
        return led, served

    async def _leader(self, among: list[RunningService]) -> RunningService:
        async with asyncio.timeout(60):
            while True:
                for gateway in among:
                    with suppress(httpx.HTTPError):
                        if (await gateway.get("/version", timeout=1.0)).json()["leads"]:
                            return gateway
                await asyncio.sleep(0.01)

    async def _committed(self) -> set[tuple[str, str]]:
        async with await Store.open(self._url, create=False) as store:
            ids = [job.id for job in await store.jobs(limit=100)]
            return {(row.job, row.name) for id in ids for row in await store.stages(id)}

    async def _lost(self) -> int:
        lost = 0
        for key, recording in self._recordings.items():
            follower = self._followers.get(key)
            if follower is None:  # the load ended before it was accepted
                continue
            try:
                async with asyncio.timeout(60):
                    await follower.task
                check_story(follower, recording)
            except (TimeoutError, AssertionError) as error:
                print(f"{follower.id}: {error or 'did not end'}")
                lost += 1
        return lost

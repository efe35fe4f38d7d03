"""Nothing is lost: `kill -9` at random moments, seen by clients that follow and poll, by the engines and by the store.

The engines run in this process and so outlive the service: what they were asked shows whether anything ran again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil

from llmsched.model.records import StageRecord
from llmsched.runtime.emulator import EmulatedEngine, emulated
from llmsched.store.store import Store
from llmsched.workloads import APPLICATIONS
from tests.integration.databases import postgres, postgres_url, store_url
from tests.integration.followers import Follower, check_story, task_of
from tests.integration.service import RunningService, a_recording, running_service, until

__all__ = ["postgres", "postgres_url", "store_url"]

#: A stage goes this way only. What is "over" is committed; a crash may take "running" back to "ready" or "waiting".
_RANK = {"waiting": 0, "ready": 1, "running": 2, "done": 3, "skipped": 3}
_STATUS = ["queued", "running", "completed"]


@asynccontextmanager
async def fleet(count: int, **settings: Any) -> AsyncIterator[list[EmulatedEngine]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(emulated(**settings)) for _ in range(count)]


class Poller:
    """A client that asks for every job again and again and notes whatever went backwards."""

    def __init__(self, service: RunningService, ids: list[str]) -> None:
        self.backwards: list[str] = []
        #: The process that answered last, by job.
        self._pids = dict.fromkeys(ids, 0)
        self._status = dict.fromkeys(ids, 0)
        self._stages: dict[tuple[str, str], int] = {}
        self.task = asyncio.create_task(self._poll(service, ids))

    async def _poll(self, service: RunningService, ids: list[str]) -> None:
        while any(status < 2 for status in self._status.values()):
            for id in ids:
                await asyncio.sleep(0.005)
                pid = service.pid
                with suppress(httpx.HTTPError):
                    view = (await service.get(f"/v1/jobs/{id}")).json()
                    self._look(view, is_reborn=pid != self._pids[id])
                    self._pids[id] = pid

    def _look(self, view: dict[str, Any], is_reborn: bool) -> None:
        id, status = view["id"], _STATUS.index(view["status"])
        if status < self._status[id]:
            self.backwards.append(f"{id}: {_STATUS[self._status[id]]} -> {view['status']}")
        self._status[id] = status
        for stage in view["stages"]:
            before, now = self._stages.get((id, stage["name"]), 0), _RANK[stage["state"]]
            if now < before and (before == 3 or not is_reborn):
                self.backwards.append(f"{id}/{stage['name']}: {before} -> {stage['state']}")
            self._stages[id, stage["name"]] = now


async def committed(url: str) -> dict[tuple[str, str], StageRecord]:
    """The stages that the store holds as over, of jobs that are not: read while no service runs."""
    store = await Store.open(url, create=False)
    async with store:
        return {(row.job, row.name): row async for _, _, stages in store.unfinished() for row in stages}


async def everything(url: str, ids: list[str]) -> dict[tuple[str, str], StageRecord]:
    store = await Store.open(url, create=False)
    async with store:
        return {(row.job, row.name): row for id in ids for row in await store.stages(id)}


def asked(engines: list[EmulatedEngine]) -> list[str]:
    return [id for engine in engines for id in engine.request_ids]


async def submit_all(service: RunningService, jobs: dict[str, dict[str, Any]], accepted: dict[str, str]) -> None:
    """Sends every job under its idempotency key; notes the id of each that was accepted."""
    for key, recording in jobs.items():
        body = {"application": recording["app"], "recording": recording}
        answer = await service.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
        assert answer.status_code == 202, answer.text
        assert accepted.setdefault(key, answer.json()["id"]) == answer.json()["id"]


async def test_kill_9_at_any_moment_loses_and_repeats_nothing(tmp_path: Path, store_url: str) -> None:
    rng = Random(store_url.partition(":")[0])
    kinds = [a for a in APPLICATIONS if a != "document_merging"] * 3 + ["document_merging"]
    jobs = {f"key-{k}": a_recording(kind, seed=k) for k, kind in enumerate(kinds)}
    accepted: dict[str, str] = {}
    async with (
        fleet(2, speed=20.0, max_batch=4) as engines,
        running_service(tmp_path, store=store_url, engines=[e.url for e in engines], speed=20, workers=4) as service,
    ):
        # The first kill comes in the middle of submitting: what was accepted stays, what was not can be sent again.
        sending = asyncio.create_task(submit_all(service, jobs, accepted))
        await until(lambda: len(accepted) >= 6)
        await service.kill9()
        await asyncio.gather(sending, return_exceptions=True)
        await service.restart()
        await submit_all(service, jobs, accepted)
        ids = list(accepted.values())
        followers = [Follower(service, id) for id in ids]
        poller = Poller(service, ids)

        known: dict[tuple[str, str], StageRecord] = {}
        kills: list[tuple[set[str], set[tuple[str, str]]]] = []  # requests, and committed stages, up to each kill
        total = sum(len(recording["stages"]) for recording in jobs.values())
        for share in (0.2, 0.5):
            goal = total * (share + rng.random() / 5)
            await until(partial(has_seen, followers, goal), what=f"{goal:.0f} completed stages")
            await service.kill9()
            assert await committed(store_url), "the kill came after everything was over"
            known |= await everything(store_url, ids)
            kills.append((set(asked(engines)), set(known)))
            await service.restart()
        async with asyncio.timeout(30):
            await asyncio.gather(poller.task, *(f.task for f in followers))

        assert poller.backwards == []
        rows = await everything(store_url, ids)
        assert known.items() <= rows.items()
        for requests, stages in kills:
            assert not {task_of(id) for id in asked(engines) if id not in requests} & stages
        for (key, recording), follower in zip(jobs.items(), followers, strict=True):
            check_story(follower, recording)
            view = (await service.get(f"/v1/jobs/{follower.id}")).json()
            llm = [t for s in recording["stages"] if s["kind"] == "llm" for t in s["tasks"]]
            assert (view["id"], view["status"]) == (accepted[key], "completed")
            assert view["result"] == {n: sum(t[n] for t in llm) for n in ("prompt_tokens", "output_tokens")}
        listed = (await service.get("/v1/jobs?limit=500")).json()["items"]
        assert sorted(job["id"] for job in listed) == sorted(ids)


def has_seen(followers: list[Follower], stages: float) -> bool:
    return sum(e[1] == "stage.completed" for f in followers for e in f.events) >= stages


async def test_a_job_is_durable_before_it_is_acknowledged(tmp_path: Path) -> None:
    """Killed with no engine to run anything: what was answered with 202 is there afterwards, and waits."""
    async with running_service(tmp_path, ready=False) as service:
        ids = []

        async def send(k: int) -> None:
            ids.append((await service.submit(recording=a_recording(seed=k)))["id"])

        sending = [asyncio.create_task(send(k)) for k in range(40)]
        await until(lambda: len(ids) >= 10)
        await service.kill9()
        await asyncio.gather(*sending, return_exceptions=True)
        await service.restart(ready=False)
        for id in ids:
            answer = await service.get(f"/v1/jobs/{id}")
            assert (answer.status_code, answer.json()["status"]) == (200, "queued")


async def test_engines_and_workers_die_with_a_killed_service(tmp_path: Path) -> None:
    async with running_service(tmp_path, emulate=2, speed=1, workers=2) as service:
        definition = {"stages": [{"name": "nap", "kind": "regular", "handler": "sleep", "arguments": {"seconds": 60}}]}
        assert (await service.put("/v1/applications/nap", json=definition)).status_code == 200
        naps = [await service.submit(application="nap", input={}) for _ in range(2)]
        await service.submit(recording=a_recording("document_merging"))
        service_itself = psutil.Process(service.pid)
        await until(lambda: len(service_itself.children(True)) >= 4, what="a tether, an emulator and two workers")
        children = service_itself.children(True)
        for nap in naps:
            assert (await service.get(f"/v1/jobs/{nap['id']}")).json()["status"] == "running"
        began = time.monotonic()
        await service.kill9()
        await until(lambda: not any(child.is_running() for child in children), 3.0, what="the end of every child")
        await service.gone(3.0 - (time.monotonic() - began))

"""Several gateways on one PostgreSQL, as processes: each accepts, reads and streams, one leads, and leaders die."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import httpx
import pytest

from llmsched.runtime.emulator import EmulatedEngine, emulated
from llmsched.store.store import Store
from tests.integration.databases import postgres, postgres_url
from tests.integration.followers import Follower, check_story, task_of
from tests.integration.service import Client, RunningService, a_recording, events_of, running_service, until

__all__ = ["postgres", "postgres_url"]

#: Seconds in which a leader is replaced, as promised.
FAILOVER = 5.0
LEASE = 1.5


@asynccontextmanager
async def gateways(
    folder: Path, url: str, engines: list[EmulatedEngine], count: int = 2, **settings: Any
) -> AsyncIterator[list[RunningService]]:
    """The first one leads."""
    settings = {"engines": [e.url for e in engines], "lease": LEASE, "workers": 4} | settings
    async with AsyncExitStack() as stack:
        starting = (running_service(folder, store=url, **settings) for _ in range(count))
        yield [await stack.enter_async_context(gateway) for gateway in starting]


async def leads(gateway: RunningService) -> bool:
    """False for one that does not answer."""
    with suppress(httpx.HTTPError):
        return bool((await gateway.get("/version", timeout=1.0)).json()["leads"])
    return False


async def new_leader(among: list[RunningService], seconds: float = FAILOVER) -> RunningService:
    deadline = time.monotonic() + seconds
    while True:
        for gateway in among:
            if await leads(gateway):
                return gateway
        assert time.monotonic() < deadline, f"nobody leads after {seconds:g} s\n" + among[0].log[-3000:]
        await asyncio.sleep(0.05)


async def test_every_gateway_accepts_reads_and_streams(tmp_path: Path, postgres_url: str) -> None:
    async with emulated(speed=20.0) as engine, gateways(tmp_path, postgres_url, [engine], 3, speed=20) as three:
        assert [await leads(g) for g in three] == [True, False, False]
        assert (await three[1].get("/version")).json()["leader"] == three[0].url
        recordings = [a_recording(seed=k) for k in range(6)]
        ids = [(await three[k % 3].submit(recording=r))["id"] for k, r in enumerate(recordings)]
        followers = [Follower(three[(k + 1) % 3], id) for k, id in enumerate(ids)]
        views = await asyncio.gather(*(three[(k + 2) % 3].finished(id) for k, id in enumerate(ids)))
        for view, follower, recording in zip(views, followers, recordings, strict=True):
            assert view["status"] == "completed"
            await follower.task
            check_story(follower, recording)
        for gateway in three:
            listed = (await gateway.get("/v1/jobs")).json()["items"]
            assert [job["id"] for job in listed] == ids[::-1]  # in the order of submission, whoever accepted them
            assert (await gateway.get("/ready")).status_code == 200
        scraped = [(await g.get("/metrics")).text for g in three]
        assert [f"llmsched_leads {k}.0" in text for k, text in zip((1, 0, 0), scraped, strict=True)] == [True] * 3


async def test_what_only_the_leader_knows_is_asked_of_it(tmp_path: Path, postgres_url: str) -> None:
    async with emulated(speed=1.0) as engine, gateways(tmp_path, postgres_url, [engine]) as (leader, other):
        await other.put("/v1/policies/active", json={"name": "fcfs"})
        assert (await leader.get("/version")).json()["policy"] == "fcfs"
        assert (await other.get("/v1/engines")).json() == (await leader.get("/v1/engines")).json()

        id = (await other.submit(recording=a_recording("document_merging")))["id"]
        await until(lambda: engine.server.running > 0)
        stages = (await other.get(f"/v1/jobs/{id}")).json()["stages"]
        assert "running" in {stage["state"] for stage in stages}
        assert (await other.get(f"/v1/jobs/{id}/why")).status_code == 200
        assert (await other.post(f"/v1/jobs/{id}/cancel")).status_code == 202
        assert (await other.finished(id))["status"] == "cancelled"

        call = {"model": "llmsched", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
        answer = await other.post("/v1/chat/completions", json=call)
        assert answer.json()["usage"]["completion_tokens"] == 5
        assert answer.headers["x-request-id"]
        streamed = await other.post("/v1/chat/completions", json=call | {"stream": True})
        assert streamed.text.count("data: ") >= 3
        assert streamed.text.endswith("data: [DONE]\n\n")
        late = await other.submit(recording=a_recording(), deadline_s=0.001)
        assert "late" in late["forecast"]["warning"]

        assert (await other.get("/v1/nothing")).status_code == 404
        assert (await leader.get("/internal/feed")).status_code == 403
        assert (await other.get("/internal/feed")).status_code == 403


async def test_a_key_used_with_two_gateways_at_once_makes_one_job(tmp_path: Path, postgres_url: str) -> None:
    async with emulated(speed=50.0) as engine, gateways(tmp_path, postgres_url, [engine], 3, speed=50) as three:
        body = {"application": "code_generation", "recording": a_recording()}

        async def send(gateway: RunningService, key: str) -> str:
            answer = await gateway.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

        for k in range(10):
            assert len(set(await asyncio.gather(*(send(g, f"key-{k}") for g in three)))) == 1
        different = body | {"metadata": {"other": True}}
        refused = await three[1].post("/v1/jobs", json=different, headers={"Idempotency-Key": "key-1"})
        assert refused.status_code == 409


async def test_without_a_leader_jobs_are_accepted_and_wait(tmp_path: Path, postgres_url: str) -> None:
    """The leader is frozen; the one that follows may not lead before the lease has run out."""
    async with emulated(speed=20.0) as engine, gateways(tmp_path, postgres_url, [engine], lease=3, speed=20) as pair:
        leader, other = pair
        os.kill(leader.pid, signal.SIGSTOP)
        id = (await other.submit(recording=a_recording()))["id"]
        stream = Follower(other, id)
        view = (await other.get(f"/v1/jobs/{id}")).json()
        assert (view["status"], await leads(other)) == ("queued", False)
        await new_leader([other], 3 + FAILOVER)
        await stream.task
        check_story(stream, a_recording())

        os.kill(leader.pid, signal.SIGCONT)
        await until(lambda: not leader.is_running, what="the end of the leader that was")
        assert await leader.terminate() == 1
        assert "another gateway leads" in leader.log or "taken over" in leader.log
        await leader.restart()
        assert [await leads(leader), await leads(other)] == [False, True]


async def test_a_leader_that_stops_in_order_is_replaced_at_once(tmp_path: Path, postgres_url: str) -> None:
    async with emulated(speed=20.0) as engine, gateways(tmp_path, postgres_url, [engine], lease=20, speed=20) as pair:
        leader, other = pair
        asked = await leader.submit(recording=a_recording())
        assert await leader.terminate() == 0
        await new_leader([other], 6.0)  # it looks five times in the 20 seconds of the lease
        assert (await other.finished(asked["id"]))["status"] == "completed"


async def test_connections_that_break_cost_nobody_the_lead(tmp_path: Path, postgres_url: str) -> None:
    async with emulated(speed=20.0) as engine, gateways(tmp_path, postgres_url, [engine], speed=20) as pair:
        leader, other = pair
        id = (await other.submit(recording=a_recording("document_merging")))["id"]
        connection = await asyncpg.connect(postgres_url)
        for _ in range(3):
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await asyncio.sleep(0.2)
        await connection.close()
        assert (await other.finished(id))["status"] == "completed"
        assert [await leads(leader), await leads(other)] == [True, False]


@pytest.mark.parametrize("blow", ["kill", "freeze"])
async def test_leaders_die_under_load_and_nothing_is_lost_or_repeated(
    blow: str, tmp_path: Path, postgres_url: str
) -> None:
    rng = Random(blow)
    recordings = {f"key-{k}": a_recording("code_generation", seed=k) for k in range(24)}
    accepted: dict[str, str] = {}
    frozen: list[RunningService] = []
    async with (
        emulated(speed=10.0, max_batch=4) as engine,
        gateways(tmp_path, postgres_url, [engine], 3, speed=10) as three,
    ):
        clients: list[Client] = list(three)

        async def send(key: str) -> None:
            """To one gateway after the other, until one has accepted it."""
            body = {"application": recordings[key]["app"], "recording": recordings[key]}
            while key not in accepted:
                with suppress(httpx.HTTPError):
                    gateway = rng.choice(three)
                    answer = await gateway.post("/v1/jobs", json=body, headers={"Idempotency-Key": key}, timeout=1.0)
                    if answer.status_code == 202:
                        accepted[key] = answer.json()["id"]
                        return
                    assert answer.status_code == 503, answer.text
                await asyncio.sleep(0.05)

        async def load() -> list[Follower]:
            followers = []
            for key in recordings:
                await send(key)
                followers.append(Follower([rng.choice(clients), *clients], accepted[key]))
                await asyncio.sleep(0.1)
            return followers

        loading = asyncio.create_task(load())
        await until(lambda: len(accepted) >= 4)
        gaps = []
        for _ in range(2):
            leader = await new_leader(three)
            committed = await over(postgres_url)
            before = Counter(task_of(id) for id in engine.request_ids)
            if blow == "kill":
                await leader.kill9()
            else:
                os.kill(leader.pid, signal.SIGSTOP)
                frozen.append(leader)
            began = time.monotonic()
            await new_leader([g for g in three if g is not leader])
            gaps.append(time.monotonic() - began)
            if blow == "freeze":
                os.kill(leader.pid, signal.SIGCONT)
                await until(lambda g=leader: not g.is_running, what="the end of the leader that was")  # type: ignore[misc]
            await leader.restart(ready=False)
            now = Counter(task_of(id) for id in engine.request_ids)
            assert not [task for task in committed if now[task] > before[task]], "committed stages ran again"
        assert max(gaps) < FAILOVER
        async with asyncio.timeout(60):
            followers = await loading
            await asyncio.gather(*(f.task for f in followers))
        for (key, recording), follower in zip(recordings.items(), followers, strict=True):
            assert follower.id == accepted[key]
            check_story(follower, recording)
        listed = (await three[0].get("/v1/jobs?limit=500")).json()["items"]
        assert sorted(job["id"] for job in listed) == sorted(accepted.values())
        assert {job["status"] for job in listed} == {"completed"}


async def over(url: str) -> set[tuple[str, str]]:
    """Committed stages."""
    async with await Store.open(url, create=False) as store:
        ids = [job.id for job in await store.jobs(limit=500)]
        return {(row.job, row.name) for id in ids for row in await store.stages(id)}


async def test_all_events_are_heard_everywhere(tmp_path: Path, postgres_url: str) -> None:
    async with emulated(speed=50.0) as engine, gateways(tmp_path, postgres_url, [engine], speed=50) as (leader, other):
        heard: dict[str, list[tuple[str, str]]] = {"leader": [], "other": []}

        async def listen(name: str, gateway: RunningService) -> None:
            async with gateway.http.stream("GET", "/v1/events", timeout=None) as answer:
                text = ""
                async for chunk in answer.aiter_text():
                    whole, cut, text = (text + chunk).rpartition("\n\n")
                    heard[name] += [(data["job"], type) for _, type, data in events_of(whole + cut)]

        listening = [asyncio.create_task(listen("leader", leader)), asyncio.create_task(listen("other", other))]
        await asyncio.sleep(0.5)
        ids = [(await g.submit(recording=a_recording()))["id"] for g in (leader, other)]
        for id in ids:
            await leader.finished(id)
        await until(lambda: len(heard["other"]) >= len(heard["leader"]))
        assert heard["other"] == heard["leader"]
        for id in ids:
            told = [type for job, type in heard["other"] if job == id]
            assert (told[0], told[-1]) == ("job.submitted", "job.completed")
        for task in listening:
            task.cancel()
        await asyncio.wait(listening)


async def test_a_database_that_is_away_for_longer_than_the_lease_loses_nothing(
    tmp_path: Path, postgres_url: str
) -> None:
    async with emulated(speed=5.0) as engine, gateways(tmp_path, postgres_url, [engine], speed=5) as pair:
        ids = [(await pair[k % 2].submit(recording=a_recording(seed=k)))["id"] for k in range(4)]
        followers = [Follower([pair[k % 2], pair[1 - k % 2]], id) for k, id in enumerate(ids)]
        await until(lambda: engine.server.running > 0)
        admin = await asyncpg.connect(postgres_url)
        await admin.execute("UPDATE pg_database SET datallowconn = false WHERE datname = current_database()")
        try:
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await asyncio.sleep(2 * LEASE)
            for gateway in pair:
                refused = await gateway.get("/ready")
                assert (refused.status_code, "database" in refused.json()["detail"]) == (503, True)
                answer = await gateway.post("/v1/jobs", json={"application": "code_generation", "input": {}})
                assert answer.status_code == 503
        finally:
            await admin.execute("UPDATE pg_database SET datallowconn = true WHERE datname = current_database()")
            await admin.close()
        async with asyncio.timeout(30):
            await asyncio.gather(*(f.task for f in followers))
        for k, follower in enumerate(followers):
            check_story(follower, a_recording(seed=k))
        assert [await leads(g) for g in pair] == [True, False]

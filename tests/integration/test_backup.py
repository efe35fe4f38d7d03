"""A backup as docs/operations.md says it: taken from a service at work, restored, and run on.

The commands are read out of the page. The engines run in this process, so that what they were asked can be seen: what
was committed by the backup never runs again.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from llmsched.errors import InvalidSetting
from llmsched.runtime.emulator import emulated
from llmsched.store.migrate import VERSION_TABLE
from llmsched.store.store import Store
from tests.integration.databases import postgres, postgres_tools, postgres_url
from tests.integration.service import RunningService, a_recording, running_service, until

__all__ = ["postgres", "postgres_tools", "postgres_url"]

PAGE = Path(__file__).parents[2] / "docs/operations.md"
KINDS = ("code_generation", "web_search", "llm_compiler", "sequence_sorting")


def commands(what: str) -> str:
    """The block of the page that is marked as tested under this name."""
    blocks: list[str] = re.findall(rf"<!-- tested: {what} -->\n```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 1, f"{PAGE.name} has {len(blocks)} blocks marked {what!r}"
    return blocks[0]


async def run(what: str, variables: Mapping[str, object], tools: Path = Path(sys.executable).parent) -> None:
    """Runs the page's commands with these variables; `tools` are found before others of their name."""
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    environment["PATH"] = f"{tools}{os.pathsep}{os.environ['PATH']}"
    shell = ("bash", "-eu", "-o", "pipefail", "-c", commands(what))
    process = await asyncio.create_subprocess_exec(
        *shell, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, f"{what}:\n{said.decode()}"


class Clients:
    """Submit one job after the other, each under a key, until they are stopped. `accepted`: id by key."""

    def __init__(self, service: RunningService) -> None:
        self.accepted: dict[str, str] = {}
        self._service = service
        self._keys: Iterator[int] = count()
        self._tasks = [asyncio.create_task(self._work()) for _ in range(2)]

    async def _work(self) -> None:
        while True:
            number = next(self._keys)
            self.accepted[f"key-{number}"] = (await send(self._service, number)).json()["id"]
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError, httpx.HTTPError):
                await task


async def send(service: RunningService, number: int) -> httpx.Response:
    kind = KINDS[number % len(KINDS)]
    body = {"application": kind, "recording": a_recording(kind, seed=number)}
    answer = await service.post("/v1/jobs", json=body, headers={"Idempotency-Key": f"key-{number}"})
    assert answer.status_code == 202, answer.text
    return answer


async def listed(service: RunningService, status: str) -> dict[str, dict[str, Any]]:
    page = (await service.get(f"/v1/jobs?status={status}&limit=500")).json()
    return {job["id"]: job for job in page["items"]}


async def view(service: RunningService, id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await service.get(f"/v1/jobs/{id}")).json()
    return found


async def committed(url: str) -> set[tuple[str, str]]:
    """Stages that the store holds as over, of all jobs; read while no service runs."""
    async with await Store.open(url, create=False) as store:
        rows = [row for job in await store.jobs(limit=500) for row in await store.stages(job.id)]
    return {(row.job, row.name) for row in rows if row.state == "done"}


def task_of(request_id: str) -> tuple[str, str]:
    """Job and stage behind a request id `job-stage-index-attempt-process`."""
    job, _, stage = request_id.rsplit("-", 3)[0].partition("-")
    return job, stage


async def backed_up_and_restored(
    folder: Path,
    url: str,
    restored_url: str,
    variables: Mapping[str, object],
    kind: str,
    tools: Path = Path(sys.executable).parent,
) -> None:
    """A service at work at `url` is backed up and lost; another one goes on at `restored_url`."""
    async with (
        emulated(speed=40.0, max_batch=4) as engine,
        running_service(folder, store=url, engines=[engine.url], speed=40, workers=4) as service,
    ):
        clients = Clients(service)
        while len(await listed(service, "completed")) < 5 or len(await listed(service, "running")) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        accepted = dict(clients.accepted)
        finished = {id: await view(service, id) for id in await listed(service, "completed")}
        await run(f"back up {kind}", variables, tools)
        await until(lambda: len(clients.accepted) > len(accepted), what="a job after the backup")
        await clients.stop()
        await service.kill9()
        await service.gone()
        later = {key: id for key, id in clients.accepted.items() if key not in accepted}
        asked = len(engine.request_ids)

        await run(f"restore {kind}", variables, tools)
        done = await committed(restored_url)
        service.use(store=restored_url)
        await service.start()
        unfinished = {*await listed(service, "queued"), *await listed(service, "running")}
        assert len(unfinished) >= 3
        # Their clients have seen more than there is now.
        ahead = [service.story(id, headers={"Last-Event-ID": "100000"}, timeout=30) for id in unfinished]
        streams = asyncio.gather(*ahead)
        for key, id in accepted.items():
            again = await send(service, int(key.removeprefix("key-")))
            assert (again.json()["id"], again.headers["Idempotent-Replay"]) == (id, "true")
        for id, known in finished.items():
            assert await view(service, id) == known
        for id in accepted.values():
            story = await service.story(id, timeout=30)
            assert [number for number, _, _ in story] == list(range(1, len(story) + 1)), id
            assert story[-1][1] == "job.completed", story[-1]
        async with asyncio.timeout(5):
            assert await streams == [[]] * len(unfinished)
        assert not {task_of(id) for id in engine.request_ids[asked:]} & done
        assert {task_of(id) for id in engine.request_ids[:asked]} & done
        for key, id in later.items():  # most of them came too late; all can be sent again
            found = (await service.get(f"/v1/jobs/{id}")).status_code
            sent = (await send(service, int(key.removeprefix("key-")))).json()["id"]
            assert (found, sent == id) in {(404, False), (200, True)}


async def test_a_backup_of_sqlite_restores_a_service_at_work(tmp_path: Path) -> None:
    """In place: what the lost service left, its write-ahead log above all, must not get into the restored file."""
    store, old = tmp_path / "data/llmsched.db", tmp_path / "old"
    store.parent.mkdir()
    url = f"sqlite:///{store}"
    variables = {"RUN": "", "DB": store, "BACKUP": tmp_path / "backup.db", "OLD": old}
    await backed_up_and_restored(tmp_path, url, url, variables, "SQLite")
    assert {"llmsched.db", "llmsched.db-wal"} <= {path.name for path in old.iterdir()}


async def test_a_backup_of_postgresql_restores_a_service_at_work(
    tmp_path: Path, postgres_url: str, postgres_tools: Path
) -> None:
    restored = urlsplit(postgres_url)._replace(path="/llmsched_restored").geturl()
    connection = await asyncpg.connect(postgres_url)
    try:
        variables = {
            "STORE": postgres_url,
            "BACKUP": tmp_path / "llmsched.dump",
            "ADMIN": postgres_url,
            "ROLE": await connection.fetchval("SELECT current_user"),
            "RESTORED": restored,
        }
        await backed_up_and_restored(tmp_path, postgres_url, restored, variables, "PostgreSQL", postgres_tools)
    finally:
        await connection.execute("DROP DATABASE IF EXISTS llmsched_restored WITH (FORCE)")
        await connection.close()


async def test_a_backup_of_sqlite_overwrites_nothing_and_needs_a_store(tmp_path: Path) -> None:
    store, backup = tmp_path / "llmsched.db", tmp_path / "backup.db"
    async with await Store.open(f"sqlite:///{store}"):
        pass
    await run("back up SQLite", {"RUN": "", "DB": store, "BACKUP": backup})
    yesterday = backup.read_bytes()
    with pytest.raises(AssertionError, match="output file already exists"):
        await run("back up SQLite", {"RUN": "", "DB": store, "BACKUP": backup})
    assert backup.read_bytes() == yesterday
    with pytest.raises(AssertionError, match="unable to open database file"):
        await run("back up SQLite", {"RUN": "", "DB": tmp_path / "elsewhere.db", "BACKUP": tmp_path / "other.db"})
    assert not (tmp_path / "elsewhere.db").exists()


async def test_an_older_program_ends_on_a_newer_store_until_the_backup_is_back(tmp_path: Path) -> None:
    """The way back that the page names: the older program says why, changes nothing, and opens the restored backup."""
    store = tmp_path / "data/llmsched.db"
    store.parent.mkdir()
    variables = {"RUN": "", "DB": store, "BACKUP": tmp_path / "backup.db", "OLD": tmp_path / "old"}
    async with running_service(tmp_path, store=f"sqlite:///{store}", ready=False) as service:
        job = await service.submit(recording=a_recording())
        await run("back up SQLite", variables)
        await service.terminate()
        newer = f"import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('UPDATE {VERSION_TABLE} SET"
        newer += " version_num = 9999'); c.commit()"
        subprocess.run([sys.executable, "-c", newer, str(store)], check=True)  # noqa: ASYNC221 (at once)
        before = store.read_bytes()
        with pytest.raises(AssertionError, match="the service ended at once"):
            await service.start()
        assert await service.terminate() == 2
        [said] = re.findall(r"^Error: (the store .* has schema \S+, made by a newer llmsched; .*)$", service.log, re.M)
        said = re.sub(r"\b\d{4}\b", "NNNN", said.replace(f"{store}", "/data/llmsched.db"))
        assert said in re.sub(r"\b\d{4}\b", "NNNN", PAGE.read_text())
        assert store.read_bytes() == before
        with pytest.raises(InvalidSetting, match="made by a newer llmsched"):
            await Store.open(f"sqlite:///{store}")
        await run("restore SQLite", variables)
        await service.start()
        assert (await view(service, job["id"]))["status"] == "queued"

"""What whoever watches the service asks it: overview, trends, why a job waits, its tasks over time, and what if."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from llmsched.cli.main import main
from llmsched.gateway.ui import POLICY
from llmsched.runtime.whatifs import WhatIfs
from tests.integration.service import InProcessService, a_recording, in_process_service, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def a_job(tokens: int, tasks: int = 1) -> dict[str, Any]:
    """One stage of so many calls; 100 tokens take a second on an engine at speed 1."""
    calls = [{"prompt_tokens": 8, "output_tokens": tokens}] * tasks
    return {
        "app": "code_generation",
        "job_id": f"{tokens}#1",
        "stages": [{"name": "test_gen", "kind": "llm", "deps": [], "tasks": calls}],
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcessService]:
    """One slow engine with one slot, so that jobs wait as long as a test looks."""
    folder = tmp_path_factory.mktemp("operation")
    async with in_process_service(folder, speed=1.0, max_batch=1, policy="fcfs") as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def queue(service: InProcessService) -> AsyncIterator[list[str]]:
    """Three jobs, the first of which runs."""
    ids = [(await service.submit(recording=a_job(4000, tasks)))["id"] for tasks in (1, 2, 1)]
    view = service.context.service.scheduler.view
    await until(lambda: len(view.jobs) == 3 and view.executors["engine-1"].running, what="the queue")
    yield ids
    for id in ids:
        await service.post(f"/v1/jobs/{id}/cancel")
    await until(lambda: not view.jobs, what="the end of the jobs")


async def json_of(service: InProcessService, path: str) -> Any:
    response = await service.get(path)
    assert response.status_code == 200, response.text
    return response.json()


async def test_the_overview_says_what_is_going_on(service: InProcessService, queue: list[str]) -> None:
    now = await json_of(service, "/v1/overview")

    assert now["active"] == 3
    counts = now["jobs"]["code_generation"]
    assert (counts["queued"], counts["running"]) == (2, 1)
    llm = next(pool for pool in now["pools"] if pool["name"] == "llm")
    assert llm == {"name": "llm", "slots": 1, "running": 1, "ready": 3}
    assert now["executors"][0] == {
        "id": "engine-1", "pool": "llm", "slots": 1, "running": 1, "state": "up", "is_engine": True,
    }  # fmt: skip
    assert (now["policy"], now["trouble"]) == ("fcfs", [])


async def test_trouble_is_said_in_sentences(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=1) as service:
        await service.stop_engines()
        engine = next(iter(service.context.service.engines))
        await until(lambda: not engine.is_healthy, what="the end of the engine")
        trouble = (await json_of(service, "/v1/overview"))["trouble"]
        assert trouble == ["engine engine-1 is down: does not answer its health check"]


async def test_why_tells_the_place_and_who_is_before(service: InProcessService, queue: list[str]) -> None:
    first, second, third = [await json_of(service, f"/v1/jobs/{id}/why") for id in queue]

    assert first["sentences"] == ["1 task of it runs now, on engine-1"]
    (place,) = third["places"]
    assert (place["place"], place["jobs_ahead"], place["ready"]) == (2, 1, 1)
    assert [(a["job"], a["tasks"], a["class"]) for a in place["ahead"]] == [(queue[1], 2, "standard")]
    assert third["sentences"] == ["1 task waits for pool llm behind 2 tasks of 1 other job; 1 of 1 slots are taken"]
    assert second["sentences"] == ["2 tasks wait for pool llm, next in the order; 1 of 1 slots are taken"]
    assert third["remaining"]["llm"] > 0
    assert third["policy"] == "fcfs"


async def test_a_drained_pool_is_the_reason(service: InProcessService, queue: list[str]) -> None:
    await service.post("/v1/engines/engine-1/drain")
    try:
        await until(lambda: service.context.service.scheduler.view.executors["engine-1"].slots == 0, what="the drain")
        said = (await json_of(service, f"/v1/jobs/{queue[2]}/why"))["sentences"]
        assert said == ["1 task waits for pool llm, which nobody serves right now: its engines are down or drained"]
    finally:
        await service.post("/v1/engines/engine-1/resume")


async def test_the_timeline_has_every_attempt(service: InProcessService, queue: list[str]) -> None:
    times = await json_of(service, f"/v1/jobs/{queue[0]}/timeline")

    (span,) = times["spans"]
    assert times["is_exact"]
    assert span["started_at"] <= times["now"]
    assert (span["stage"], span["executor"], span["ended_at"], span["outcome"]) == (
        "test_gen", "engine-1", None, "running",
    )  # fmt: skip


async def test_of_a_forgotten_job_the_timeline_has_its_stages(service: InProcessService) -> None:
    job = await service.finished((await service.submit(recording=a_job(1, tasks=2)))["id"])
    exact = await json_of(service, f"/v1/jobs/{job['id']}/timeline")
    service.context.service.timeline._forget(job["id"])
    rough = await json_of(service, f"/v1/jobs/{job['id']}/timeline")

    assert (exact["is_exact"], rough["is_exact"]) == (True, False)
    assert [(s["stage"], s["task"], s["outcome"]) for s in rough["spans"]] == [
        (s["stage"], s["task"], s["outcome"]) for s in exact["spans"]
    ]
    assert all(job["started_at"] <= s["started_at"] <= s["ended_at"] <= job["finished_at"] for s in rough["spans"])
    assert (await json_of(service, f"/v1/jobs/{job['id']}/why"))["sentences"] == ["the job is over: completed"]


async def test_trends_count_what_was_done(service: InProcessService) -> None:
    await service.finished((await service.submit(recording=a_job(1)))["id"])
    trends = await json_of(service, "/v1/trends?span=2h")

    assert sum(n or 0 for n in trends["completed"]) >= 1
    assert trends["span"] == "2h"
    assert len(trends["at"]) == len(trends["jct_p95"]) == 180
    assert (await service.get("/v1/trends?span=1y")).status_code == 422


async def test_nobody_sees_the_jobs_of_another_tenant(tmp_path: Path) -> None:
    keys = {who: {"Authorization": f"Bearer {who}-key-1234"} for who in ("ann", "bob")}
    async with in_process_service(
        tmp_path, speed=1.0, max_batch=1, policy="fcfs", api_keys="ann:ann-key-1234,bob:bob-key-1234"
    ) as service:
        ids = {}
        for who in ("ann", "ann", "bob"):
            ids[who] = (await service.submit(recording=a_job(4000), headers=keys[who]))["id"]
        await until(lambda: len(service.context.service.scheduler.view.jobs) == 3, what="the queue")
        for path in ("why", "timeline"):
            assert (await service.get(f"/v1/jobs/{ids['ann']}/{path}", headers=keys["bob"])).status_code == 404
            assert (await service.get(f"/v1/jobs/{ids['ann']}/{path}")).status_code == 401
        (place,) = (await service.get(f"/v1/jobs/{ids['bob']}/why", headers=keys["bob"])).json()["places"]
        assert place["place"] == 1
        assert (place["ahead"][0]["job"], place["ahead"][0]["application"]) == (None, None)

        asked = await service.post("/v1/whatif", json={"policies": ["fcfs"]}, headers=keys["ann"])
        id = asked.json()["id"]
        assert (await service.get(f"/v1/whatif/{id}", headers=keys["bob"])).status_code == 404
        assert (await service.get("/v1/whatif", headers=keys["bob"])).json()["items"] == []
        assert (await service.delete(f"/v1/whatif/{id}", headers=keys["ann"])).status_code == 204


# -------------------------------------------------------------------------------------------------------- what if


async def test_last_night_under_another_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process beside the service, and then by the command line: the same history, the same figures."""
    async with in_process_service(tmp_path, speed=1000.0, max_batch=4, policy="fcfs", learn=False) as service:
        jobs = [await service.submit(recording=a_recording(seed=k)) for k in range(30)]
        for job in jobs:
            await service.finished(job["id"])
        asked = await service.post("/v1/whatif", json={"policies": ["fcfs", "sjf"], "last_s": 3600})
        assert asked.status_code == 202
        path = asked.headers["location"]
        again = await service.post("/v1/whatif", json={"policies": ["fcfs"]})
        assert again.status_code == 409
        assert "another question is being simulated" in again.json()["detail"]
        pid = service.context.whatifs.pid
        while (answer := await json_of(service, path))["status"] == "running":
            pid = pid or service.context.whatifs.pid
            await asyncio.sleep(0.05)
        assert answer["status"] == "done", answer["error"]
        assert pid is not None
        assert not psutil.pid_exists(pid)
        assert (await json_of(service, "/v1/whatif"))["items"][0]["result"] is None
    result = answer["result"]
    assert result["settings"]["jobs"] == 30
    assert [run["policy"] for run in result["runs"]] == ["fcfs", "sjf"]
    assert result["settings"]["engines"] == [4]
    assert any("their seconds" in text for text in result["assumptions"]), "the speed of the tools was found"

    numbers = tmp_path / "numbers.json"
    arguments = ["whatif", "--store", f"sqlite:///{tmp_path}/jobs.db", "--policy", "fcfs,sjf", "--last", "1h"]
    arguments += ["--slots", "4", "--workers", "2", "--json", str(numbers)]
    monkeypatch.setattr(sys, "argv", ["llmsched", *arguments])
    with pytest.raises(SystemExit) as end:
        await asyncio.to_thread(main)
    assert end.value.code in (0, None)
    document = json.loads(numbers.read_text())
    assert [run["mean_jct"] for run in document["runs"]] == [run["mean_jct"] for run in result["runs"]]
    assert "machines: 1 engine of 4 slots" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"policies": []}, "policies"),
        ({"policies": ["fcsf"]}, "did you mean 'fcfs'"),
        ({"policies": ["fcfs", "fcfs"]}, "listed twice"),
        ({"policies": ["llmsched:eps=2"]}, "eps"),
        ({"policies": ["fcfs"], "last_s": 1e9}, "a month"),
        ({"policies": ["fcfs"], "jobs": 0}, "jobs"),
    ],
)
async def test_questions_that_make_no_sense_are_refused(
    service: InProcessService, form: dict[str, Any], said: str
) -> None:
    response = await service.post("/v1/whatif", json=form)

    assert response.status_code == 422
    assert said in response.json()["detail"]


async def test_a_simulation_that_dies_or_hangs_is_said_to(tmp_path: Path) -> None:
    request = {"since": 0.0, "until": 1.0}
    dying = WhatIfs(command=("-c", "import sys; sys.exit('out of cheese')"))
    asked = dying.ask(request, ["fcfs"], "", 5.0)
    await until(lambda: asked.status != "running", what="its end")
    assert (asked.status, asked.error) == ("failed", "the simulation ended with status 1: out of cheese")

    hanging = WhatIfs(timeout=0.3, command=("-c", "import time; time.sleep(60)"))
    asked = hanging.ask(request, ["fcfs"], "", 5.0)
    await until(lambda: asked.status != "running", what="its end")
    assert (asked.status, hanging.pid) == ("failed", None)
    assert "took longer than 0.3 s" in (asked.error or "")


# -------------------------------------------------------------------------------------------------------- the page


async def test_the_page_is_served_with_a_strict_policy(service: InProcessService) -> None:
    page = await service.get("/ui/")
    assert page.status_code == 200
    assert page.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "<style" not in page.text
    assert "style=" not in page.text
    again = await service.get("/ui/", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (await service.get("/ui")).headers["location"] == "/ui/"
    script = await service.get("/ui/js/views/job.js")
    assert script.headers["content-type"].startswith("text/javascript")
    for path in ("/ui/nothing.js", "/ui/../app.py", "/ui/%2e%2e/app.py", "/ui/js/", "/ui/js"):
        assert (await service.get(path)).status_code == 404, path


async def test_the_page_is_small(service: InProcessService) -> None:
    """First view under 300 kB: all of it is."""
    folder = Path(sys.modules["llmsched.gateway.ui"].__file__ or "").parent / "ui"

    assert 20_000 < sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 120_000


async def test_there_is_no_page_where_nobody_wants_it(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=0, ui=False) as service:
        assert (await service.get("/ui/")).status_code == 404
        assert (await service.get("/")).status_code == 404
        assert (await service.get("/v1/overview")).status_code == 200

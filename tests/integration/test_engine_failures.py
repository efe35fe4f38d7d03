"""One bad engine: others go on as if nothing were, its tasks are repeated there, and it comes back by itself.

The service and its emulated engines share the test's event loop, except where a process has to die.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmsched.workloads import WORKLOADS
from tests.integration.service import InProcessService, a_recording, in_process_service, running_service, until

#: Engines are given up on after a second of silence, and looked at ten times a second.
PATIENCE: dict[str, Any] = {
    "first_token_timeout": 1.0,
    "token_timeout": 1.0,
    "backoff_first": 0.05,
    "probe_interval": 0.1,
    "workers": 8,
}
JOBS = [a_recording(application, seed=k) for k, application in enumerate(WORKLOADS["mixed-nodoc"] * 3)]

#: What every kind of fault has to be called in `last_error`.
FAULTS = {
    "hang": "sent no token within 1 s",
    "slow_first_token": "sent no token within 1 s",
    "http_500": "answered 500",
    "garbage": "nobody can read",
    "half_stream": "broke the connection",
    "stall": "fell silent for 1 s",
}


async def run(service: InProcessService, recordings: Sequence[dict[str, Any]] = JOBS) -> list[dict[str, Any]]:
    """The jobs' views once all of them are over."""
    jobs = await asyncio.gather(*(service.submit(recording=r) for r in recordings))
    return await asyncio.gather(*(service.finished(job["id"]) for job in jobs))


def outcomes(jobs: Sequence[dict[str, Any]]) -> Counter[str]:
    return Counter(job["status"] if job["error"] is None else f"{job['status']}: {job['error']}" for job in jobs)


async def engine_view(service: InProcessService, id: str) -> dict[str, Any]:
    items = (await service.get("/v1/engines")).json()["items"]
    return next(item for item in items if item["id"] == id)


def slots(service: InProcessService, engine: str) -> int | None:
    """What the scheduler may use of an engine; None: it does not know it."""
    executor = service.context.service.scheduler.view.executors.get(engine)
    return None if executor is None else executor.slots


_undisturbed: list[float] = []


async def undisturbed(folder: Path) -> float:
    """Seconds that the two good engines need for the jobs by themselves; measured once."""
    if not _undisturbed:
        async with in_process_service(folder, emulate=2, speed=50, max_batch=4, **PATIENCE) as service:
            began = time.monotonic()
            assert outcomes(await run(service)) == {"completed": len(JOBS)}
            _undisturbed.append(time.monotonic() - began)
    return _undisturbed[0]


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_bad_engine_delays_nobody_and_comes_back(kind: str, tmp_path: Path) -> None:
    alone = await undisturbed(tmp_path)
    async with in_process_service(tmp_path, emulate=3, speed=50, max_batch=4, **PATIENCE) as service:
        bad, registered = service.engines[0], service.context.service.engines["engine-1"]
        bad.fault(kind, delay_s=30)
        began = time.monotonic()
        running = asyncio.create_task(run(service))
        await until(lambda: not registered.is_healthy, what="the breaker of the bad engine")
        view = await engine_view(service, "engine-1")
        assert not view["healthy"]
        assert FAULTS[kind] in view["last_error"]
        assert outcomes(await running) == {"completed": len(JOBS)}
        # Its victims wait out their timeout and back-off; nobody else does.
        assert time.monotonic() - began < 2 * alone + 5.0
        # Four slots, refilled until the third fault; after that a probe finds out, and no task.
        assert sum(id.startswith("job_") for id in bad.request_ids) <= 4 + 3
        bad.clear()
        await until(lambda: registered.is_healthy)
        served = bad.requests["length"]
        assert outcomes(await run(service)) == {"completed": len(JOBS)}
        assert bad.requests["length"] > served
        assert slots(service, "engine-1") == 4


async def test_a_killed_engine_gives_its_tasks_back_and_is_found_again(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=2, speed=20, max_batch=4, **PATIENCE) as service:
        victim, registered = service.engines[0], service.context.service.engines["engine-1"]
        running = asyncio.create_task(run(service))
        await until(lambda: victim.server.running >= 4)
        port = int(victim.url.rpartition(":")[2])
        await victim.stop()
        await until(lambda: not registered.is_healthy)
        assert outcomes(await running) == {"completed": len(JOBS)}
        view = await engine_view(service, "engine-1")
        assert (view["healthy"], view["running"]) == (False, 0)
        await victim.start(port=port)
        await until(lambda: slots(service, "engine-1") is not None)
        assert outcomes(await run(service)) == {"completed": len(JOBS)}
        assert slots(service, "engine-1") == 4


async def test_an_engine_on_trial_gets_one_request_before_it_gets_all(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=1, speed=10, max_batch=4, **PATIENCE) as service:
        (engine,) = service.engines
        engine.fault("http_500", count=3)  # which opens the breaker
        running = asyncio.create_task(run(service, JOBS[:5]))
        await until(lambda: slots(service, "engine-1") == 1)
        assert engine.server.running + engine.server.waiting <= 1
        assert outcomes(await running) == {"completed": 5}
        assert slots(service, "engine-1") == 4


async def test_a_job_fails_with_the_reason_after_its_attempts(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=1, **PATIENCE) as service:
        await service.put("/v1/applications/ask", json={"stages": [{"name": "answer", "kind": "llm", "prompt": "?"}]})
        service.engines[0].fault("http_500")
        job = await service.submit(application="ask", input=None)
        story = await service.story(job["id"])
        assert [type for _, type, _ in story] == [
            "job.submitted",
            "job.started",
            "stage.started",
            *["task.failed"] * 3,
            "job.failed",
        ]
        view = (await service.get(f"/v1/jobs/{job['id']}")).json()
        assert view["status"] == "failed"
        assert "task answer[0] failed 3 times, last: http_500: " in view["error"]


async def test_draining_finishes_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=2, speed=8, max_batch=2, **PATIENCE) as service:
        drained = service.engines[0]
        running = asyncio.create_task(run(service, JOBS[:5]))
        await until(lambda: drained.server.running == 2)
        answer = await service.post("/v1/engines/engine-1/drain")
        assert (answer.status_code, answer.json()["draining"]) == (200, True)
        await until(lambda: slots(service, "engine-1") == 0)
        taken = len(drained.request_ids)
        await until(lambda: drained.server.running == 0)
        assert outcomes(await running) == {"completed": 5}
        assert len(drained.request_ids) == taken
        assert drained.requests["abort"] == 0
        assert (await service.post("/v1/engines/engine-1/resume")).json()["draining"] is False
        running = asyncio.create_task(run(service, JOBS[:5]))
        await until(lambda: len(drained.request_ids) > taken)
        assert outcomes(await running) == {"completed": 5}


async def test_a_drained_engine_that_dies_gives_its_tasks_back(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=2, speed=8, max_batch=2, **PATIENCE) as service:
        running = asyncio.create_task(run(service, JOBS[:5]))
        await until(lambda: service.engines[0].server.running == 2)
        await service.post("/v1/engines/engine-1/drain")
        await service.engines[0].stop()
        assert outcomes(await running) == {"completed": 5}


async def test_a_removed_engine_gives_its_tasks_back_at_once(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=2, speed=8, max_batch=2, **PATIENCE) as service:
        removed = service.engines[0]
        running = asyncio.create_task(run(service, JOBS[:5]))
        await until(lambda: removed.server.running == 2)
        assert (await service.delete("/v1/engines/engine-1")).status_code == 204
        taken = len(removed.request_ids)
        await until(lambda: removed.server.running == removed.server.waiting == 0, 2.0, what="the end of its requests")
        assert removed.requests["abort"] > 0
        jobs = await running
        assert outcomes(jobs) == {"completed": 5}
        assert len(removed.request_ids) == taken
        for job in jobs:  # being repeated elsewhere is no failure of the task
            assert "task.failed" not in [type for _, type, _ in await service.story(job["id"])]
        assert [e["id"] for e in (await service.get("/v1/engines")).json()["items"]] == ["engine-2"]


async def test_cancelling_a_job_aborts_its_requests(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=1, speed=1, max_batch=8, **PATIENCE) as service:
        (engine,) = service.engines
        job = await service.submit(recording=a_recording("document_merging"))
        other = await service.submit(recording=a_recording("llm_compiler"))
        await until(lambda: engine.server.running >= 3)
        mine = sum(id.startswith(job["id"]) for id in engine.request_ids)
        assert (await service.post(f"/v1/jobs/{job['id']}/cancel")).status_code == 202
        assert [type for _, type, _ in await service.story(job["id"])][-1] == "job.cancelled"
        await until(lambda: engine.requests["abort"] == mine, 2.0, what="as many aborts as requests of the job")
        assert (await service.get(f"/v1/jobs/{job['id']}")).json()["status"] == "cancelled"
        assert (await service.post(f"/v1/jobs/{job['id']}/cancel")).status_code == 202
        assert (await service.finished(other["id"]))["status"] == "completed"


async def test_a_started_engine_is_started_again_when_it_dies(tmp_path: Path) -> None:
    async with running_service(tmp_path, emulate=2, speed=20, **PATIENCE) as service:
        ids = [(await service.submit(recording=recording))["id"] for recording in JOBS[:5]]
        (emulator,) = (p for p in service.processes() if "llmsched.runtime.emulator" in p.cmdline()[1:4])
        emulator.send_signal(9)
        jobs = await asyncio.gather(*(service.finished(id) for id in ids))
        assert outcomes(jobs) == {"completed": 5}
        assert "was ended by signal 9" in service.log
        (reborn,) = (p for p in service.processes() if "llmsched.runtime.emulator" in p.cmdline()[1:4])
        assert reborn.pid != emulator.pid
        assert not psutil.pid_exists(emulator.pid)

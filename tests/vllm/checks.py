"""What must hold of a service in front of a real engine, whatever happened to either: asked over REST and asserted."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection
from typing import Any

from tests.integration.service import Event, RunningService
from tests.vllm.engine import Metrics, RealEngine
from tests.vllm.jobs import Job, calls, cost, long

#: Seconds a client waits for a job; document merging and a restart of the engine take longest.
PATIENCE = 300.0

#: Slots the service gives an engine that tells nobody its size, as most vLLM do not.
SLOTS = 16


def attempts(id: str, recording: Job) -> list[str]:
    """`heard` of a recorded job in which no call fails."""
    return sorted(f"{id}-{stage}-{index}-1" for stage, index, _, _ in calls(recording))


def heard(requests: list[str]) -> list[str]:
    """Job, stage, index and attempt of each of the service's calls that an engine names, sorted.

    The last part of a name, which tells processes of the service apart, is cut off; probes are left out.
    """
    return sorted(request.rpartition("-")[0] for request in requests if request.startswith("job_"))


async def midway(engine: RealEngine, service: RunningService, ids: list[str]) -> list[dict[str, Any]]:
    """The jobs as a client sees them when the last one, `jobs.long`, is in its second stage."""
    begun = set(attempts(ids[-1], long()))
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if begun <= set(heard(engine.received())) and engine.running() >= 3:
            return [(await service.get(f"/v1/jobs/{id}")).json() for id in ids]
        await asyncio.sleep(0.05)
    raise AssertionError("the jobs never came that far")


async def engine_once(service: RunningService, *, healthy: bool) -> dict[str, Any]:
    """The only engine of the service, once it is (un)healthy."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        (view,) = (await service.get("/v1/engines")).json()["items"]
        if view["healthy"] is healthy:
            found: dict[str, Any] = view
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"the service does not find its engine {'well' if healthy else 'down'}: {view}")


async def scrape(service: RunningService) -> Metrics:
    """The service's own metrics."""
    return Metrics.parse((await service.get("/metrics")).text)


def names_done(view: dict[str, Any]) -> set[str]:
    """LLM stages of a job that are committed."""
    return {stage["name"] for stage in view["stages"] if stage["kind"] == "llm" and stage["state"] == "done"}


def assert_ran_as_recorded(view: dict[str, Any], recording: Job) -> None:
    """Everything in the recording ran, in its order, with its tokens and at least its seconds, and nothing else did."""
    total = cost([recording])
    assert view["status"] == "completed", view["error"]
    assert view["result"] == {"prompt_tokens": total.prompt_tokens, "output_tokens": total.generation_tokens}
    stages = {stage["name"]: stage for stage in view["stages"]}
    recorded = {stage["name"]: stage for stage in recording["stages"]}
    assert {name for name, stage in stages.items() if stage["state"] == "done"} == recorded.keys()
    assert {stage["state"] for name, stage in stages.items() if name not in recorded} <= {"skipped"}
    for name, stage in stages.items():
        if name not in recorded:
            continue
        tasks = recorded[name]["tasks"]
        assert (stage["tasks"], stage["done"]) == (len(tasks), len(tasks))
        for kind in ("prompt_tokens", "output_tokens"):
            assert stage[kind] == (sum(task[kind] for task in tasks) if stage["kind"] == "llm" else None)
        if stage["kind"] != "dynamic":
            earliest = max((stages[dep]["finished_at"] for dep in recorded[name]["deps"]), default=view["submitted_at"])
            assert stage["started_at"] >= earliest
        if stage["kind"] == "regular":
            # A timer of the event loop may be a millisecond early.
            held = stage["finished_at"] - stage["started_at"]
            assert held >= max(task["duration_s"] for task in tasks) - 0.002


def assert_told_once(story: list[Event], recording: Job, may_repeat: Collection[str] = ()) -> None:
    """A job's events are numbered without gaps, and each stage started and completed once, as did the job."""
    assert [number for number, _, _ in story] == list(range(1, len(story) + 1))
    told = Counter((type, data.get("stage")) for _, type, data in story if type != "task.failed")
    assert {what: n for what, n in told.items() if n > 1 and what[0] not in may_repeat} == {}
    ran = {stage["name"] for stage in recording["stages"] if stage["kind"] != "dynamic"}
    assert {stage for type, stage in told if type == "stage.started"} == ran
    assert {stage for type, stage in told if type == "stage.completed"} == ran
    assert [type for type, _ in told if type.startswith("job.")] == ["job.submitted", "job.started", "job.completed"]


def assert_took_up(view: dict[str, Any], before: dict[str, Any], recording: Job) -> None:
    """The finished job is what a client saw `before` the accident, and what was done then has not changed."""
    assert_ran_as_recorded(view, recording)
    assert (view["id"], view["submitted_at"]) == (before["id"], before["submitted_at"])
    stages = {stage["name"]: stage for stage in view["stages"]}
    for stage in before["stages"]:
        if stage["state"] in ("done", "skipped") and stage["finished_at"] is not None:
            assert stages[stage["name"]] == stage


def assert_sent_once_where_done(sent: list[str], jobs: list[Job], told: list[dict[str, Any]]) -> None:
    """Every call reached an engine; those of stages that were done before the accident did once, some others again."""
    times = Counter(attempt.rpartition("-")[0] for attempt in heard(sent))
    again = set[str]()
    for recording, before in zip(jobs, told, strict=True):
        for stage, index, _, _ in calls(recording):
            n = times[f"{before['id']}-{stage}-{index}"]
            assert n >= 1
            if stage in names_done(before):
                assert n == 1, f"{stage}[{index}] of {before['application']} was done and has run again"
            elif n > 1:
                again.add(stage)
    assert again, "nothing was interrupted, so nothing was tested"


async def assert_idle(service: RunningService) -> None:
    """Nothing runs or waits, and the engine offers all its slots."""
    metrics = await scrape(service)
    for name in ("llmsched_jobs_active", "llmsched_running_tasks", "llmsched_ready_tasks"):
        assert sum(value for _, value in metrics.samples.get(name, [])) == 0, name
    view = await engine_once(service, healthy=True)
    assert (view["running"], view["slots"]) == (0, SLOTS)
    assert metrics.value("llmsched_executor_slots", executor=view["id"]) == SLOTS
    assert metrics.value("llmsched_engine_up", executor=view["id"]) == 1

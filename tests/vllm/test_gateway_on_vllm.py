"""The whole service in front of a real vLLM: recorded and live jobs over REST, cancelled, killed and restarted.

The engine's counters and its log of requests say what was executed; they are compared exactly with the recordings.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.integration.service import RunningService, running_service
from tests.vllm.checks import (
    PATIENCE,
    assert_idle,
    assert_ran_as_recorded,
    assert_sent_once_where_done,
    assert_told_once,
    assert_took_up,
    attempts,
    engine_once,
    heard,
    midway,
    scrape,
)
from tests.vllm.engine import RealEngine, eventually
from tests.vllm.jobs import TRACES, Job, cost, job, llm, long, made, traced


@pytest.fixture
async def service(engine: RealEngine, tmp_path: Path) -> AsyncIterator[RunningService]:
    """`llmsched serve` with the shared engine, which it has found healthy: probing costs a request of one token."""
    async with running_service(tmp_path, engines=engine.url, workers=4) as service:
        yield service


needs_traces = pytest.mark.skipif(TRACES not in os.environ, reason=f"{TRACES} names no folder of traces")


@pytest.mark.parametrize("source", [made, pytest.param(traced, marks=needs_traces)])
async def test_recorded_jobs_of_all_applications_cost_exactly_the_recorded_tokens(
    engine: RealEngine, service: RunningService, source: Callable[[], list[Job]]
) -> None:
    jobs = source()
    before, seen = engine.counters(), len(engine.received())

    ids = [(await service.submit(recording=job))["id"] for job in jobs]
    views = [await service.finished(id, timeout=PATIENCE) for id in ids]

    for view, recording in zip(views, jobs, strict=True):
        assert_ran_as_recorded(view, recording)
    await eventually(lambda: engine.running() == 0)
    assert engine.counters() - before == cost(jobs)
    asked = [attempt for id, recording in zip(ids, jobs, strict=True) for attempt in attempts(id, recording)]
    assert heard(engine.received()[seen:]) == sorted(asked)

    metrics = await scrape(service)
    tasks = Counter(stage["kind"] for job in jobs for stage in job["stages"] for _ in stage["tasks"])
    for recording in jobs:
        labels = {"application": recording["app"]}
        assert metrics.value("llmsched_jobs_submitted_total", **labels) == 1
        assert metrics.value("llmsched_jobs_finished_total", **labels, outcome="completed") == 1
        assert metrics.value("llmsched_job_completion_seconds_count", **labels) == 1
    for pool, kind in (("llm", "llm"), ("cpu", "regular")):
        assert metrics.value("llmsched_task_queue_seconds_count", pool=pool) == tasks[kind]
        assert metrics.value("llmsched_task_run_seconds_count", pool=pool) == tasks[kind]
    assert "llmsched_task_retries_total" not in metrics.samples
    await assert_idle(service)


async def test_a_live_application_with_a_planner_runs_on_random_weights(
    engine: RealEngine, service: RunningService
) -> None:
    """Grammars make the plan and the verdict valid, whatever the weights would say."""
    put = await service.put("/v1/applications/inquiry", json=INQUIRY)
    assert put.status_code == 200, put.text
    before, seen = engine.counters(), len(engine.received())

    id = (await service.submit(application="inquiry", input={"claim": "the earth is flat"}))["id"]
    view = await service.finished(id, timeout=PATIENCE)

    assert view["status"] == "completed", view["error"]
    jsonschema.validate(view["result"]["verdict"], VERDICT)
    (step,) = view["result"]["looked"].values()
    assert step["n"] in (1, 2)
    stages = {stage["name"]: stage for stage in view["stages"]}
    (generated,) = (stage for stage in stages.values() if stage["parent"] == "tools")
    assert (generated["state"], generated["executors"]) == ("done", ["workers-cpu"])
    assert stages["comment"]["output_tokens"] == 2 * 12
    await eventually(lambda: engine.running() == 0)
    moved = engine.counters() - before
    assert moved.prompt_tokens == sum(stage["prompt_tokens"] or 0 for stage in stages.values())
    assert moved.generation_tokens == sum(stage["output_tokens"] or 0 for stage in stages.values())
    assert sum(moved.finished.values()) == 4
    asked = [f"{id}-comment-0-1", f"{id}-comment-1-1", f"{id}-plan-0-1", f"{id}-verdict-0-1"]
    assert heard(engine.received()[seen:]) == asked


VERDICT = {
    "type": "object",
    "properties": {"truth": {"type": "boolean"}, "because": {"enum": ["history", "logic", "luck"]}},
    "required": ["truth", "because"],
    "additionalProperties": False,
}

STEP = {
    "type": "object",
    "properties": {
        "name": {"enum": ["first", "only"]},
        "candidate": {"enum": ["look", "listen"]},
        "arguments": {
            "type": "object",
            "properties": {"n": {"enum": [1, 2]}},
            "required": ["n"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "candidate", "arguments"],
    "additionalProperties": False,
}

PLAN = {
    "type": "object",
    "properties": {"stages": {"type": "array", "minItems": 1, "maxItems": 1, "items": STEP}},
    "required": ["stages"],
    "additionalProperties": False,
}


def format_of(schema: dict[str, Any]) -> dict[str, Any]:
    """The `response_format` that asks for JSON of this schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


INQUIRY = {
    "stages": [
        {
            "name": "plan",
            "kind": "llm",
            "system": "You plan.",
            "prompt": "How to find out whether {{ input.claim }}?",
            "response_format": format_of(PLAN),
            "max_tokens": 4000,
            "sampling": {"seed": 1},
        },
        {
            "name": "tools",
            "kind": "dynamic",
            "planner": "plan",
            "after": ["plan"],
            "candidates": [{"name": "look", "handler": "echo"}, {"name": "listen", "handler": "echo"}],
        },
        {
            "name": "verdict",
            "kind": "llm",
            "after": ["tools"],
            "prompt": "{{ stages.tools }} Is it true?",
            "response_format": format_of(VERDICT),
            "max_tokens": 4000,
            "sampling": {"seed": 1},
        },
        {
            "name": "comment",
            "kind": "llm",
            "after": ["verdict"],
            "tasks": 2,
            "prompt": "{{ index }}: why {{ stages.verdict.because }}?",
            "max_tokens": 12,
            "sampling": {"ignore_eos": True},
        },
    ],
    "result": "{'verdict': stages.verdict, 'looked': stages.tools}",
}


async def test_cancelling_a_job_aborts_its_calls_in_the_engine_and_no_others(
    engine: RealEngine, service: RunningService
) -> None:
    endless = job("document_merging", llm("generate", "", *[(1346, 9000)] * 3))
    other = job("code_generation", llm("test_gen", "", (237, 200)), llm("code_gen_0", "test_gen", (106, 10)))
    before, seen, given_up = engine.counters(), len(engine.received()), len(engine.aborted())
    doomed = (await service.submit(recording=endless))["id"]
    survivor = (await service.submit(recording=other))["id"]
    await eventually(lambda: len(heard(engine.received()[seen:])) >= 4 and engine.running() >= 3)

    answer = await service.post(f"/v1/jobs/{doomed}/cancel")

    assert answer.status_code == 202, answer.text
    await eventually(lambda: len(engine.aborted()) == given_up + 3, 5.0)
    assert heard(engine.aborted()[given_up:]) == attempts(doomed, endless)
    cancelled = await service.finished(doomed, timeout=PATIENCE)
    assert (cancelled["status"], cancelled["result"]) == ("cancelled", None)
    assert_ran_as_recorded(await service.finished(survivor, timeout=PATIENCE), other)
    await eventually(lambda: engine.running() == 0)
    assert (engine.counters() - before).finished == cost([other]).finished
    metrics = await scrape(service)
    assert metrics.value("llmsched_jobs_finished_total", outcome="cancelled") == 1
    await assert_idle(service)


async def test_jobs_finish_after_the_service_was_killed_and_nothing_committed_runs_again(
    engine: RealEngine, service: RunningService
) -> None:
    jobs, seen, given_up = [*made(), long()], len(engine.received()), len(engine.aborted())
    ids = [(await service.submit(recording=job))["id"] for job in jobs]
    told = await midway(engine, service, ids)

    await service.kill9()
    await eventually(lambda: len(engine.aborted()) >= given_up + 3 and engine.running() == 0)
    before_restart, interrupted = engine.received()[seen:], engine.aborted()[given_up:]
    await service.restart()

    for id, recording, before in zip(ids, jobs, told, strict=True):
        story = await service.story(id, timeout=PATIENCE)
        assert_told_once(story, recording, may_repeat={"stage.started"})
        assert_took_up(await service.finished(id, timeout=PATIENCE), before, recording)
    after_restart = engine.received()[seen + len(before_restart) :]
    assert set(heard(interrupted)) <= set(heard(after_restart))
    assert_sent_once_where_done(before_restart + after_restart, jobs, told)
    await assert_idle(service)


async def endless_stream(engine: RealEngine) -> list[str]:
    """The data of the events of a streamed completion that the test outlives."""
    body = {"model": engine.model, "prompt": [10, 20], "max_tokens": 9000, "ignore_eos": True, "stream": True}
    async with (
        httpx.AsyncClient(base_url=engine.url, timeout=120) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        return [line.removeprefix("data: ") async for line in response.aiter_lines() if line]


async def test_jobs_finish_after_the_engine_was_killed_and_came_back(
    engine: RealEngine, service: RunningService
) -> None:
    """The trap for clients: a stream that its engine's death cut short ends with [DONE] all the same."""
    jobs, seen = [*made(), long()], len(engine.received())
    ids = [(await service.submit(recording=job))["id"] for job in jobs]
    streamed = asyncio.create_task(endless_stream(engine))
    told = await midway(engine, service, ids)

    os.kill(engine.worker(), signal.SIGKILL)

    *_, last, done = await streamed
    assert json.loads(last)["error"]["code"] == 500
    assert done == "[DONE]"
    await eventually(lambda: engine.exited, 20.0)
    before_restart = engine.received()[seen:]
    down = await engine_once(service, healthy=False)
    assert down["last_error"]
    assert (await service.get("/ready")).status_code == 503
    assert (await scrape(service)).value("llmsched_engine_up") == 0

    await asyncio.to_thread(engine.restart)

    for id, recording, before in zip(ids, jobs, told, strict=True):
        story = await service.story(id, timeout=PATIENCE)
        assert_told_once(story, recording)
        assert_took_up(await service.finished(id, timeout=PATIENCE), before, recording)
    assert_sent_once_where_done(before_restart + engine.received(), jobs, told)
    await assert_idle(service)

"""The service in this process: what it takes on, what it keeps and forgets, and how it ends when something is wrong.

`bare` is the Service object alone, with a store whose writes can be held up or refused; `in_process_service` has the
gateway and emulated engines around it.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from llmsched.errors import BackendError, Conflict, InvalidInput, InvalidTransition
from llmsched.model.application import Application
from llmsched.model.events import StageExpanded
from llmsched.model.job import Job, JobStatus, Stage, Task
from llmsched.model.records import EventRecord, JobRecord, Writes
from llmsched.runtime.applications import Applications
from llmsched.runtime.clock import WallClock
from llmsched.runtime.hub import Subscription
from llmsched.runtime.run import JobRun
from llmsched.runtime.service import Service
from llmsched.runtime.submission import NewJob
from llmsched.runtime.tools.handlers import HandlerRegistry, build_registry
from llmsched.runtime.tools.workers import InlineWorkers
from llmsched.store.journal import Journal
from llmsched.store.store import Store
from llmsched.workloads import APPLICATIONS
from tests.integration.service import InProcessService, a_recording, in_process_service, until

#: Two calls of a handler, one after the other.
CHAIN = Application.parse(
    {
        "name": "chain",
        "stages": [
            {"name": "first", "kind": "regular", "handler": "echo", "arguments": {"x": "{{ input.x }}"}},
            {
                "name": "second",
                "kind": "regular",
                "handler": "gate",
                "after": ["first"],
                "arguments": {"x": "{{ last.x }}"},
            },
        ],
    }
)


class Sink:
    """A store's writing side that waits while `open` is cleared, and refuses what `refuse` has an error for."""

    fenced = False

    def __init__(self, store: Store) -> None:
        self._store = store
        self.open = asyncio.Event()
        self.open.set()
        self.refuse: Callable[[Writes], Exception | None] = lambda writes: None

    async def write(self, writes: Writes, *, again: bool = False) -> None:
        await self.open.wait()
        if (error := self.refuse(writes)) is not None:
            raise error
        await self._store.write(writes, again=again)


class Bare:
    """A service without a gateway. `gate` is what tasks of the handler of that name wait for."""

    def __init__(self, service: Service, store: Store, sink: Sink, journal: Journal, gate: asyncio.Event) -> None:
        self.service = service
        self.store = store
        self.sink = sink
        self.journal = journal
        self.gate = gate

    async def submit(self, **fields: Any) -> JobRecord:
        record, _ = await self.service.submit(NewJob(**({"application": "chain", "input": {"x": "1"}} | fields)))
        return record

    async def over(self, id: str) -> JobRecord:
        async with asyncio.timeout(10):
            while True:
                record = await self.store.job(id)
                assert record is not None
                if record.is_finished:
                    return record
                await asyncio.sleep(0.005)

    async def story(self, id: str) -> list[tuple[int, str]]:
        return [(event.seq, event.type) for event in await self.store.events(id)]


@asynccontextmanager
async def bare(folder: Path, *, workers: int = 4) -> AsyncIterator[Bare]:
    async with await Store.open(f"sqlite:///{folder}/jobs.db") as store:
        applications = Applications(store)
        await applications.load({"chain": CHAIN})
        gate, sink = asyncio.Event(), Sink(store)
        gate.set()
        journal = Journal(sink, lambda writes: service.committed(writes), retry_delays=(0.01,))
        registry = handlers(gate)
        service = Service(
            policy="fcfs",
            store=store,
            journal=journal,
            applications=applications,
            workers=InlineWorkers(registry, 4),
            handlers=registry,
            clock=WallClock(),
        )
        await service.start({"cpu": workers} if workers else {})
        try:
            yield Bare(service, store, sink, journal, gate)
        finally:
            await service.stop(0.0)
            await journal.close(0.2)


def handlers(gate: asyncio.Event) -> HandlerRegistry:
    registry = build_registry(installed=False)

    async def wait(arguments: dict[str, Any]) -> dict[str, Any]:
        await gate.wait()
        return arguments

    registry.register("gate", wait)
    return registry


CHAIN_STORY = [
    "job.submitted",
    "job.started",
    "stage.started",
    "stage.completed",
    "stage.started",
    "stage.completed",
    "job.completed",
]


# ----------------------------------------------------------------------------------------------- taking jobs on


async def test_a_job_runs_and_its_story_is_told_in_order(tmp_path: Path) -> None:
    async with bare(tmp_path) as it:
        job = await it.submit()
        record = await it.over(job.id)
        assert (record.status, record.result) == (JobStatus.COMPLETED, {"x": "1"})
        assert await it.story(job.id) == list(enumerate(CHAIN_STORY, 1))


async def test_a_job_is_acknowledged_only_when_it_is_durable(tmp_path: Path) -> None:
    async with bare(tmp_path) as it:
        it.sink.open.clear()
        submitting = asyncio.create_task(it.submit())
        await until(lambda: it.journal.pending == 1)
        assert not submitting.done()
        assert it.service.active_jobs == 0
        it.sink.open.set()
        await it.over((await submitting).id)


async def test_a_job_the_database_refuses_leaves_no_trace(tmp_path: Path) -> None:
    async with bare(tmp_path) as it:
        it.sink.refuse = lambda writes: InvalidInput("cannot be stored: too odd") if writes.jobs else None
        with pytest.raises(InvalidInput, match="too odd"):
            await it.submit(idempotency_key="k", request_digest="d")
        assert left_over(it.service) == {}
        it.sink.refuse = lambda writes: None
        await it.over((await it.submit(idempotency_key="k", request_digest="d")).id)


async def test_a_caller_that_goes_away_does_not_lose_the_job(tmp_path: Path) -> None:
    async with bare(tmp_path) as it:
        it.sink.open.clear()
        submitting = asyncio.create_task(it.submit())
        await until(lambda: it.journal.pending == 1)
        submitting.cancel()
        it.gate.clear()
        it.sink.open.set()
        await until(lambda: it.service.active_jobs == 1)
        it.gate.set()
        (job,) = await it.store.jobs()
        assert (await it.over(job.id)).status is JobStatus.COMPLETED


async def test_one_key_used_by_many_at_once_is_one_job(tmp_path: Path) -> None:
    async with bare(tmp_path) as it:
        new = NewJob("chain", {"x": "1"}, idempotency_key="k", request_digest="d")
        answers = await asyncio.gather(*(it.service.submit(new) for _ in range(30)))
        assert len({record.id for record, _ in answers}) == 1
        assert sum(is_new for _, is_new in answers) == 1
        other = await asyncio.gather(it.service.submit(replace(new, request_digest="e")), return_exceptions=True)
        assert isinstance(other[0], Conflict)
        assert (await it.service.submit(replace(new, tenant="t")))[1], "keys belong to tenants"
        await until(lambda: left_over(it.service) == {})


# ------------------------------------------------------------------------------------------------- what is told


async def test_nobody_sees_a_stage_go_back_while_its_end_is_being_written(tmp_path: Path) -> None:
    async with bare(tmp_path) as it:
        it.gate.clear()
        job = await it.submit()
        await until(lambda: states(it.service, job.id)["second"] == "running")
        it.sink.open.clear()
        it.gate.set()
        await until(lambda: it.service.active_jobs == 0)
        assert states(it.service, job.id) == {"first": "running", "second": "running"}
        it.sink.open.set()
        await it.over(job.id)
        await until(lambda: it.service.stages(job.id) == {})


async def test_events_reach_listeners_only_when_they_are_durable(tmp_path: Path) -> None:
    async with bare(tmp_path) as it:
        it.gate.clear()
        job = await it.submit()
        await until(lambda: states(it.service, job.id)["second"] == "running")
        await until(lambda: it.journal.pending == 0)
        with it.service.hub.subscribe(job.id) as listener:
            it.sink.open.clear()
            it.gate.set()
            await until(lambda: it.service.active_jobs == 0)
            assert not heard(listener)
            it.sink.open.set()
            await it.over(job.id)
            await until(lambda: heard(listener))


def states(service: Service, id: str) -> dict[str, str]:
    return {"first": "", "second": ""} | {name: view["state"] for name, view in service.stages(id).items()}


def heard(listener: Subscription) -> bool:
    return len(listener._queue) > 0


# ------------------------------------------------------------------------------------------------ the bad endings


async def test_an_impossible_story_ends_the_service_and_the_next_one_goes_on(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, speed=5) as it:
        service, (engine,) = it.context.service, it.engines
        jobs = [await it.submit(recording=a_recording(seed=k)) for k in range(3)]
        await until(lambda: engine.server.running > 0)
        service.post(StageExpanded(jobs[0]["id"], "nowhere"))
        async with asyncio.timeout(5):
            await service.failed.wait()
        assert isinstance(service.failure, InvalidTransition)
        assert "no stage 'nowhere'" in str(service.failure)
        assert (await it.get("/ready")).status_code == 503
        assert (await it.post("/v1/jobs", json={"application": "chain", "input": 1})).status_code in (429, 503)
        await until(lambda: engine.server.running == 0, what="the end of every request")
        await it.context.journal.flush()
        told = [await it.context.store.last_seq([job["id"]]) for job in jobs]
        service.post(StageExpanded(jobs[1]["id"], "nowhere"))  # is not heard any more
        await it.context.journal.flush()
        assert [await it.context.store.last_seq([job["id"]]) for job in jobs] == told
    async with in_process_service(tmp_path) as it:
        for job in jobs:
            story = await it.story(job["id"])
            assert [number for number, _, _ in story] == list(range(1, len(story) + 1))
            assert story[-1][1] == "job.completed"


async def test_a_store_that_takes_no_more_writes_ends_the_service(tmp_path: Path) -> None:
    async with bare(tmp_path) as it:
        it.gate.clear()
        job = await it.submit()
        await until(lambda: states(it.service, job.id)["second"] == "running")
        await until(lambda: it.journal.pending == 0)
        it.sink.fenced = True
        it.sink.refuse = lambda writes: BackendError("the store was taken over by another service")
        it.gate.set()
        async with asyncio.timeout(5):
            await it.service.failed.wait()
        assert "taken over" in str(it.service.failure)
        with pytest.raises(BackendError):
            await it.submit()
    async with bare(tmp_path) as it:
        assert (await it.over(job.id)).status is JobStatus.COMPLETED


async def test_what_no_database_can_hold_fails_its_job_alone(tmp_path: Path) -> None:
    def refuse(writes: Writes) -> Exception | None:
        odd = any(row.name == "first" and row.outputs == [{"x": "odd"}] for row in writes.stages)
        return RecursionError("maximum recursion depth exceeded") if odd else None

    async with bare(tmp_path) as it:
        it.sink.refuse = refuse
        it.gate.clear()
        jobs = await asyncio.gather(*(it.submit(input={"x": x}) for x in ("a", "odd", "b")))
        await it.over(jobs[1].id)
        it.gate.set()
        over = [await it.over(job.id) for job in jobs]
        assert [record.status.value for record in over] == ["completed", "failed", "completed"]
        assert over[1].error == "stage 'first': cannot be stored: maximum recursion depth exceeded"
        assert (await it.story(jobs[1].id))[-1][1] == "job.failed"
        assert it.service.failure is None
        await until(lambda: left_over(it.service) == {})


async def test_a_result_no_database_can_hold_fails_its_job_too(tmp_path: Path) -> None:
    def refuse(writes: Writes) -> Exception | None:
        return InvalidInput("cannot be stored: too long") if any(u.result for u in writes.updates) else None

    async with bare(tmp_path) as it:
        it.sink.refuse = refuse
        record = await it.over((await it.submit()).id)
        assert (record.status, record.error) == (
            JobStatus.FAILED,
            "the result cannot be stored: cannot be stored: too long",
        )
        assert it.service.failure is None
        await until(lambda: left_over(it.service) == {})


async def test_a_job_that_can_no_longer_run_fails_at_the_restart_and_stops_nobody(tmp_path: Path) -> None:
    async with bare(tmp_path, workers=0) as it:
        good = await it.submit()
        orphan = JobRecord("job_orphan", 900, "chain", 77, 1.0)
        told = [EventRecord("job_orphan", n, "job.submitted", 1.0) for n in (1, 2)]
        await it.store.write(Writes(jobs=[(orphan, None)], events=told))
    async with bare(tmp_path) as it:
        assert (await it.over(good.id)).status is JobStatus.COMPLETED
        record = await it.over("job_orphan")
        assert record.status is JobStatus.FAILED
        assert record.error == "cannot be restored: application 'chain' has no version 77"
        assert (await it.story("job_orphan"))[-1] == (3, "job.failed")
        assert (await it.submit()).number == 901


async def test_stopping_does_not_wait_for_an_ill_database(tmp_path: Path) -> None:
    async with bare(tmp_path) as it:
        await it.submit()
        it.sink.refuse = lambda writes: BackendError("the database is away")
        async with asyncio.timeout(5):
            await it.service.stop(0.0)
            await it.journal.close(0.2)
        assert it.service.failure is None


# --------------------------------------------------------------------------------------------------- live jobs

ASK: dict[str, Any] = {
    "stages": [
        {"name": "fetch", "kind": "regular", "handler": "echo", "arguments": {"words": "{{ input.words }}"}},
        {
            "name": "answer",
            "kind": "llm",
            "after": ["fetch"],
            "for_each": "stages.fetch.words",
            "max_tasks": 4,
            "prompt": "Say something about {{ item }}.",
            "max_tokens": 8,
        },
        {
            "name": "pack",
            "kind": "regular",
            "handler": "echo",
            "after": ["answer"],
            "arguments": {"n": "{{ stages.answer | length }}", "all": "{{ stages.answer }}"},
        },
    ]
}

#: The emulated engine answers a schema with the one plan that it allows.
_SEARCH = {
    "name": {"const": "s1"},
    "candidate": {"const": "search"},
    "arguments": {"type": "object", "properties": {"q": {"const": "cats"}}, "required": ["q"]},
}
_JUDGE = {
    "name": {"const": "s2"},
    "candidate": {"const": "judge"},
    "after": {"type": "array", "prefixItems": [{"const": "s1"}], "minItems": 1, "maxItems": 1},
    "arguments": {"type": "object", "properties": {"prompt": {"const": "well?"}}, "required": ["prompt"]},
}


def _strict(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


PLANNED: dict[str, Any] = {
    "stages": [
        {
            "name": "plan",
            "kind": "llm",
            "prompt": "Plan for {{ input }}.",
            "max_tokens": 400,
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "plan",
                    "schema": _strict(
                        {
                            "stages": {
                                "type": "array",
                                "prefixItems": [_strict(_SEARCH), _strict(_JUDGE)],
                                "minItems": 2,
                                "maxItems": 2,
                            }
                        }
                    ),
                },
            },
        },
        {
            "name": "tools",
            "kind": "dynamic",
            "after": ["plan"],
            "planner": "plan",
            "max_stages": 4,
            "candidates": [{"name": "search", "handler": "echo"}, {"name": "judge", "kind": "llm"}],
        },
        {"name": "join", "kind": "regular", "handler": "echo", "after": ["tools"], "arguments": {"t": "{{ last }}"}},
    ]
}


async def put(it: InProcessService, name: str, definition: dict[str, Any]) -> None:
    answer = await it.put(f"/v1/applications/{name}", json=definition)
    assert answer.status_code == 200, answer.text


async def test_a_live_job_gives_its_outputs_from_stage_to_stage(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as it:
        await put(it, "ask", ASK)
        job = await it.finished((await it.submit(application="ask", input={"words": ["ice", "tea"]}))["id"])
        assert job["status"] == "completed", job["error"]
        assert job["result"]["n"] == 2
        assert all(isinstance(text, str) and text for text in job["result"]["all"])


async def test_a_planner_s_answer_becomes_stages_that_run(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as it:
        await put(it, "planned", PLANNED)
        job = await it.finished((await it.submit(application="planned", input="cats"))["id"])
        assert job["status"] == "completed", job["error"]
        assert [(s["name"], s["state"], s["kind"]) for s in job["stages"]] == [
            ("plan", "done", "llm"),
            ("tools", "done", "dynamic"),
            ("join", "done", "regular"),
            ("tools.s1", "done", "regular"),
            ("tools.s2", "done", "llm"),
        ]
        assert job["result"]["t"]["s1"] == {"q": "cats"}
        assert isinstance(job["result"]["t"]["s2"], str)


async def test_a_regular_task_that_takes_too_long_is_tried_again_and_then_fails_its_job(tmp_path: Path) -> None:
    nap = {
        "name": "nap",
        "kind": "regular",
        "handler": "sleep",
        "arguments": {"seconds": 60},
        "timeout": 0.3,
        "retries": 1,
    }
    async with in_process_service(tmp_path, backoff_first=0.01) as it:
        await put(it, "nap", {"stages": [nap]})
        job = await it.submit(application="nap", input=None)
        story = await it.story(job["id"])
        assert [type for _, type, _ in story].count("task.failed") == 2
        error = (await it.get(f"/v1/jobs/{job['id']}")).json()["error"]
        assert error == "task nap[0] failed 2 times, last: timeout: handler 'sleep' ran longer than its 0.3 s"


async def test_outputs_of_committed_stages_survive_a_restart(tmp_path: Path) -> None:
    say = {"name": "say", "kind": "llm", "prompt": "Say something.", "max_tokens": 16}
    nap = {"name": "nap", "kind": "regular", "handler": "sleep", "after": ["say"], "arguments": {"seconds": 1}}

    def naps(it: InProcessService) -> bool:
        stage = it.context.service.stages(job["id"]).get("nap")
        return stage is not None and stage["running"] == 1

    async with in_process_service(tmp_path) as it:
        await put(it, "talk", {"stages": [say, nap], "result": "stages.say"})
        job = await it.submit(application="talk", input=None)
        await until(lambda: naps(it))
        await it.context.journal.flush()
        (said,) = await it.context.store.stages(job["id"])
    assert said.name == "say"
    assert said.outputs[0]
    async with in_process_service(tmp_path) as it:
        view = await it.finished(job["id"])
        assert (view["status"], view["result"]) == ("completed", said.outputs[0])
        assert it.engines[0].request_ids == [], "what was said is said again"
        story = await it.story(job["id"])
        assert [number for number, _, _ in story] == list(range(1, len(story) + 1))
        assert [data["stage"] for _, type, data in story if type == "stage.started"] == ["say", "nap", "nap"]
        assert [data["stage"] for _, type, data in story if type == "stage.completed"] == ["say", "nap"]


async def test_a_recorded_stage_may_have_any_printable_name(tmp_path: Path) -> None:
    recording = a_recording("llm_compiler")
    renamed = {"plan": "Pläne – schmieden/1"}
    for stage in recording["stages"]:
        stage["name"] = renamed.get(stage["name"], stage["name"])
        stage["deps"] = [renamed.get(d, d) for d in stage["deps"]]
    async with in_process_service(tmp_path) as it:
        job = await it.finished((await it.submit(recording=recording))["id"])
        assert job["status"] == "completed", job["error"]
        assert job["off_profile"]


# ---------------------------------------------------------------------------------------------------- no leaks


def left_over(service: Service) -> dict[str, Any]:
    """Everything the service still holds of any job; empty when all are over and committed."""
    view = service.scheduler.view
    kept: dict[str, Sequence[Any] | dict[Any, Any]] = {
        "runs": service._ledger.runs,
        "leaving": service._ledger.leaving,
        "attempts": service._attempts,
        "tenants": service._ledger.tenants,
        "claims": service._claims,
        "queue": service._queue,
        "writes": service._ledger.unwritten,
        "jobs": view.jobs,
        "ready": {pool: stages for pool, stages in view.ready.items() if stages},
        "running": {e.id: e.running for e in view.executors.values() if e.running},
        "followed": service.foresight._jobs,
        "believed": service.foresight.knowledge._answers,
        "news": service._news,
    }
    found = {name: list(held) for name, held in kept.items() if held}
    return found | ({"submitting": [service._submitting]} if service._submitting else {})


async def test_five_hundred_jobs_later_nothing_is_left_of_them(tmp_path: Path) -> None:
    """Some fail, some are cancelled, all are watched; under another policy from the middle on."""
    rng, others = Random(5), survivors()
    settings: dict[str, Any] = {"max_batch": 64, "workers": 16, "backoff_first": 0.01}
    # Its jobs are learned from in between, and what a fit leaves in this process is looked at as well.
    async with in_process_service(tmp_path, emulate=2, learn_every_jobs=120, **settings) as it:
        service = it.context.service
        await put(it, "say", {"stages": [{"name": "say", "kind": "llm", "prompt": "{{ input.word }}"}]})
        at_work = tasks() - Counter({"RequestHandler.start": 10})

        async def one(k: int) -> None:
            if k % 20:
                fields: dict[str, Any] = {"application": "say", "input": {"word": "x"} if k % 7 else {}}
            else:
                application = rng.choice([a for a in APPLICATIONS if a != "document_merging"])
                fields = {"recording": a_recording(application, seed=k)}
            job = await it.submit(**fields, headers={"Idempotency-Key": str(k)})
            if k % 11 == 0:
                await it.post(f"/v1/jobs/{job['id']}/cancel")
            story = await it.story(job["id"])
            assert story[-1][1] in ("job.completed", "job.failed", "job.cancelled")

        for start in range(0, 500, 100):
            await asyncio.gather(*(one(k) for k in range(start, start + 100)))
            if start == 200:
                assert (await it.put("/v1/policies/active", json={"name": "sjf"})).status_code == 200
        await until(lambda: left_over(service) == {})
        await until(lambda: "say" in service.foresight.knowledge.profiles)
        await until(lambda: service.hub.listeners == 0)
        assert it.context.journal.pending == 0
        assert all(engine.server.running == 0 for engine in it.engines)
        # A connection is a task of the engine's. Probes, two a second, keep up to four from idling for two seconds.
        idle = Counter({"RequestHandler.start": 2 * 5, "Journal._run": 1})
        await until(lambda: tasks() - idle == at_work, what="the end of idle connections and of the last fit")
        assert len(survivors()) == len(others)
        counts = await it.context.store.counts()
        assert sum(counts.values()) == 500
        assert counts[JobStatus.QUEUED] == counts[JobStatus.RUNNING] == 0
        assert counts[JobStatus.FAILED] > 0
        assert counts[JobStatus.CANCELLED] > 0


def tasks() -> Counter[str]:
    """What runs in this event loop, by name of its function."""
    return Counter(task.get_coro().__qualname__ for task in asyncio.all_tasks())  # type: ignore[union-attr]


def survivors() -> list[object]:
    """What there is of jobs in this process, those of other tests included."""
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, JobRun | Job | Stage | Task)]

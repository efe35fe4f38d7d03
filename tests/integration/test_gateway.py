"""The REST contract: what every route answers, in process, with real (emulated) engines and a real store behind it."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from llmsched import __version__
from llmsched.errors import BackendError
from llmsched.logs import JsonLines, TextLines
from llmsched.model.latency import LatencyCurve
from llmsched.model.records import EventRecord, Writes
from llmsched.policies import DEFAULT_POLICY
from tests.integration.databases import postgres, postgres_url, store_url
from tests.integration.service import (
    InProcessService,
    a_recording,
    events_of,
    in_process_service,
    running_service,
    until,
)

__all__ = ["postgres", "postgres_url", "store_url"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: One llm stage of 40 s on an engine at speed 1.
LONG = {
    "app": "code_generation",
    "job_id": "long",
    "stages": [{"name": "test_gen", "kind": "llm", "deps": [], "tasks": [{"prompt_tokens": 8, "output_tokens": 4000}]}],
}
SHORT = LONG | {
    "job_id": "short",
    "stages": [{"name": "test_gen", "kind": "llm", "deps": [], "tasks": [{"prompt_tokens": 8, "output_tokens": 1}]}],
}
ECHO = {"stages": [{"name": "say", "kind": "llm", "prompt": "Say {{ input.word }}", "max_tokens": 4}]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcessService]:
    """One for all tests that leave no job running and nothing registered."""
    async with in_process_service(tmp_path_factory.mktemp("service"), emulate=2, max_model_len=4_096) as running:
        yield running


def a_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document, its common members checked and taken out."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem.pop("type") == "about:blank"
    assert problem.pop("title")
    assert problem.pop("status") == status
    assert problem.pop("request_id") == response.headers["x-request-id"]
    assert len(problem["detail"]) < 1000
    return problem


async def stored(service: InProcessService) -> int:
    return len((await service.get("/v1/jobs?limit=500")).json()["items"])


# -------------------------------------------------------------------------------------------------------- jobs


async def test_a_job_is_accepted_runs_and_tells_its_story(service: InProcessService) -> None:
    response = await service.post(
        "/v1/jobs",
        json={"application": "code_generation", "recording": SHORT, "class": "batch", "metadata": {"for": "me"}},
    )
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    submitted_at = job.pop("submitted_at")
    assert job == {
        "id": job["id"],
        "application": "code_generation",
        "version": 1,
        "status": "queued",
        "class": "batch",
        "started_at": None,
        "finished_at": None,
        "deadline_s": None,
        "forecast": None,
        "metadata": {"for": "me"},
        "recorded": True,
        "off_profile": job["off_profile"],
        "result": None,
        "error": None,
    }

    story = await service.story(job["id"])
    assert [number for number, _, _ in story] == list(range(1, len(story) + 1))
    assert [kind for _, kind, _ in story][:4] == ["job.submitted", "job.started", "stage.started", "stage.completed"]
    assert story[-1][1] == "job.completed"
    assert all(data["job"] == job["id"] and data["at"] >= submitted_at for _, _, data in story)

    view = (await service.get(f"/v1/jobs/{job['id']}")).json()
    assert view["status"] == "completed"
    assert view["result"] == {"prompt_tokens": 8, "output_tokens": 1}
    assert submitted_at <= view["started_at"] <= view["finished_at"]
    stage = view["stages"][0]
    assert view["started_at"] <= stage.pop("started_at") <= stage.pop("finished_at") <= view["finished_at"]
    assert stage.pop("executors")[0] in {engine.id for engine in service.context.service.engines}
    assert stage == {
        "name": "test_gen",
        "kind": "llm",
        "state": "done",
        "after": [],
        "parent": None,
        "pool": "llm",
        "tasks": 1,
        "running": 0,
        "done": 1,
        "prompt_tokens": 8,
        "output_tokens": 1,
    }
    assert {s["state"] for s in view["stages"][1:]} == {"skipped"}


def hold_writes(service: InProcessService, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The database takes nothing until the event is set."""
    gate, write = asyncio.Event(), service.context.store.write

    async def held(writes: Writes, *, again: bool = False) -> None:
        await gate.wait()
        await write(writes, again=again)

    monkeypatch.setattr(service.context.store, "write", held)
    return gate


async def test_the_answer_waits_until_the_job_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with in_process_service(tmp_path, emulate=0) as service:
        gate = hold_writes(service, monkeypatch)
        answer = asyncio.create_task(service.submit(recording=SHORT))
        await asyncio.wait((answer,), timeout=0.1)
        assert not answer.done()
        gate.set()
        job = await answer
        with sqlite3.connect(tmp_path / "jobs.db") as database:  # as another process sees it
            assert database.execute("SELECT id, status FROM jobs").fetchall() == [(job["id"], "queued")]
            assert database.execute("SELECT job FROM recordings").fetchall() == [(job["id"],)]
        database.close()


async def test_a_client_that_hangs_up_in_the_middle_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being written is also run, and the client's second attempt finds it."""
    async with in_process_service(tmp_path) as service:
        gate = hold_writes(service, monkeypatch)
        headers = {"Idempotency-Key": "hangs-up"}
        first = asyncio.create_task(service.submit(recording=SHORT, headers=headers))
        await until(lambda: service.context.journal.pending, what="the write")
        first.cancel()
        await asyncio.wait((first,))
        again = asyncio.create_task(service.submit(recording=SHORT, headers=headers))
        gate.set()
        assert (await service.finished((await again)["id"]))["status"] == "completed"
        assert await stored(service) == 1


async def test_a_running_job_shows_its_stages_and_can_be_cancelled(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, speed=1.0) as service:
        job = await service.submit(recording=LONG)
        path = f"/v1/jobs/{job['id']}"
        async with service.stream(f"{path}/events") as stream:
            while (await stream.next())[-1][1] != "stage.started":
                pass
            view = (await service.get(path)).json()
            assert view["status"] == "running"
            assert [(s["name"], s["state"], s["running"]) for s in view["stages"]][:2] == [
                ("test_gen", "running", 1),
                ("code_gen_0", "waiting", 0),
            ]
            assert (await service.post(f"{path}/cancel")).status_code == 202
            assert (await stream.rest())[-1][1] == "job.cancelled"
        view = (await service.get(path)).json()
        assert (view["status"], view["result"]) == ("cancelled", None)
        assert (await service.post(f"{path}/cancel")).status_code == 202, "a second cancel is no error"
        await service.stop_engines()
        assert service.engines[0].requests["abort"] == 1


async def test_a_finished_job_cannot_be_cancelled(service: InProcessService) -> None:
    job = await service.submit(recording=SHORT)
    await service.story(job["id"])
    problem = a_problem(await service.post(f"/v1/jobs/{job['id']}/cancel"), 409)
    assert problem["detail"] == f"job {job['id']} is already completed; there is nothing to cancel"


async def test_a_batch_is_answered_in_order_and_each_job_on_its_own(service: InProcessService) -> None:
    good = {"application": "code_generation", "recording": SHORT}
    jobs = [good, {"application": "nope", "input": 1}, good, {"application": "code_generation"}]
    response = await service.post("/v1/jobs:batch", json={"jobs": jobs})
    assert response.status_code == 202
    items = response.json()["items"]
    assert [(item["status"], item["field"]) for item in items] == [
        (202, None),
        (422, "application"),
        (202, None),
        (422, "input"),
    ]
    assert items[3]["detail"] == "a job needs an input or a recording; both are missing"
    listed = [job["id"] for job in (await service.get("/v1/jobs?limit=2")).json()["items"]]
    assert listed == [items[2]["id"], items[0]["id"]]


async def test_a_batch_with_a_key_is_one_batch_however_often_it_is_sent(service: InProcessService) -> None:
    body = {"jobs": [{"application": "code_generation", "recording": SHORT}] * 3}
    answers = [await service.post("/v1/jobs:batch", json=body, headers={"Idempotency-Key": "many"}) for _ in "ab"]
    first, second = (answer.json() for answer in answers)
    assert first == second
    assert len({item["id"] for item in first["items"]}) == 3


async def test_a_batch_has_between_one_and_a_thousand_jobs(service: InProcessService) -> None:
    job = {"application": "code_generation", "input": 1}
    before = await stored(service)
    for jobs in ([], [job] * 1001):
        assert a_problem(await service.post("/v1/jobs:batch", json={"jobs": jobs}), 422)["field"] == "jobs"
    assert await stored(service) == before


async def test_pages_stay_put_while_jobs_arrive(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=0) as service:
        ids = [(await service.submit(recording=SHORT))["id"] for _ in range(25)]
        found, query = [], {"limit": "10"}
        while query:
            page = (await service.get("/v1/jobs", params=query)).json()
            found.append([job["id"] for job in page["items"]])
            query = {"limit": "10", "cursor": page["next_cursor"]} if page["next_cursor"] else {}
            await service.submit(recording=SHORT)
        assert [len(page) for page in found] == [10, 10, 5]
        assert [id for page in found for id in page] == ids[::-1]


async def test_lists_are_filtered(service: InProcessService) -> None:
    job = await service.submit(recording=SHORT)
    other = await service.submit(recording=a_recording("web_search"))
    for id in (job["id"], other["id"]):
        await service.story(id)
    everything = (await service.get("/v1/jobs?limit=500")).json()["items"]
    for query in ("application=web_search", "status=completed", "status=queued", "application=nobodys"):
        key, value = query.split("=")
        listed = (await service.get(f"/v1/jobs?limit=500&{query}")).json()["items"]
        assert listed == [job for job in everything if job[key] == value]


# ------------------------------------------------------------------------------------------------- idempotency


async def test_the_same_key_and_body_is_the_same_job_even_at_the_same_moment(service: InProcessService) -> None:
    body = {"application": "code_generation", "recording": SHORT}
    headers = {"Idempotency-Key": "at-once"}
    answers = await asyncio.gather(*(service.post("/v1/jobs", json=body, headers=headers) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert Counter("idempotent-replay" in answer.headers for answer in answers) == {False: 1, True: 19}
    id = answers[0].json()["id"]
    await service.story(id)
    again = await service.post("/v1/jobs", json=body, headers=headers)
    assert (again.json()["id"], again.json()["status"]) == (id, "completed")


async def test_a_key_used_for_another_body_is_a_conflict(service: InProcessService) -> None:
    headers = {"Idempotency-Key": "twice"}
    job = await service.submit(recording=SHORT, headers=headers)
    before = await stored(service)
    body = {"application": "code_generation", "recording": SHORT, "class": "batch"}
    problem = a_problem(await service.post("/v1/jobs", json=body, headers=headers), 409)
    assert problem == {
        "detail": f"idempotency key 'twice' was used for another request (job {job['id']}); use a new key",
        "field": "Idempotency-Key",
    }
    assert await stored(service) == before


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_has_between_1_and_255_characters(service: InProcessService, key: str) -> None:
    response = await service.post(
        "/v1/jobs", json={"application": "code_generation", "recording": SHORT}, headers={"Idempotency-Key": key}
    )
    assert a_problem(response, 422)["field"] == "Idempotency-Key"


async def test_a_refused_job_does_not_use_up_its_key(service: InProcessService) -> None:
    headers = {"Idempotency-Key": "second-try"}
    a_problem(await service.post("/v1/jobs", json={"application": "nope", "input": 1}, headers=headers), 422)
    await service.submit(recording=SHORT, headers=headers)


# ------------------------------------------------------------------------------------------------------ events


async def test_a_stream_is_resumed_behind_the_last_event_seen(service: InProcessService) -> None:
    job = await service.submit(recording=a_recording("web_search"))
    story = await service.story(job["id"])
    for seen in (0, 3, len(story) - 1):
        assert await service.story(job["id"], headers={"Last-Event-ID": str(seen)}) == story[seen:]


async def test_a_stream_resumed_after_the_end_ends_at_once(service: InProcessService) -> None:
    job = await service.submit(recording=SHORT)
    story = await service.story(job["id"])
    for seen in (len(story), 10**14):
        assert await service.story(job["id"], headers={"Last-Event-ID": str(seen)}) == []


@pytest.mark.parametrize("seen", ["x", "-1", "1.5", "٣", "9" * 16, "1 "])
async def test_a_bad_last_event_id_is_refused(service: InProcessService, seen: str) -> None:
    job = await service.submit(recording=SHORT)
    if seen == "1 ":
        seen = "1 2"
    problem = a_problem(
        await service.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": seen.encode()}), 400
    )
    assert "number of an event" in problem["detail"]


async def test_a_reader_that_is_too_slow_catches_up_from_the_store(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        service.context.service.hub._limit = 2
        watched = await service.submit(recording=a_recording("web_search", seed=1))
        async with service.stream(f"/v1/jobs/{watched['id']}/events") as slow:
            begin = await slow.next()
            story = await service.story(watched["id"])  # which ends with the job
            assert begin + await slow.rest() == story


async def test_a_burst_that_overflows_a_waiting_reader_leaves_no_gap(tmp_path: Path) -> None:
    """The reader is asleep in the hub when more events than it can hold come in one commit."""
    async with in_process_service(tmp_path, emulate=0) as service:
        service.context.service.hub._limit = 2
        job = await service.submit(recording=SHORT)
        async with service.stream(f"/v1/jobs/{job['id']}/events") as stream:
            begin = await stream.next()
            last = begin[-1][0]
            assert last is not None
            burst = [EventRecord(job["id"], last + k, "stage.started", 1.0, {"k": k}) for k in range(1, 6)]
            end = EventRecord(job["id"], last + 6, "job.cancelled", 2.0)
            await service.context.journal.append(Writes(events=[*burst, end]))
            assert [number for number, _, _ in await stream.rest()] == list(range(last + 1, last + 7))


async def test_everything_is_heard_on_v1_events_and_a_client_that_leaves_is_forgotten(tmp_path: Path) -> None:
    async with in_process_service(tmp_path) as service:
        hub = service.context.service.hub
        async with service.stream("/v1/events") as everything, service.stream("/v1/events") as leaves:
            await everything.connected()
            await leaves.connected()
            assert hub.listeners == 2
            await leaves.disconnect()
            assert hub.listeners == 1
            jobs = [(await service.submit(recording=SHORT))["id"] for _ in range(3)]
            heard: list[str] = []
            while heard.count("job.completed") < 3:
                events = await everything.next()
                assert {data["job"] for _, _, data in events} <= set(jobs)
                heard += [kind for _, kind, _ in events]
            assert heard.count("job.submitted") == 3
        assert hub.listeners == 0


async def test_a_client_that_leaves_in_mid_write_is_forgotten_too(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=0) as service:
        hub = service.context.service.hub
        job = await service.submit(recording=SHORT)
        async with service.stream(f"/v1/jobs/{job['id']}/events") as stream:
            await stream.next()
            await service.post(f"/v1/jobs/{job['id']}/cancel")
        assert hub.listeners == 0


async def test_a_shutdown_ends_streams(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=0) as service:
        job = await service.submit(recording=SHORT)
        async with service.stream("/v1/events") as everything, service.stream(f"/v1/jobs/{job['id']}/events") as one:
            await everything.connected()
            await one.next()
            service.context.service.hub.close()
            assert await everything.rest() == []
            assert await one.rest() == []


# --------------------------------------------------------------------------------------------------- admission


async def test_more_jobs_than_are_accepted_come_back_later(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=0, max_active_jobs=2) as service:
        jobs = [await service.submit(recording=SHORT) for _ in range(2)]
        response = await service.post("/v1/jobs", json={"application": "code_generation", "recording": SHORT})
        problem = a_problem(response, 429)
        assert problem["detail"] == "2 jobs are active, at most 2 are accepted; retry later"
        assert int(response.headers["retry-after"]) >= 1
        batch = await service.post(
            "/v1/jobs:batch", json={"jobs": [{"application": "code_generation", "recording": SHORT}]}
        )
        assert [item["status"] for item in batch.json()["items"]] == [429]
        await service.post(f"/v1/jobs/{jobs[0]['id']}/cancel")
        await service.story(jobs[0]["id"])
        await service.submit(recording=SHORT)


async def test_a_body_that_is_too_large_is_refused_with_and_without_its_length(service: InProcessService) -> None:
    body = json.dumps({"application": "code_generation", "input": "x" * 10_000_000}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    headers = {"Content-Type": "application/json"}
    for content in (body, chunks()):
        problem = a_problem(await service.post("/v1/jobs", content=content, headers=headers), 413)
        assert problem["detail"] == f"the body is larger than {8 * 2**20} bytes; send less at once"


# ---------------------------------------------------------------------------------------- request ids and logs


async def test_a_request_id_goes_through_header_problem_and_log(
    service: InProcessService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llmsched.access")
    await service.get("/v1/jobs/job_x", headers={"X-Request-Id": "trace-17"})
    record = next(r for r in caplog.records if r.name == "llmsched.access")
    fields = json.loads(JsonLines().format(record))
    assert fields.pop("milliseconds") > 0
    del fields["at"]
    assert fields == {
        "level": "info",
        "logger": "llmsched.access",
        "message": "request",
        "request_id": "trace-17",
        "method": "GET",
        "path": "/v1/jobs/job_x",
        "status": 404,
    }
    assert "INFO request request_id=trace-17 method=GET path=/v1/jobs/job_x status=404 " in TextLines().format(record)


@pytest.mark.parametrize("sent", [None, "", "two words", "x" * 129, "é"])
async def test_a_request_without_a_sane_id_gets_one(service: InProcessService, sent: str | None) -> None:
    headers = {} if sent is None else {"X-Request-Id": sent.encode()}
    given = (await service.get("/health", headers=headers)).headers["x-request-id"]
    assert len(given) == 32
    assert given.isalnum()


async def test_a_path_cannot_forge_a_log_line(service: InProcessService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmsched.access")
    await service.get("/v1/jobs/x%0A2026-01-01 INFO all is well")
    record = next(r for r in caplog.records if r.name == "llmsched.access")
    assert "\n" not in TextLines().format(record)


async def test_a_bug_is_a_problem_whose_story_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with in_process_service(tmp_path, emulate=0) as service:
        monkeypatch.setattr(service.context.service, "applications", None)
        response = await service.get("/v1/applications")
        problem = a_problem(response, 500)
        assert problem["detail"] == ("the service failed on this request; its log has the story under the request id")
        (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
        assert "TypeError" in (story := TextLines().format(record))
        assert f"request_id={response.headers['x-request-id']}" in story
        assert (await service.get("/health")).status_code == 200
        monkeypatch.undo()


# ---------------------------------------------------------------------------------------------------- API keys


async def test_keys_keep_tenants_apart(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=1, api_keys="ann:ann-key-1,bob:bob-key-1") as service:
        ann, bob = ({"Authorization": f"Bearer {name}-key-1"} for name in ("ann", "bob"))
        async with service.stream("/v1/events", bob) as bobs_events:
            await bobs_events.connected()
            hers = await service.submit(recording=SHORT, headers=ann | {"Idempotency-Key": "k"})
            await service.story(hers["id"], headers=ann)
            his = await service.submit(recording=SHORT, headers={"X-API-Key": "bob-key-1", "Idempotency-Key": "k"})
            await service.story(his["id"], headers=bob)
            assert hers["id"] != his["id"], "a key belongs to a tenant"
            heard: list[tuple[str, str]] = []
            while ("job.completed", his["id"]) not in heard:
                heard += [(kind, data["job"]) for _, kind, data in await bobs_events.next()]
            assert {job for _, job in heard} == {his["id"]}
        for path in (f"/v1/jobs/{hers['id']}", f"/v1/jobs/{hers['id']}/events"):
            missing = a_problem(await service.get(path, headers=bob), 404)
            assert missing["detail"] == f"there is no job {hers['id']!r}; GET /v1/jobs lists those there are"
        a_problem(await service.post(f"/v1/jobs/{hers['id']}/cancel", headers=bob), 404)
        assert [job["id"] for job in (await service.get("/v1/jobs", headers=bob)).json()["items"]] == [his["id"]]
        for headers, job in ((ann, hers), (bob, his)):
            decisions = (await service.get("/v1/decisions", headers=headers)).json()["items"]
            assert {d["job"] for decision in decisions for d in decision["dispatched"]} == {job["id"]}


async def test_without_a_key_only_operations_are_open(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=1, api_keys="ann:ann-key-1") as service:
        for path in ("/health", "/ready", "/version", "/metrics", "/openapi.json"):
            assert (await service.get(path)).status_code == 200, path
        sent: list[dict[str, Any]] = [
            {},
            {"Authorization": "Bearer ann-key-2"},
            {"Authorization": "Bearer "},
            {"Authorization": "Basic ann-key-1"},
            {"X-API-Key": "ünknown".encode("latin-1")},
        ]
        for headers in sent:
            for path in (
                "jobs",
                "jobs/x",
                "jobs/x/events",
                "events",
                "applications",
                "engines",
                "policies",
                "decisions",
            ):
                response = await service.get(f"/v1/{path}", headers=headers)
                problem = a_problem(response, 401)
                assert response.headers["www-authenticate"] == "Bearer"
                assert problem["detail"] == "an API key is needed; send it as 'Authorization: Bearer KEY'"
        a_problem(await service.post("/v1/jobs", json={"application": "code_generation", "recording": SHORT}), 401)
        a_problem(await service.put("/v1/policies/active", json={"name": "sjf"}), 401)
        for path in ("/v1/jobs", "/v1/jobs:batch", "/v1/engines"):
            a_problem(await service.post(path, content=b"{"), 401)
        assert (await service.get("/version")).json()["policy"] == DEFAULT_POLICY


# -------------------------------------------------------------------------------------------------- operations


async def test_health_version_and_readiness(service: InProcessService) -> None:
    assert (await service.get("/health")).json() == {"status": "ok"}
    assert (await service.get("/ready")).json() == {"status": "ready"}
    version = (await service.get("/version")).json()
    alone = {"leads": True, "leader": None}
    assert version == {"version": __version__, "policy": DEFAULT_POLICY, "started_at": version["started_at"]} | alone


async def test_not_ready_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with in_process_service(tmp_path, emulate=1) as service:

        async def reason() -> str:
            text: str = a_problem(await service.get("/ready"), 503)["detail"]
            return text

        core, context = service.context.service, service.context
        id = next(iter(core.engines)).id
        await service.stop_engines()
        await until(lambda: not core.engines[id].is_healthy, what="the news that the engine is gone")
        assert await reason() == "none of the 1 engines is healthy; jobs are accepted and wait"
        await service.delete(f"/v1/engines/{id}")
        assert await reason() == "no engine is configured; add one with POST /v1/engines or --engine URL"
        job = await service.submit(recording=SHORT)
        assert (await service.get(f"/v1/jobs/{job['id']}")).json()["status"] == "queued"

        async def broken(writes: Writes, *, again: bool = False) -> None:
            raise BackendError("the disk is gone")

        with monkeypatch.context() as patch:
            patch.setattr(context.store, "write", broken)
            lost = asyncio.ensure_future(context.journal.append(Writes(events=[EventRecord("x", 1, "x", 0.0)])))
            await until(lambda: not context.journal.healthy, what="the failure of a write")
            assert await reason() == "the database does not take writes: the disk is gone"
            body = {"application": "code_generation", "recording": SHORT}
            refused = await service.post("/v1/jobs", json=body)
            assert a_problem(refused, 503)["detail"].startswith("the database does not answer")
            assert int(refused.headers["retry-after"]) >= 1
        await asyncio.wait((lost,))
        lost.exception()

        async def mute() -> None:
            raise BackendError("connection refused")

        with monkeypatch.context() as patch:
            patch.setattr(context.store, "ping", mute)
            assert await reason() == "the database does not answer: connection refused"

        core.is_stopping = True
        assert await reason() == "the service is shutting down"
        refused = await service.post("/v1/jobs", json=body)
        assert a_problem(refused, 503)["detail"] == "the service is shutting down; retry in a few seconds"
        core.is_stopping, core.is_ready = False, False
        assert await reason() == "the service is starting"


async def test_methods_that_are_not_there(service: InProcessService) -> None:
    for method, path, allowed in (
        ("HEAD", "/v1/jobs", {"GET", "POST"}),
        ("OPTIONS", "/v1/jobs", {"GET", "POST"}),
        ("DELETE", "/health", {"GET"}),
        ("PATCH", "/v1/engines", {"GET", "POST"}),
    ):
        response = await service.http.request(method, path)
        assert response.status_code == 405
        assert set(response.headers["allow"].split(", ")) <= allowed
    for path in ("/v1", "/v1/nothing", "/v2/jobs", "/v1/jobs/a/b", "/" + "x" * 10_000, "/%00", "/..%2f..%2fetc"):
        assert "GET /openapi.json" in a_problem(await service.get(path), 404)["detail"]


# ----------------------------------------------------------------------------------------------------- engines


async def test_engines_come_and_go(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=1, max_batch=4) as service:
        (engine,) = (await service.get("/v1/engines")).json()["items"]
        url = service.engines[0].url
        assert engine == {
            "id": "engine-1",
            "url": url,
            "model": "emulated",
            "pool": "llm",
            "slots": 4,
            "running": 0,
            "healthy": True,
            "draining": False,
            "max_model_len": 32_768,
            "last_error": None,
        }
        problem = a_problem(await service.post("/v1/engines", json={"url": url + "/"}), 409)
        assert problem == {"detail": f"engine 'engine-1' already serves {url}", "field": "url"}

        drained = await service.post("/v1/engines/engine-1/drain")
        assert (drained.json()["draining"], drained.json()["healthy"]) == (True, True)
        waits = await service.submit(recording=SHORT)
        assert (await service.get(f"/v1/jobs/{waits['id']}")).json()["status"] == "queued"
        assert (await service.post("/v1/engines/engine-1/resume")).json()["draining"] is False
        assert (await service.finished(waits["id"]))["status"] == "completed"

        added = await service.post("/v1/engines", json={"url": "http://127.0.0.1:9", "slots": 7, "model": "m"})
        assert added.status_code == 201
        dead = added.json()
        assert (dead["slots"], dead["healthy"], dead["model"]) == (7, False, "m")
        assert (await service.delete(f"/v1/engines/{dead['id']}")).status_code == 204
        a_problem(await service.delete(f"/v1/engines/{dead['id']}"), 404)
        assert [e["id"] for e in (await service.get("/v1/engines")).json()["items"]] == ["engine-1"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": "gpu-1:8000"}, "url"),
        ({"url": "ftp://gpu-1"}, "url"),
        ({"url": "http://["}, "url"),
        ({"url": "http://gpu:99999"}, "url"),
        ({"url": "http://gpu\x00"}, "url"),
        ({"url": "http://gpu", "slots": 0}, "slots"),
        ({"url": "http://gpu", "slots": "4"}, "slots"),
        ({"url": "http://gpu", "pool": "a b"}, "pool"),
        ({"url": "http://gpu", "api_key": "a\nb"}, "api_key"),
        ({"url": "http://gpu", "slot": 4}, "slot"),
    ],
)
async def test_a_bad_engine_is_refused(service: InProcessService, body: dict[str, Any], field: str) -> None:
    assert a_problem(await service.post("/v1/engines", json=body), 422)["field"] == field
    assert len((await service.get("/v1/engines")).json()["items"]) == 2


async def test_unknown_engines(service: InProcessService) -> None:
    for response in (
        await service.delete("/v1/engines/engine-9"),
        await service.post("/v1/engines/engine-9/drain"),
        await service.post("/v1/engines/%00/resume"),
    ):
        assert a_problem(response, 404)["detail"].endswith("GET /v1/engines lists those there are")


# ------------------------------------------------------------------------------------------------ applications


async def test_a_job_keeps_the_version_of_its_application(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=1) as service:
        first = await service.put("/v1/applications/speak", json=ECHO)
        assert first.status_code == 200
        assert (first.json()["version"], first.json()["executable"]) == (1, True)
        assert (await service.put("/v1/applications/speak", json=ECHO)).json() == first.json(), "nothing has changed"
        assert (await service.get("/v1/applications/speak")).json() == first.json()

        await service.post("/v1/engines/engine-1/drain")
        old = await service.submit(application="speak", input={"word": "yes"})
        two = {"stages": [*ECHO["stages"], {"name": "again", "kind": "llm", "after": ["say"], "prompt": "Again"}]}
        assert (await service.put("/v1/applications/speak", json=two)).json()["version"] == 2
        new = await service.submit(application="speak", input={"word": "no"})
        await service.post("/v1/engines/engine-1/resume")
        views = [await service.finished(job["id"]) for job in (old, new)]
        assert [(v["version"], v["status"], [s["name"] for s in v["stages"]]) for v in views] == [
            (1, "completed", ["say"]),
            (2, "completed", ["say", "again"]),
        ]
        assert isinstance(views[0]["result"], str)

        assert (await service.delete("/v1/applications/speak")).status_code == 204
        a_problem(await service.get("/v1/applications/speak"), 404)
        a_problem(await service.delete("/v1/applications/speak"), 404)
        refused = a_problem(await service.post("/v1/jobs", json={"application": "speak", "input": {}}), 422)
        assert refused["field"] == "application"
        assert (await service.get(f"/v1/jobs/{old['id']}")).json()["stages"][0]["name"] == "say"
        assert (await service.put("/v1/applications/speak", json=ECHO)).json()["version"] == 3


async def test_the_installed_applications_are_there(service: InProcessService) -> None:
    page = (await service.get("/v1/applications")).json()
    assert [a["name"] for a in page["items"]] == [
        "code_generation",
        "document_merging",
        "llm_compiler",
        "sequence_sorting",
        "task_automation",
        "web_search",
    ]
    assert page["next_cursor"] is None


def an_llm(name: str, *after: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "llm", "after": list(after), "prompt": "x"} | more


@pytest.mark.parametrize(
    ("definition", "says"),
    [
        ({"stages": [an_llm("a", "b"), an_llm("b", "a")]}, "has a cycle: "),
        ({"stages": [an_llm("a", "a")]}, "a stage cannot wait for itself"),
        ({"stages": [an_llm("a", "z")]}, "unknown parent 'z'"),
        ({"stages": []}, "give it at least one"),
        ({}, "give it at least one"),
        ({"name": "other", "stages": [an_llm("a")]}, "they must agree"),
        ({"stages": [{"loop": "l", "stages": [an_llm("a")]}]}, "is unbounded; give it max_iterations"),
        ({"stages": [an_llm("a", promt="x")]}, "did you mean 'prompt'"),
        ({"stages": [an_llm("a", prompt="{{ input")]}, "line 1"),
        ({"stages": [an_llm("a", prompt="{{ inptu }}")]}, "did you mean 'input'"),
        ({"stages": [{"name": "a", "kind": "regular", "handler": "nope"}]}, "unknown handler 'nope'"),
        ({"stages": [an_llm("a\x00")]}, "cannot be stored"),
        ({"stages": [an_llm("a")], "description": "\x00"}, "cannot be stored"),
        ({"stages": [an_llm("a")], "input_schema": {"type": "strnig"}}, "input_schema"),
    ],
)
async def test_a_bad_application_is_refused(service: InProcessService, definition: dict[str, Any], says: str) -> None:
    problem = a_problem(await service.put("/v1/applications/bad", json=definition), 422)
    assert says in problem["detail"]
    a_problem(await service.get("/v1/applications/bad"), 404)


@pytest.mark.parametrize("name", ["9lives", "a%20b", "%00", "x" * 65, "%F0%9F%98%80"])
async def test_a_bad_application_name_is_refused(service: InProcessService, name: str) -> None:
    assert (await service.put(f"/v1/applications/{name}", json=ECHO)).status_code == 422
    assert (await service.get(f"/v1/applications/{name}")).status_code == 404


# --------------------------------------------------------------------------------------- policies and decisions


async def test_the_policy_can_be_changed(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=0) as service:
        listed = (await service.get("/v1/policies")).json()["items"]
        assert {p["name"]: p["active"] for p in listed} == {p["name"]: p["name"] == DEFAULT_POLICY for p in listed}
        assert not {"oracle-pool", "oracle-srtf"} & {p["name"] for p in listed}, "a service does not know the future"
        changed = await service.put("/v1/policies/active", json={"name": "sjf"})
        assert (changed.status_code, changed.json()["active"]) == (200, True)
        assert (await service.get("/version")).json()["policy"] == "sjf"
        problem = a_problem(await service.put("/v1/policies/active", json={"name": "sfj"}), 422)
        assert problem["field"] == "name"
        assert "did you mean 'sjf'" in problem["detail"]
        problem = a_problem(await service.put("/v1/policies/active", json={"name": "oracle-pool"}), 422)
        assert "needs to know the future" in problem["detail"]
        assert (await service.get("/version")).json()["policy"] == "sjf"


async def test_decisions_say_what_went_where_newest_first(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=1) as service:
        jobs = [await service.submit(recording=SHORT) for _ in range(3)]
        for job in jobs:
            await service.story(job["id"])
        items = (await service.get("/v1/decisions")).json()["items"]
        assert [item["at"] for item in items] == sorted((item["at"] for item in items), reverse=True)
        assert {item["policy"] for item in items} == {DEFAULT_POLICY}
        dispatched = [dict(d) for item in reversed(items) for d in item["dispatched"]]
        reasons = [d.pop("why") for d in dispatched]
        assert all(reason["estimate"] > 0 for reason in reasons), reasons  # of what the template declares
        assert dispatched == [
            {"job": job["id"], "stage": "test_gen", "task": 0, "executor": "engine-1"} for job in jobs
        ]
        assert (await service.get("/v1/decisions?last=1")).json()["items"] == items[:1]
        for last in ("0", "1001", "x"):
            assert a_problem(await service.get(f"/v1/decisions?last={last}"), 422)["field"] == "last"


async def test_decisions_go_by_the_latency_curve_of_the_settings(tmp_path: Path) -> None:
    """Of engines that are given by their URL too: what `calibrate` measured of them is what a token costs."""
    estimates = []
    for factor in (1, 2):
        file = tmp_path / f"{factor}.json"
        file.write_text(json.dumps(LatencyCurve("measured", 8000 / factor, ((1, 0.01 * factor),)).to_json()))
        store = f"sqlite:///{tmp_path}/{factor}.db"
        async with in_process_service(tmp_path, store=store, latency=str(file)) as service:
            await service.story((await service.submit(recording=SHORT))["id"])
            (first,) = (await service.get("/v1/decisions")).json()["items"][-1]["dispatched"]
        estimates.append(first["why"]["estimate"])  # of the LLM pool alone

    assert estimates[1] == pytest.approx(2 * estimates[0])


# ----------------------------------------------------------------------------------------------------- metrics


async def test_a_live_scrape_tells_the_truth(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=2, max_batch=3) as service:
        recordings = [a_recording(name, seed) for seed in range(3) for name in ("code_generation", "web_search")]
        for recording in recordings:
            job = await service.submit(recording=recording, class_="batch")
            assert (await service.finished(job["id"]))["status"] == "completed"
        for id in ("engine-1", "engine-2"):
            await service.post(f"/v1/engines/{id}/drain")
        cancelled = await service.submit(recording=SHORT)
        waiting = await service.submit(recording=SHORT)
        await service.post(f"/v1/jobs/{cancelled['id']}/cancel")
        await service.story(cancelled["id"])

        response = await service.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        series = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
        }

        def by(kind: str, application: str) -> int:
            stages = [s for r in recordings if r["app"] == application for s in r["stages"] if s["kind"] == kind]
            return sum(len(stage["tasks"]) for stage in stages)

        for name in ("code_generation", "web_search"):
            assert series["llmsched_jobs_submitted_total", "batch", name] == 3
            assert series["llmsched_jobs_finished_total", *sorted((name, "completed"))] == 3
            assert series["llmsched_job_completion_seconds_count", name] == 3
            for kind, pool in (("llm", "llm"), ("regular", "cpu")):
                for metric in ("task_queue", "task_run"):
                    assert series[f"llmsched_{metric}_seconds_count", *sorted((name, pool))] == by(kind, name)
        assert series["llmsched_jobs_submitted_total", "code_generation", "standard"] == 2
        assert series["llmsched_jobs_finished_total", "cancelled", "code_generation"] == 1
        assert series["llmsched_jobs_active", "code_generation"] == 1
        assert series["llmsched_jobs_active", "web_search"] == 0
        assert series["llmsched_ready_tasks", "llm"] == 1
        assert series["llmsched_ready_tasks", "cpu"] == 0
        for id in ("engine-1", "engine-2"):
            assert series["llmsched_executor_slots", id] == 0, "a draining engine offers none"
            assert series["llmsched_running_tasks", id] == 0
            assert series["llmsched_engine_up", id] == 1
        assert series["llmsched_executor_slots", "workers-cpu"] == 2
        assert series["llmsched_decisions_total",] == series["llmsched_decision_seconds_count",] > 0

        await service.post("/v1/engines/engine-1/resume")
        await service.story(waiting["id"])
        text = (await service.get("/metrics")).text
        assert 'llmsched_executor_slots{executor="engine-1"} 3.0' in text
        if promtool := shutil.which("promtool"):
            command = [promtool, "check", "metrics"]
            checked = subprocess.run(command, input=text, capture_output=True, text=True)  # noqa: ASYNC221
            assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


# --------------------------------------------------------------------------------------------------- bad input


JOB = {"application": "code_generation", "recording": SHORT}


def with_stages(*stages: dict[str, Any]) -> dict[str, Any]:
    return {"application": "code_generation", "recording": SHORT | {"stages": list(stages)}}


def a_call(name: str, *deps: str, tokens: tuple[int, int] = (8, 1)) -> dict[str, Any]:
    tasks = [{"prompt_tokens": tokens[0], "output_tokens": tokens[1]}]
    return {"name": name, "kind": "llm", "deps": list(deps), "tasks": tasks}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{'application': 1}",
        '{"application": "code_generation", "input": NaN}',
        '{"application": "code_generation", "input": -Infinity}',
        '{"application": "code_generation", "input": 1e999}',
        '{"application": "code_generation", "input": ' + "9" * 40 + "}",
        '{"application": "code_generation", "input": ' + "9" * 10_000 + "}",
        '{"application": "code_generation", "input": ' + "[" * 400 + "]" * 400 + "}",
        '{"application": "code_generation", "input": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"application": "code_generation", "input": "\\ud800"}',
        '{"application": "code_generation", "input": {"\\udfff": 1}}',
    ],
    ids=lambda text: text[:60] or "empty",
)
async def test_what_is_no_json_is_refused(service: InProcessService, text: str) -> None:
    before = await stored(service)
    for path in ("/v1/jobs", "/v1/jobs:batch", "/v1/engines"):
        response = await service.post(path, content=text, headers={"Content-Type": "application/json"})
        assert response.status_code == (422 if not text else 400), response.text
        assert a_problem(response, response.status_code)["detail"]
    response = await service.put("/v1/applications/x", content=text, headers={"Content-Type": "application/json"})
    assert response.status_code == (422 if not text else 400), response.text
    assert await stored(service) == before


async def test_bytes_that_are_no_text_are_refused(service: InProcessService) -> None:
    for body in (b'"\xff"', b'{"application": "\xed\xa0\x80"}', b"\x00", b"\x80\x04K\x01."):
        a_problem(await service.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"}), 400)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
async def test_what_does_not_say_that_it_is_json_is_refused(service: InProcessService, kind: str) -> None:
    response = await service.post("/v1/jobs", content=json.dumps(JOB), headers={"Content-Type": kind} if kind else {})
    assert "Content-Type: application/json" in a_problem(response, 415)["detail"]


async def test_json_may_name_its_charset(service: InProcessService) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert (await service.post("/v1/jobs", content=json.dumps(JOB), headers=headers)).status_code == 202


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ([], "body", "dictionary"),
        ("text", "body", "dictionary"),
        ({"input": 1}, "application", "application is missing"),
        ({"application": 5, "input": 1}, "application", "it is 5"),
        ({"application": "", "input": 1}, "application", "at least 1 character"),
        ({"application": "x" * 65, "input": 1}, "application", "at most 64"),
        ({"application": "code_generatoin", "input": 1}, "application", "did you mean 'code_generation'?"),
        ({"application": "\x00", "input": 1}, "application", "unknown application '\\x00'"),
        ({"application": "code_generation", "input": 1}, "input", "is not what 'code_generation' takes"),
        ({"application": "code_generation"}, "input", "needs an input or a recording"),
        ({"application": "code_generation", "recording": None}, "input", "needs an input or a recording"),
        (JOB | {"input": None}, "recording", "not both"),
        (JOB | {"recording": [1]}, "recording", "it is [1]"),
        (JOB | {"recording": {}}, "recording.app", "app is missing"),
        (JOB | {"application": "web_search"}, "recording.app", "submit it under its own application"),
        (JOB | {"class": "urgent"}, "class", "'interactive', 'standard' or 'batch'"),
        (JOB | {"class": 1}, "class", "it is 1"),
        (JOB | {"metadata": 1}, "metadata", "it is 1"),
        (JOB | {"priority": 1}, "priority", "unknown field 'priority'"),
        (JOB | {"deadline_s": -1}, "deadline_s", "greater than 0; it is -1"),
        (JOB | {"deadline_s": "soon"}, "deadline_s", "it is 'soon'"),
        (JOB | {"deadline_s": 1e10}, "deadline_s", "less than or equal to 1000000000; it is 10000000000.0"),
        (JOB | {"callback_url": ""}, "callback_url", "at least 1 character"),
        (JOB | {"callback_url": "ftp://me"}, "callback_url", "must look like https://host/path"),
        (JOB | {"callback_url": "http://me"}, "callback_url", "set LLMSCHED_CALLBACK_SECRETS"),
        (with_stages(), "recording.stages", "at least one stage"),
        (with_stages(a_call("a", "b"), a_call("b", "a")), "recording.stages[0].deps", "in a circle: a -> b -> a"),
        (with_stages(a_call("a", "z")), "recording.stages[0].deps", "'z'"),
        (with_stages(a_call("a"), a_call("a")), "recording.stages[1].name", "its own name"),
        (with_stages({"name": "a", "kind": "llm", "tasks": []}), "recording.stages[0].deps", "missing"),
        (with_stages(a_call("a", tokens=(1, 0))), "recording.stages[0].tasks[0].output_tokens", "from 1"),
        (with_stages(a_call("a", tokens=(4_000, 200))), "recording", "of 4200 tokens, the engines hold 4096"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bad_job_is_refused_with_field_and_way_out(
    service: InProcessService, body: Any, field: str, says: str
) -> None:
    before = await stored(service)
    problem = a_problem(await service.post("/v1/jobs", json=body), 422)
    assert (problem["field"], says in problem["detail"]) == (field, True), problem
    assert await stored(service) == before


async def test_an_application_without_prompts_takes_recordings_only(service: InProcessService) -> None:
    stages = [{"name": "think", "kind": "llm", "expected": {"output_tokens": 9}}]
    assert (await service.put("/v1/applications/recorded", json={"stages": stages})).status_code == 200

    problem = a_problem(await service.post("/v1/jobs", json={"application": "recorded", "input": 1}), 422)

    assert problem["field"] == "input"
    assert "runs recordings only (stage 'think' has no prompt or handler); submit a 'recording'" in problem["detail"]


async def test_an_input_must_be_what_the_application_says(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
    async with in_process_service(tmp_path, emulate=1) as service:
        assert (await service.put("/v1/applications/speak", json=ECHO | {"input_schema": schema})).status_code == 200
        for given, field in ((1, "input"), ({}, "input"), ({"word": 1}, "input.word")):
            problem = a_problem(await service.post("/v1/jobs", json={"application": "speak", "input": given}), 422)
            assert problem["field"] == field
        job = await service.submit(application="speak", input={"word": "yes"})
        assert (await service.finished(job["id"]))["status"] == "completed"


async def test_a_recording_may_carry_more_than_is_known(service: InProcessService) -> None:
    stage = a_call("test_gen") | {"note": {"x": [None]}}
    job = await service.submit(recording=SHORT | {"stages": [stage], "host": "gpu-1", "nested": {"a": [1, 2]}})
    assert (await service.finished(job["id"]))["status"] == "completed"


@pytest.mark.parametrize(
    "query", ["cursor=", "cursor=x", "cursor=bg", "cursor=%00", "cursor=" + "A" * 5_000, "cursor=n5", "cursor=%C3%A9"]
)
async def test_a_bad_cursor_is_refused(service: InProcessService, query: str) -> None:
    problem = a_problem(await service.get(f"/v1/jobs?{query}"), 400)
    assert problem["detail"].endswith("leave it out to start anew")


@pytest.mark.parametrize(
    ("query", "field"), [("limit=0", "limit"), ("limit=501", "limit"), ("status=lost", "status"), ("state=x", "state")]
)
async def test_a_bad_listing_is_refused(service: InProcessService, query: str, field: str) -> None:
    assert a_problem(await service.get(f"/v1/jobs?{query}"), 422)["field"] == field


ODD_IDS = [
    "job_",
    "job_01m7y7nf5pk8qby37hnf",
    "%00",
    "job_%00",
    "%F0%9F%98%80",
    "%FF",
    "job_" + "x" * 10_000,
    "%27--",
    ".",
]


async def test_odd_characters_are_kept_or_refused_by_both_databases(tmp_path: Path, store_url: str) -> None:
    async with in_process_service(tmp_path, emulate=1, store=store_url) as service:
        assert (await service.put("/v1/applications/speak", json=ECHO)).status_code == 200
        odd = {"word": "nul \x00, emoji 😀, \u2028, \x7f", "\x00key": [2**63, -(2**63), 2**64 - 1, 0.1, None]}
        headers = {"Idempotency-Key": "schlüssel".encode("latin-1")}
        job = await service.submit(application="speak", input=odd, metadata=odd, headers=headers)  # type: ignore[arg-type]
        view = await service.finished(job["id"])
        assert (view["status"], view["metadata"]) == ("completed", odd)
        again = await service.submit(application="speak", input=odd, metadata=odd, headers=headers)  # type: ignore[arg-type]
        assert again["id"] == job["id"]
        for id in ODD_IDS:
            for path in (f"/v1/jobs/{id}", f"/v1/jobs/{id}/events"):
                if id != ".":
                    assert "GET /v1/jobs lists" in a_problem(await service.get(path), 404)["detail"]
        assert (await service.get("/v1/jobs?application=%00")).json() == {"items": [], "next_cursor": None}
        text = '{"application": "speak", "input": {"word": "\\ud800"}}'
        a_problem(await service.post("/v1/jobs", content=text, headers={"Content-Type": "application/json"}), 400)
        assert await stored(service) == 1


@pytest.mark.parametrize("expression", ['"\\ud800"', "10 ** 30", "1e308 * 10", '"\\x00"'])
async def test_a_result_that_json_has_no_words_for_is_no_crash(tmp_path: Path, expression: str) -> None:
    async with in_process_service(tmp_path, emulate=1) as service:
        put = await service.put("/v1/applications/odd", json=ECHO | {"result": expression})
        assert put.status_code == 200, put.text
        job = await service.submit(application="odd", input={"word": "x"})
        kind = (await service.story(job["id"]))[-1][1]
        assert kind in ("job.completed", "job.failed")
        for path in (f"/v1/jobs/{job['id']}", "/v1/jobs"):
            assert (await service.get(path)).status_code == 200


# ------------------------------------------------------------------------------------------ over a real socket


async def test_over_a_socket_with_json_logs(tmp_path: Path) -> None:
    """What only a real server shows: chunked bodies, HEAD, an event stream cut by SIGTERM, the log."""
    async with running_service(tmp_path, ready=False, log_format="json", max_body_mb=0.01) as service:

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b" " * 1_000

        headers = {"Content-Type": "application/json", "X-Request-Id": "big-1"}
        a_problem(await service.post("/v1/jobs", content=chunks(), headers=headers), 413)
        a_problem(await service.post("/v1/jobs", content=b" " * 20_000, headers=headers), 413)
        head = await service.http.head("/health")
        assert (head.status_code, head.content) == (405, b"")
        job = await service.submit(recording=SHORT)
        async with service.http.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
            received = stream.aiter_text()
            assert events_of(await anext(received))[0][1] == "job.submitted"
            ending = asyncio.create_task(service.terminate())
            assert [chunk async for chunk in received] == []
        assert await ending == 0
        lines = [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]
        assert [line["status"] for line in lines if line.get("request_id") == "big-1"] == [413, 413]
        assert not [line for line in lines if line["level"] in ("warning", "error")]

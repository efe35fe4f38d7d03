"""Keys, quotas, usage and deadlines of a real service: in this loop, on both databases, and as processes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmsched.gateway.auth import new_key
from llmsched.model.job import JobStatus
from llmsched.model.records import EventRecord, Usage, Writes
from llmsched.store.store import Store
from tests.integration.databases import postgres, postgres_url, store_url
from tests.integration.service import InProcessService, a_recording, in_process_service, running_service, until

__all__ = ["postgres", "postgres_url", "store_url"]

pytestmark = pytest.mark.asyncio

KEYS = "alice:key-of-alice,bob:key-of-bob"
#: One llm stage of 40 s on an engine at speed 1; and one of 10 tokens and a regular stage.
LONG = {
    "app": "code_generation",
    "job_id": "long",
    "stages": [{"name": "test_gen", "kind": "llm", "deps": [], "tasks": [{"prompt_tokens": 8, "output_tokens": 4000}]}],
}
TWO = {
    "app": "code_generation",
    "job_id": "two",
    "stages": [
        {"name": "code_gen_0", "kind": "llm", "deps": [], "tasks": [{"prompt_tokens": 30, "output_tokens": 10}]},
        {
            "name": "code_exec_0",
            "kind": "regular",
            "deps": ["code_gen_0"],
            "tasks": [{"tool": "python_exec", "duration_s": 0.02}],
        },
    ],
}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


ALICE, BOB = bearer("key-of-alice"), bearer("key-of-bob")


def body(recording: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"application": recording["app"], "recording": recording, **more}


def refused(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    detail: str = response.json()["detail"]
    return detail


async def test_a_tenant_over_its_quota_is_told_when_to_come_back(tmp_path: Path) -> None:
    quotas = {"alice": {"active_jobs": 1}, "*": {"jobs_per_s": 0.01, "burst": 2}}
    async with in_process_service(tmp_path, speed=1.0, api_keys=KEYS, tenant_quotas=quotas) as service:
        first = await service.submit(recording=LONG, headers=ALICE)
        over = await service.post("/v1/jobs", json=body(LONG), headers=ALICE)
        assert refused(over, 429) == "tenant 'alice' has 1 active jobs, its quota is 1; retry when one is over"
        assert over.headers["retry-after"] == "2"

        batch = {"jobs": [body(LONG), body({**LONG, "app": "nonsense"}), body(LONG), body(LONG)]}
        items = (await service.post("/v1/jobs:batch", json=batch, headers=BOB)).json()["items"]
        # What is refused for another reason costs nothing of the quota.
        assert [item["status"] for item in items] == [202, 422, 202, 429]
        late = await service.post("/v1/jobs", json=body(LONG), headers=BOB)
        assert "has used up its quota of 0.01 jobs/s (at most 2 at once)" in refused(late, 429)
        assert 90 <= int(late.headers["retry-after"]) <= 100
        chat = {"model": "emulated", "messages": [{"role": "user", "content": "Hello"}]}
        call = await service.post("/v1/chat/completions", json=chat, headers=BOB)
        assert (call.status_code, call.json()["error"]["type"]) == (429, "rate_limit_error")

        await service.post(f"/v1/jobs/{first['id']}/cancel", headers=ALICE)
        await service.finished(first["id"], headers=ALICE)
        again = await service.submit(recording=LONG, headers=ALICE)
        metrics = (await service.get("/metrics")).text
        assert 'llmsched_over_quota_total{quota="active_jobs",tenant="alice"} 1.0' in metrics
        assert 'llmsched_over_quota_total{quota="jobs_per_s",tenant="bob"} 3.0' in metrics
        assert 'llmsched_tenant_active_jobs{tenant="alice"} 1.0' in metrics
        view = (await service.get("/v1/tenants/alice", headers=ALICE)).json()
        quota = {"active_jobs": 1, "jobs_per_s": None, "burst": 10}
        assert view == {"name": "alice", "weight": 1.0, "quota": quota, "active_jobs": 1}
        assert again["status"] == "queued"


async def test_usage_is_counted_once_and_survives_a_restart(tmp_path: Path, store_url: str) -> None:
    settings: dict[str, Any] = {"api_keys": KEYS, "admins": ["bob"], "store": store_url, "speed": 100.0}
    async with in_process_service(tmp_path, **settings) as service:
        for _ in range(3):
            job = await service.submit(recording=TWO, headers=ALICE)
            assert (await service.finished(job["id"], headers=ALICE))["status"] == "completed"
        metrics = (await service.get("/metrics")).text
        assert 'llmsched_tenant_tokens_total{kind="output",tenant="alice"} 30.0' in metrics
        assert 'llmsched_tenant_jobs_total{event="completed",tenant="alice"} 3.0' in metrics
    async with in_process_service(tmp_path, **settings) as service:
        long = await service.submit(recording=LONG, headers=ALICE)
        await service.post(f"/v1/jobs/{long['id']}/cancel", headers=ALICE)
        await service.finished(long["id"], headers=ALICE)
        used = (await service.get("/v1/tenants/alice/usage", headers=ALICE)).json()
        counts = {name: used[name] for name in ("jobs", "completed", "failed", "cancelled")}
        assert counts == {"jobs": 4, "completed": 3, "failed": 0, "cancelled": 1}
        assert (used["prompt_tokens"], used["output_tokens"]) == (90, 30)
        assert used["llm_seconds"] > 0 < used["regular_seconds"]
        assert sum(day["jobs"] for day in used["days"]) == 4

        # Who may not administer sees oneself only; who may sees everybody.
        assert "there is no tenant 'bob'" in refused(await service.get("/v1/tenants/bob/usage", headers=ALICE), 404)
        listed = (await service.get("/v1/tenants", headers=ALICE)).json()["items"]
        assert [tenant["name"] for tenant in listed] == ["alice"]
        listed = (await service.get("/v1/tenants", headers=BOB)).json()["items"]
        assert [tenant["name"] for tenant in listed] == ["alice", "bob"]
        assert (await service.get("/v1/tenants/alice/usage", headers=BOB)).json() == used
        none = await service.get("/v1/tenants/alice/usage?since=2020-01-01&until=2020-01-31", headers=BOB)
        assert (none.json()["jobs"], none.json()["days"]) == (0, [])
        span = await service.get("/v1/tenants/alice/usage?since=2020-01-01&until=2019-01-31", headers=BOB)
        assert "is no span of 1 to 366 days" in refused(span, 422)


async def test_writing_again_what_may_be_there_counts_no_usage_twice(store_url: str) -> None:
    async with await Store.open(store_url) as store:
        job = a_job_record()
        writes = Writes(
            jobs=[(job, None)],
            events=[EventRecord(job.id, 1, "job.submitted", 0.0)],
            usage=[Usage("a", 5, jobs=1, llm_seconds=0.5), Usage("a", 5, completed=1)],
        )
        await store.write(writes)
        await store.write(writes, again=True)
        assert await store.usage("a", 0, 10) == [Usage("a", 5, 1, 1, llm_seconds=0.5)]
        await store.write(Writes(events=[EventRecord(job.id, 2, "x", 0.0)], usage=[Usage("a", 5, jobs=2)]), again=True)
        assert await store.usage("a", 0, 10) == [Usage("a", 5, 3, 1, llm_seconds=0.5)]
        assert (await store.users(), await store.usage("b", 0, 10)) == (["a"], [])


def a_job_record() -> Any:
    from llmsched.model.records import JobRecord

    return JobRecord("job_1", 1, "app", 1, 0.0, JobStatus.QUEUED)


async def test_only_admins_change_the_service(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, api_keys=KEYS, admins=["bob"]) as service:
        echo = {"stages": [{"name": "say", "kind": "llm", "prompt": "Say it", "max_tokens": 4}]}
        asked = [
            ("PUT", "/v1/applications/echo", echo),
            ("DELETE", "/v1/applications/echo", None),
            ("POST", "/v1/engines", {"url": "http://127.0.0.1:9"}),
            ("POST", "/v1/engines/engine-1/drain", None),
            ("POST", "/v1/engines/engine-1/resume", None),
            ("DELETE", "/v1/engines/engine-2", None),
            ("PUT", "/v1/policies/active", {"name": "fcfs"}),
        ]
        for method, path, json_body in asked:
            answer = await service.http.request(method, path, json=json_body, headers=ALICE)
            assert "may not change the service" in refused(answer, 403)
        for method, path, json_body in asked:
            answer = await service.http.request(method, path, json=json_body, headers=BOB)
            assert answer.status_code < 300, answer.text
        for path in ("/v1/applications", "/v1/engines", "/v1/policies", "/v1/decisions", "/v1/jobs"):
            assert (await service.get(path, headers=ALICE)).status_code == 200


# -------------------------------------------------------------------------------------------------------- deadlines


async def test_a_deadline_is_kept_and_warned_of(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, speed=1000.0) as service:
        roomy = await service.submit(recording=a_recording(), deadline_s=3600)
        assert roomy["deadline_s"] == 3600
        assert roomy["forecast"]["due"] == pytest.approx(roomy["submitted_at"] + 3600)
        assert roomy["forecast"]["warning"] is None
        tight = await service.submit(recording=a_recording(), deadline_s=1e-6)
        said = tight["forecast"]["warning"]
        assert "but the job is expected to take" in said
        assert said.endswith("it will probably be late")
        assert (await service.submit(recording=a_recording()))["forecast"] is None
        assert (await service.finished(tight["id"]))["deadline_s"] == 1e-6
        await service.finished(roomy["id"])


async def test_a_job_that_would_be_late_is_refused_where_that_is_asked_for(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, deadline_admission="refuse") as service:
        answer = await service.post("/v1/jobs", json=body(a_recording(), deadline_s=1e-6))
        assert "give it more time, leave the deadline out, or retry later" in refused(answer, 422)
        assert answer.json()["field"] == "deadline_s"
        job = await service.submit(recording=a_recording(), deadline_s=3600)
        await service.finished(job["id"])
        assert [each["id"] for each in (await service.get("/v1/jobs")).json()["items"]] == [job["id"]]
        assert not service.context.service.active_by_tenant


async def test_deadlines_are_known_again_after_a_restart(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"speed": 1.0, "deadline_admission": "off"}
    async with in_process_service(tmp_path, **settings) as service:
        job = await service.submit(recording=LONG, deadline_s=50)
        assert job["forecast"] is None
    async with in_process_service(tmp_path, **settings) as service:
        view = service.context.service.scheduler.view
        await until(lambda: view.jobs, what="the restored job")
        assert view.jobs[job["id"]].due == pytest.approx(job["submitted_at"] + 50)
        assert await waits_first(service) == "pressing"


async def waits_first(service: InProcessService) -> str:
    """Which of two jobs behind a full engine is picked first: one that presses, or one that came before it."""
    core = service.context.service.scheduler
    for engine in service.context.service.engines:
        engine.drain(True)
    first = await service.submit(recording=LONG, metadata={"name": "first"})
    second = await service.submit(recording=LONG, deadline_s=5, metadata={"name": "pressing"})
    await until(lambda: {first["id"], second["id"]} <= core.view.jobs.keys(), what="both jobs")
    policy = core.policy
    policy.begin(core.view)
    picked = [pick.task.job.id for pick in policy.picks("llm", core.view)]
    return "pressing" if picked.index(second["id"]) < picked.index(first["id"]) else "first"


# ------------------------------------------------------------------------------------------------------ processes


def llmsched(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmsched", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


async def test_keys_are_given_out_and_taken_back_while_the_service_runs(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/jobs.db"

    async def keys(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(llmsched, tmp_path, "keys", *arguments, "--store", store)

    async with running_service(tmp_path, emulate=1, speed=100.0) as service:
        assert (await service.get("/v1/jobs")).status_code == 200
        added = await keys("add", "carol", "--note", "for the tests")
        key = added.stdout.strip()
        assert (added.returncode, key[:3]) == (0, "lk_")
        assert "from now on every request under /v1 needs a key" in added.stderr
        assert key not in (await keys("list", "--json")).stdout

        async def opens(key: str) -> int:
            return (await service.get("/v1/jobs", headers=bearer(key))).status_code

        async def until_opens(key: str, status: int) -> None:
            for _ in range(200):
                if await opens(key) == status:
                    return
                await asyncio.sleep(0.05)
            raise AssertionError(f"{key} is not answered {status}")

        await until_opens("nonsense", 401)
        assert await opens(key) == 200
        denied = await service.put("/v1/policies/active", json={"name": "fcfs"}, headers=bearer(key))
        assert denied.status_code == 403
        admin = json.loads((await keys("add", "ops", "--admin", "--json")).stdout)
        await until_opens(admin["key"], 200)
        allowed = await service.put("/v1/policies/active", json={"name": "fcfs"}, headers=bearer(admin["key"]))
        assert allowed.status_code == 200
        job = await service.submit(recording=TWO, headers=bearer(key))
        assert (await service.finished(job["id"], headers=bearer(key)))["status"] == "completed"
        assert (await service.get(f"/v1/jobs/{job['id']}", headers=bearer(admin["key"]))).status_code == 404

        assert (await keys("revoke", key)).returncode == 0
        await until_opens(key, 401)
        rows = json.loads((await keys("list", "--json")).stdout)
        assert [(row["tenant"], row["admin"], row["revoked_at"] is None) for row in rows] == [
            ("carol", False, False),
            ("ops", True, True),
        ]
        again = await keys("revoke", rows[0]["id"])
        assert (again.returncode, "there is no key" in again.stderr) == (2, True)
        bad = await keys("add", "no spaces")
        assert (bad.returncode, "it must be 1 to 64 letters" in bad.stderr) == (2, True)
        await service.restart()
        assert (await opens(key), await opens(admin["key"])) == (401, 200)


async def test_stored_keys_on_both_databases(store_url: str) -> None:
    async with await Store.open(store_url) as store:
        _, one = new_key("a")
        _, two = new_key("b", is_admin=True, note="ü")
        await store.add_key(one)
        await store.add_key(two)
        assert await store.keys() == [one, two]
        assert (await store.revoke_key(one.id), await store.revoke_key(one.id)) == (True, False)
        assert [(key.id, key.revoked_at is None) for key in await store.keys()] == [(one.id, False), (two.id, True)]

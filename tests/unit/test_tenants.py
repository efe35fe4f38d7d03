"""Quotas, keys and accounts of tenants, without a service."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from llmsched.gateway.auth import ANYBODY, Caller, Keys, new_key
from llmsched.gateway.metrics import MOST_TENANTS, Metrics
from llmsched.model.events import TaskResult
from llmsched.model.job import JobStatus
from llmsched.model.kinds import StageKind
from llmsched.model.records import JobRecord, JobUpdate, StageRecord, Usage, Writes
from llmsched.runtime.tenants import OverQuota, Owners, Quota, Quotas, usage_of

# --------------------------------------------------------------------------------------------------------- quotas


def test_a_tenant_has_no_more_active_jobs_than_its_quota() -> None:
    quotas = Quotas({"a": Quota(active_jobs=2)})

    quotas.check("a", 1, 0.0)
    quotas.check("b", 1_000, 0.0)
    with pytest.raises(OverQuota, match="tenant 'a' has 2 active jobs, its quota is 2; retry when one is over"):
        quotas.check("a", 2, 0.0)


def test_a_rate_is_an_average_with_bursts() -> None:
    quotas = Quotas({"a": Quota(jobs_per_s=0.5, burst=3)})
    for _ in range(3):
        quotas.check("a", 0, 100.0)
        quotas.take("a", 100.0)

    with pytest.raises(OverQuota) as refusal:
        quotas.check("a", 0, 100.5)
    assert refusal.value.retry_after == pytest.approx(1.5)  # a job every two seconds, half a second of it is over
    quotas.check("a", 0, 102.0)
    quotas.take("a", 102.0)
    with pytest.raises(OverQuota):
        quotas.check("a", 0, 102.0)
    # However long the pause, no more than the burst.
    for _ in range(3):
        quotas.check("a", 0, 1e6)
        quotas.take("a", 1e6)
    with pytest.raises(OverQuota, match=r"its quota of 0\.5 jobs/s \(at most 3 at once\); retry later"):
        quotas.check("a", 0, 1e6)


def test_a_star_is_the_quota_of_everybody_else_each_for_himself() -> None:
    quotas = Quotas({"*": Quota(jobs_per_s=1.0, burst=1), "a": Quota()})
    quotas.take("b", 0.0)
    quotas.take("a", 0.0)

    quotas.check("a", 99, 0.0)
    quotas.check("c", 0, 0.0)
    with pytest.raises(OverQuota):
        quotas.check("b", 0, 0.0)
    quotas.use({})
    quotas.check("b", 0, 0.0)


def test_a_clock_that_is_set_back_gives_nothing_and_takes_nothing() -> None:
    quotas = Quotas({"a": Quota(jobs_per_s=1.0, burst=2)})
    quotas.take("a", 100.0)

    quotas.check("a", 0, 10.0)
    quotas.take("a", 10.0)
    with pytest.raises(OverQuota):
        quotas.check("a", 0, 10.0)


def test_owners_are_counted() -> None:
    owners = Owners()
    owners["j1"], owners["j2"], owners["j3"] = "a", "a", "b"
    owners["j3"] = "a"
    del owners["j1"]

    assert owners.active == {"a": 2}
    assert (owners.pop("j2"), owners.pop("j2"), owners.active) == ("a", None, {"a": 1})


# ------------------------------------------------------------------------------------------------------------ keys


def test_a_stored_key_opens_until_it_is_revoked_and_keys_stay_needed() -> None:
    keys = Keys()
    assert keys.behind("", "") == ANYBODY
    key, record = new_key("a", is_admin=True)
    keys.know([record])

    assert keys.behind(f"Bearer {key}", "") == keys.behind("", key) == Caller("a", True)
    keys.know([dataclasses.replace(record, revoked_at=1.0)])
    for authorization in (f"Bearer {key}", "", "Basic x"):
        with pytest.raises(HTTPException) as refusal:
            keys.behind(authorization, "")
        assert refusal.value.status_code == 401


def test_what_is_kept_of_a_key_does_not_tell_it() -> None:
    key, record = new_key("a")
    other, _ = new_key("a")

    assert key != other
    assert key.split("_", 2)[2] not in repr(record)
    keys = Keys()
    keys.know([record])
    assert keys.caller_of(f"lk_{record.id}_{'x' * 32}") is None
    assert keys.caller_of(key) == Caller("a", False)


def test_configured_keys_administer_unless_somebody_else_is_named() -> None:
    configured = {"key-of-a-1": "a", "key-of-b-1": "b"}

    assert Keys(configured).caller_of("key-of-a-1") == Caller("a", True)
    keys = Keys(configured, admins=["b"])
    assert [keys.caller_of(key) for key in configured] == [Caller("a", False), Caller("b", True)]


# -------------------------------------------------------------------------------------------------------- accounts


def stage(kind: StageKind, *results: TaskResult) -> StageRecord:
    return StageRecord("j", f"s-{kind.value}", 1, "done", kind, 0.0, results=results)


def test_what_a_tenant_used_is_read_off_what_is_written() -> None:
    writes = Writes(
        jobs=[(JobRecord("j", 1, "app", 1, 0.0), None)],
        stages=[
            stage(StageKind.LLM, TaskResult(2.0, 100, 20), TaskResult(3.0, 10, 5)),
            stage(StageKind.REGULAR, TaskResult(0.5)),
        ],
        updates=[
            JobUpdate("j", JobStatus.RUNNING, started_at=1.0),
            JobUpdate("j", JobStatus.COMPLETED, finished_at=9.0),
        ],
    )

    assert usage_of(writes, "a", 86_400.0 * 7 + 1) == [Usage("a", 7, 1, 1, 0, 0, 110, 25, 5.0, 0.5)]
    assert usage_of(writes, "", 0.0) == []
    assert usage_of(Writes(updates=writes.updates[:1]), "a", 0.0) == []


def test_the_metrics_name_only_so_many_tenants() -> None:
    metrics = Metrics()
    for k in range(MOST_TENANTS + 50):
        metrics.used(Usage(f"tenant-{k}", 0, jobs=1, output_tokens=2))
        metrics.over_quota(f"tenant-{k}", "active_jobs")
    said = metrics.exposition().decode()

    assert sum(line.startswith("llmsched_tenant_jobs_total{") for line in said.splitlines()) == MOST_TENANTS + 1
    assert 'llmsched_tenant_jobs_total{event="submitted",tenant="other"} 50.0' in said
    assert 'llmsched_tenant_tokens_total{kind="output",tenant="other"} 100.0' in said
    assert 'llmsched_over_quota_total{quota="active_jobs",tenant="other"} 50.0' in said


@pytest.mark.parametrize(
    ("quota", "said"),
    [
        ({"active": 3}, "unknown key of tenant_quotas.a 'active'; did you mean 'active_jobs'?"),
        ({"jobs_per_s": 0}, "setting tenant_quotas.a.jobs_per_s is 0: input should be greater than 0"),
        ({"burst": 0}, "setting tenant_quotas.a.burst is 0: input should be greater than or equal to 1"),
    ],
)
def test_a_quota_that_cannot_be_is_refused(quota: dict[str, Any], said: str) -> None:
    from llmsched.config import load
    from llmsched.errors import InvalidSetting

    with pytest.raises(InvalidSetting) as refusal:
        load(tenant_quotas={"a": quota})
    assert str(refusal.value) == said

"""Tenants while the service runs: whose jobs are active, what each may have at once and per second, what each used.

A tenant is the name that an API key belongs to; without keys everybody is the tenant '', who has no usage of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmsched.errors import Overloaded
from llmsched.model.job import JobStatus
from llmsched.model.kinds import StageKind
from llmsched.model.records import Usage, Writes

#: The quota of tenants that have none of their own.
EVERYBODY = "*"
#: Seconds after which somebody who has too many jobs may ask again.
ASK_AGAIN = 2.0
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may have; None: as much as it likes. active_jobs: at once.

    jobs_per_s: accepted on average; burst: at most so many at once after a pause.
    """

    active_jobs: int | None = None
    jobs_per_s: float | None = None
    burst: int = 10


class Owners(dict[str, str]):
    """Tenant by job, and how many jobs each has."""

    def __init__(self) -> None:
        super().__init__()
        self.active: Counter[str] = Counter()

    def __setitem__(self, job: str, tenant: str) -> None:
        if job in self:
            self._left(self[job])
        super().__setitem__(job, tenant)
        self.active[tenant] += 1

    def __delitem__(self, job: str) -> None:
        tenant = self[job]
        super().__delitem__(job)
        self._left(tenant)

    def pop(self, job: str, default: Any = None) -> Any:
        """The tenant of a job, who has it no longer."""
        if job not in self:
            return default
        tenant = self[job]
        del self[job]
        return tenant

    def _left(self, tenant: str) -> None:
        self.active[tenant] -= 1
        if not self.active[tenant]:
            del self.active[tenant]


class Quotas:
    """quotas: by tenant, that of `EVERYBODY` for the others; `use` puts new ones in their place while jobs run."""

    def __init__(self, quotas: Mapping[str, Quota] | None = None) -> None:
        self._quotas = dict(quotas or {})
        #: Tenant -> (jobs it may still have accepted at once, as of when).
        self._buckets: dict[str, tuple[float, float]] = {}

    def of(self, tenant: str) -> Quota | None:
        return self._quotas.get(tenant) or self._quotas.get(EVERYBODY)

    @property
    def names(self) -> set[str]:
        """Tenants with a quota of their own."""
        return set(self._quotas) - {EVERYBODY}

    def __bool__(self) -> bool:
        """Whether anybody has a quota."""
        return bool(self._quotas)

    def use(self, quotas: Mapping[str, Quota]) -> None:
        """From now on these hold. What was accepted before counts."""
        self._quotas = dict(quotas)

    def check(self, tenant: str, active: int, now: float) -> None:
        """Raises Overloaded where the tenant, who has so many active jobs, may have no other now."""
        quota = self.of(tenant)
        if quota is None:
            return
        if quota.active_jobs is not None and active >= quota.active_jobs:
            raise OverQuota(
                f"{_who(tenant)} has {active} active jobs, its quota is {quota.active_jobs}; retry when one is over",
                retry_after=ASK_AGAIN,
                tenant=tenant,
                quota="active_jobs",
            )
        if quota.jobs_per_s is not None and (left := self._left(tenant, quota, now)) < 1.0:
            raise OverQuota(
                f"{_who(tenant)} has used up its quota of {quota.jobs_per_s:g} jobs/s (at most {quota.burst} at once);"
                " retry later",
                retry_after=(1.0 - left) / quota.jobs_per_s,
                tenant=tenant,
                quota="jobs_per_s",
            )

    def take(self, tenant: str, now: float) -> None:
        """A job of the tenant is accepted."""
        quota = self.of(tenant)
        if quota is not None and quota.jobs_per_s is not None:
            self._buckets[tenant] = self._left(tenant, quota, now) - 1.0, now

    def _left(self, tenant: str, quota: Quota, now: float) -> float:
        assert quota.jobs_per_s is not None, quota
        left, at = self._buckets.get(tenant, (float(quota.burst), now))
        # The clock may be set back: then nothing grows until it has caught up.
        return min(float(quota.burst), left + quota.jobs_per_s * max(0.0, now - at))


class OverQuota(Overloaded):
    """A tenant asks for more than its quota."""

    def __init__(self, message: str, *, retry_after: float, tenant: str, quota: str) -> None:
        super().__init__(message, retry_after=retry_after)
        self.tenant = tenant
        self.quota = quota


def usage_of(writes: Writes, tenant: str, now: float) -> list[Usage]:
    """What these writes of one job say that its tenant used; nothing where nobody has a name."""
    if not tenant:
        return []
    prompt = output = 0
    llm = regular = 0.0
    for stage in writes.stages:
        for result in stage.results:
            if stage.kind is StageKind.LLM:
                prompt, output, llm = (
                    prompt + result.prompt_tokens,
                    output + result.output_tokens,
                    llm + result.duration,
                )
            else:
                regular += result.duration
    ended = [update.status for update in writes.updates if update.finished_at is not None]
    used = Usage(
        tenant,
        int(now // DAY),
        len(writes.jobs),
        ended.count(JobStatus.COMPLETED),
        ended.count(JobStatus.FAILED),
        ended.count(JobStatus.CANCELLED),
        prompt,
        output,
        llm,
        regular,
    )
    return [used] if any(used[2:]) else []


def _who(tenant: str) -> str:
    return f"tenant {tenant!r}" if tenant else "everybody together"

"""`tenants`: weighted shares between tenants, whatever the policy; within a tenant the policy decides.

In each pool the next task is that of the tenant with the fewest jobs at work per weight, as Spark's fair pools are
compared, where a job counts once however many of its tasks run: a fork-join job with eighty calls side by side is one
job, and costs its tenant no more turns than a chain does. Between tenants that are level the policy's order decides.
Picks of tenants whose turn it is not are held back for the rest of the decision, so that it costs as much as the policy
takes to name a task of every tenant that waits.
Source: ours; Spark's FairSchedulingAlgorithm (running / weight) over jobs in place of tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import groupby

from llmsched.model.events import JobClass
from llmsched.policies.base import Change, JobLeft, Pick, Policy, StageDrained, StageReady, TaskEnded, TaskStarted, View
from llmsched.policies.weights import weights_from


class Shared:
    """`policy`, with turns between tenants by `weights` (1 for a tenant without one).

    Raises InvalidInput for a weight that is not positive.
    """

    def __init__(self, policy: Policy, weights: Mapping[str, float] | str) -> None:
        self.policy = policy
        self.weights = weights_from(weights, of="tenant", field="tenants")
        self.keeps_classes = policy.keeps_classes
        #: Pool -> tenant -> job -> its tasks that run there.
        self._running: dict[str, dict[str, dict[str, int]]] = {}
        #: Pool -> tenant -> ready stages.
        self._ready: dict[str, dict[str, int]] = {}

    def on(self, change: Change, view: View) -> None:
        match change:
            case StageReady(stage):
                self._count(stage.pool, stage.job.tenant, 1)
            case StageDrained(stage):
                self._count(stage.pool, stage.job.tenant, -1)
            case TaskStarted(task):
                jobs = self._running.setdefault(task.pool, {}).setdefault(task.job.tenant, {})
                jobs[task.job.id] = jobs.get(task.job.id, 0) + 1
            case TaskEnded(task):
                self._ended(task.pool, task.job.tenant, task.job.id)
            case JobLeft(job):  # its running tasks ended without a word
                for pool in list(self._running):
                    self._forget(pool, job.tenant, job.id)
            case _:
                pass
        self.policy.on(change, view)

    def begin(self, view: View) -> None:
        self.policy.begin(view)

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        waiting = self._ready.get(pool, {})
        if len(waiting) < 2:
            return self.policy.picks(pool, view)
        return self._in_turns(pool, view)

    def _in_turns(self, pool: str, view: View) -> Iterator[Pick]:
        """The policy's picks of one class after the other, each class dealt out in turns."""
        picks = self.policy.picks(pool, view)
        if not self.keeps_classes:
            picks = iter(sorted(picks, key=_job_class))
        at_work = {tenant: set(jobs) for tenant, jobs in self._running.get(pool, {}).items()}
        waiting = len(self._ready[pool])
        for _, of_class in groupby(picks, key=_job_class):
            held: dict[str, deque[tuple[int, Pick]]] = {}
            ahead = enumerate(of_class)
            while True:
                # Read on until every tenant that waits has something to offer, or the class is over.
                while len(held) < waiting and (entry := next(ahead, None)) is not None:
                    held.setdefault(entry[1].task.job.tenant, deque()).append(entry)
                if not held:
                    break
                tenant = min(held, key=lambda t: (len(at_work.get(t, ())) / self.weights.get(t, 1.0), held[t][0][0]))
                _, pick = held[tenant].popleft()
                if not held[tenant]:
                    del held[tenant]
                at_work.setdefault(tenant, set()).add(pick.task.job.id)
                yield pick

    def _count(self, pool: str, tenant: str, change: int) -> None:
        tenants = self._ready.setdefault(pool, {})
        tenants[tenant] = tenants.get(tenant, 0) + change
        if tenants[tenant] <= 0:
            del tenants[tenant]

    def _ended(self, pool: str, tenant: str, job: str) -> None:
        jobs = self._running.get(pool, {}).get(tenant, {})
        if job in jobs:
            jobs[job] -= 1
            if not jobs[job]:
                self._forget(pool, tenant, job)

    def _forget(self, pool: str, tenant: str, job: str) -> None:
        tenants = self._running.get(pool, {})
        if job in tenants.get(tenant, {}):
            del tenants[tenant][job]
            if not tenants[tenant]:
                del tenants[tenant]


def _job_class(pick: Pick) -> JobClass:
    return pick.task.job.job_class

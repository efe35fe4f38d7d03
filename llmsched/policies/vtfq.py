"""`vtfq`: jobs in the order in which they would be over if every tenant had its fair share all along.

    F(job)  = max(V(arrival), F of the tenant's job before) + C / w
    dV/dt   = slots / sum of w over tenants with unfinished jobs

C is the work a job is expected to need in all pools, in reference seconds, as believed when it is first ordered; w is
the weight of its tenant. A job keeps its F, so what comes later and is long cannot pass it: no job waits more than a
bounded time longer than under fair sharing. Yet whose turn it is gets every slot it can use, where sharing would make
all of them late.

A job of no tenant ("") is a tenant of its own, of weight 1, as Justitia treats its agents: F = V(arrival) + C. Jobs of
one tenant go one after the other.

Where this leaves the source: C is time instead of memory over time, as slots are what is scheduled here; the slots are
those of all pools together, as they are at the end of each span; and V and all F begin anew when nobody has work. A
policy that takes over in mid-run takes all jobs to have just arrived, and C for what they have left.
Source: Justitia (arXiv:2510.17015), virtual-time fair queueing; specification 15.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush

from llmsched.model.job import Job, Stage
from llmsched.policies.base import Change, JobArrived, JobLeft, KeyPolicy, View
from llmsched.policies.weights import weights_from
from llmsched.profiler import Knowledge


class Vtfq(KeyPolicy):
    """Least virtual finish time first.

    weights: by tenant, "gold=2,free=0.5" or a mapping; 1 for others. Raises InvalidInput for one that is not positive.
    """

    key_name = "virtual_finish"

    def __init__(self, knowledge: Knowledge | None = None, weights: Mapping[str, float] | str | None = None) -> None:
        super().__init__()
        self.knowledge = knowledge or Knowledge()
        self._weights = weights_from(weights or "", of="tenant")
        #: V, and the time it is of.
        self._virtual = 0.0
        self._at = 0.0
        #: Tenant -> its unfinished jobs; sum of the weights of those that have some.
        self._active: dict[str, int] = {}
        self._weight = 0.0
        #: Job -> V at its arrival, until it is ordered; then job -> F.
        self._arrivals: dict[str, float] = {}
        self._finishes: dict[str, float] = {}
        #: Tenant -> F of its last job, while it is ahead of V; the same as a heap of (F, tenant).
        self._last: dict[str, float] = {}
        self._ahead: list[tuple[float, str]] = []

    def key(self, stage: Stage, view: View) -> float:
        job = stage.job
        finish = self._finishes.get(job.id)
        if finish is None:
            finish = self._finishes[job.id] = self._finish(job)
        return finish

    def rekey(self, job: Job, view: View) -> None:
        """Nothing to do: a job keeps its key."""

    def on(self, change: Change, view: View) -> None:
        match change:
            case JobArrived(job):
                self._advance(view)
                self._arrive(job)
            case JobLeft(job):
                self._advance(view)
                self._leave(job)
            case _:
                super().on(change, view)

    def _finish(self, job: Job) -> float:
        work = sum(left.total for left in self.knowledge.remaining(job).values())
        start = self._arrivals.pop(job.id)
        if not job.tenant:
            return start + work
        finish = max(start, self._last.get(job.tenant, 0.0)) + work / self._weight_of(job.tenant)
        self._last[job.tenant] = finish
        heappush(self._ahead, (finish, job.tenant))
        return finish

    def _weight_of(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    def _advance(self, view: View) -> None:
        """Moves V on to now, and forgets what lies behind it."""
        if self._active:
            slots = sum(executor.slots for executor in view.executors.values())
            self._virtual += (view.now - self._at) * slots / self._weight
        self._at = view.now
        while self._ahead and self._ahead[0][0] <= self._virtual:
            finish, tenant = heappop(self._ahead)
            if self._last.get(tenant) == finish:
                del self._last[tenant]

    def _arrive(self, job: Job) -> None:
        self._arrivals[job.id] = self._virtual
        if not job.tenant:
            self._active[""] = self._active.get("", 0) + 1
            self._weight += 1.0
            return
        if job.tenant not in self._active:
            self._weight += self._weight_of(job.tenant)
        self._active[job.tenant] = self._active.get(job.tenant, 0) + 1

    def _leave(self, job: Job) -> None:
        self.knowledge.forget(job.id)
        self._arrivals.pop(job.id, None)
        self._finishes.pop(job.id, None)
        self._active[job.tenant] -= 1
        if not job.tenant:
            self._weight -= 1.0
        if not self._active[job.tenant]:
            del self._active[job.tenant]
            self._weight -= self._weight_of(job.tenant) if job.tenant else 0.0
        if not self._active:
            self._virtual = self._weight = 0.0
            self._last.clear()
            self._ahead.clear()

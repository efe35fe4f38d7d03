"""Policies whose key is an estimate of what a job still has to do: what they share, `srpt` and `srtf-prior`.

An estimate changes when something is found out about the job (a stage over, a task done, a plan) and when the profiles
are learned anew; then the job's ready stages are sorted in again. Jobs nothing is known of tie, and go in order of
arrival.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Literal

from llmsched.errors import InvalidInput
from llmsched.model.job import Job, Stage, TaskState
from llmsched.policies.base import Change, JobLeft, KeyPolicy, TaskEnded, View
from llmsched.profiler import Knowledge, Outlook, Remaining
from llmsched.profiler.done import FLOOR, work_done
from llmsched.profiler.history import Curves

Scope = Literal["pool", "total"]

#: Jobs that one decision sorts in again after a profile was learned anew: some milliseconds.
_RESORTED = 50


def full_batch(curves: Curves, pool: str, view: View) -> float:
    """l(b) / l(1) of a full batch of the pool's largest engine."""
    slots = max((e.slots for e in view.in_pool(pool)), default=1)
    curve = curves[pool]
    alone = curve.decode(1)
    return curve.decode(max(1, slots)) / alone if alone else 1.0


def checked_scope(scope: Scope) -> Scope:
    """The scope itself. Raises InvalidInput for what is none."""
    if scope not in ("pool", "total"):
        raise InvalidInput(f"scope is {scope!r}; it must be pool or total", field="scope")
    return scope


class LeftPolicy(KeyPolicy):
    """A key policy whose key is about what a job has left: its stages are sorted in again when a task is done."""

    def on(self, change: Change, view: View) -> None:
        super().on(change, view)
        if isinstance(change, TaskEnded) and change.task.state is TaskState.DONE:
            self.rekey(change.task.job, view)


class EstimatePolicy(LeftPolicy):
    """A policy that asks `knowledge`. estimator: by this one; None: the one each profile trusts most.

    Raises UnknownName for an estimator that does not exist.
    """

    key_name = "estimate"

    def __init__(self, knowledge: Knowledge | None = None, estimator: str | None = None) -> None:
        super().__init__()
        self.knowledge = knowledge or Knowledge()
        self._estimator = self.knowledge.known_estimator(estimator)
        self._revision = self.knowledge.revision
        #: What was known of an application when its jobs were last sorted.
        self._revisions: dict[str, int] = {}
        #: Jobs that are still sorted by what was known before.
        self._stale: dict[str, None] = {}
        #: Answers of a named estimator: job -> (its revision, the answer).
        self._answers: dict[str, tuple[int, Remaining]] = {}

    def remaining(self, job: Job) -> Remaining:
        """Expected work that is left, by pool."""
        if self._estimator is None:
            return self.knowledge.remaining(job)
        known = self._answers.get(job.id)
        if known is None or known[0] != job.revision:
            answer = self.knowledge.estimator(job.application, self._estimator).remaining(job)
            known = self._answers[job.id] = job.revision, answer
        return known[1]

    def outlook(self, job: Job) -> Outlook:
        """The distribution of what is left."""
        if self._estimator is None:
            return self.knowledge.outlook(job)
        return self.knowledge.estimator(job.application, self._estimator).outlook(job)

    def on(self, change: Change, view: View) -> None:
        super().on(change, view)
        if isinstance(change, JobLeft):
            self._answers.pop(change.job.id, None)
            self.knowledge.forget(change.job.id)

    def begin(self, view: View) -> None:
        if self._revision != self.knowledge.revision:
            self._revision = self.knowledge.revision
            self._answers.clear()
            self._find_stale(view)
        # A few at a time: with thousands of jobs a new profile must not stop the world.
        for id in list(islice(self._stale, _RESORTED)):
            del self._stale[id]
            if job := view.jobs.get(id):
                self.rekey(job, view)

    def _find_stale(self, view: View) -> None:
        for job in view.jobs.values():
            name = job.application.name
            if self._revisions.get(name, 0) != self.knowledge.revision_of(name):
                self._stale[job.id] = None
        for name in {job.application.name: None for job in view.jobs.values()}:
            self._revisions[name] = self.knowledge.revision_of(name)


class Srpt(EstimatePolicy):
    """Shortest expected remaining processing time **in the pool the task is for**.

    scope "total": in all pools together, as the paper orders. cross: this share of the work in other pools is added.
    Source: ours; specification 15. The posterior is the network's unless `estimator` says otherwise.
    """

    def __init__(
        self,
        knowledge: Knowledge | None = None,
        estimator: str | None = "bayesnet",
        scope: Scope = "pool",
        cross: float = 0.0,
    ) -> None:
        super().__init__(knowledge, estimator)
        if not 0.0 <= cross <= 1.0:
            raise InvalidInput(f"cross is {cross!r}; it must be a share between 0 and 1", field="cross")
        self._cross = 1.0 if checked_scope(scope) == "total" else cross

    def key(self, stage: Stage, view: View) -> float:
        left = self.remaining(stage.job)
        own = left[stage.pool].total if stage.pool in left else 0.0
        if not self._cross:
            return own
        return own + self._cross * (sum(work.total for work in left.values()) - own)


class SrtfPrior(EstimatePolicy):
    """Mean work of the application less the work that is done, at least a tenth of the means of what is left.

    A baseline: it knows averages and what a job has already had, and updates no belief.
    Source: LLMSched's ablation without the network (section V-C); specification 1.7.
    """

    def __init__(self, knowledge: Knowledge | None = None) -> None:
        super().__init__(knowledge, "mean")
        self._means: dict[tuple[str, int], tuple[int, float]] = {}

    def key(self, stage: Stage, view: View) -> Any:
        return self.estimate(stage.job)

    def estimate(self, job: Job) -> float:
        """Seconds of reference work."""
        left = sum(work.total for work in self.remaining(job).values())
        return max(self._mean(job) - work_done(job, self.knowledge.curves), FLOOR * left)

    def _mean(self, job: Job) -> float:
        key = (job.application.name, job.application.version)
        known = self._means.get(key)
        if known is None or known[0] != self.knowledge.revision:
            known = self._means[key] = self.knowledge.revision, self.knowledge.mean_work(job.application)
        return known[1]

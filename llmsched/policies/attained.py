"""`las` and `atlas`: jobs that have had least service first, by levels, as nothing is known of what they still need.

    received(task)  = reference work of a finished LLM task; of a running one, elapsed seconds x l(1) / l(b)
    a(job)          = las: received by all of its tasks;  atlas: the most along any chain of its stages
    level           = 0 below q0, else floor(log2(a / q0)), at most levels - 1
    key             = (level, arrival, …)

b is the number of tasks on the executor now. An attempt that failed or was lost counts for nothing. A job some of whose
tasks have been ready for more than `promote_after` seconds since its last dispatch goes to level 0 until its next one.
Service is that of LLM tasks, of whatever pool; regular pools are ordered by the same.

In `atlas` the tasks of a stage run side by side, so a stage is as long as its longest one; stages that are skipped,
regular or dynamic pass a chain on and add nothing.

Levels depend on time. A decision works out those of jobs that run something or changed, and of those that have waited
too long; never those of all.
Source: Autellix (arXiv:2502.13965), PLAS and ATLAS; specification 15. Constants, and that levels are powers of two, are
the specification's; Autellix also promotes by waiting over service, where here it is waiting alone.
"""

from __future__ import annotations

from math import log2

from llmsched.errors import InvalidInput, show
from llmsched.model.job import Job, Stage, Task, TaskState
from llmsched.model.kinds import StageKind
from llmsched.policies.base import (
    Change,
    JobArrived,
    JobChanged,
    JobLeft,
    KeyPolicy,
    StageDrained,
    StageReady,
    TaskEnded,
    TaskStarted,
    View,
)
from llmsched.profiler import Curves, Knowledge


class Las(KeyPolicy):
    """Least attained service of the whole job first.

    q0: seconds of service; level 0 ends with twice that. levels: how many there are. promote_after: seconds, or inf.
    Raises InvalidInput for a value that cannot be.
    """

    key_name = "level"

    def __init__(
        self, knowledge: Knowledge | None = None, q0: float = 1.0, levels: int = 8, promote_after: float = 60.0
    ) -> None:
        super().__init__()
        for name, value in (("q0", q0), ("promote_after", promote_after)):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not value > 0:
                raise InvalidInput(f"{name} is {show(value)}; it must be a positive number of seconds", field=name)
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
            raise InvalidInput(f"levels is {show(levels)}; it must be a whole number from 1 up", field="levels")
        self._curves = (knowledge or Knowledge()).curves
        self._q0 = q0
        self._top = levels - 1
        self._promote_after = promote_after
        #: Job -> service of its finished tasks.
        self._attained: dict[str, float] = {}
        #: Job -> the level it is sorted by.
        self._levels: dict[str, int] = {}
        #: Jobs whose level is to be worked out at the next decision.
        self._changed: dict[str, Job] = {}
        #: Jobs with ready tasks -> since when they wait, the longest first; without those that were promoted.
        self._waiting: dict[str, float] = {}
        self._promoted: dict[str, None] = {}

    def level(self, attained: float) -> int:
        """Where a job with so many seconds of service stands."""
        return 0 if attained < self._q0 else min(self._top, int(log2(attained / self._q0)))

    def key(self, stage: Stage, view: View) -> int:
        return self._levels.get(stage.job.id, 0)

    def on(self, change: Change, view: View) -> None:
        match change:
            case JobArrived(job) | JobChanged(job):
                self._attained[job.id] = self.finished(job)
                self._changed[job.id] = job
            case TaskStarted(task):
                self._started(task, view)
            case TaskEnded(task):
                if task.state is TaskState.DONE:
                    job = task.job
                    self._attained[job.id] = self.with_task(
                        self._attained[job.id], task.stage, received(task, self._curves)
                    )
                self._changed[task.job.id] = task.job
            case JobLeft(job):
                for known in (self._attained, self._levels, self._changed, self._waiting, self._promoted):
                    known.pop(job.id, None)
            case StageReady(stage):
                if stage.job.id not in self._promoted:
                    self._waiting.setdefault(stage.job.id, view.now)
                super().on(change, view)
            case StageDrained(stage):
                if not _waits(stage.job):
                    self._waiting.pop(stage.job.id, None)
                    self._promoted.pop(stage.job.id, None)
                super().on(change, view)
            case _:
                pass

    def begin(self, view: View) -> None:
        self._promote(view)
        running = self._running(view)
        changed, self._changed = self._changed, {}
        for job, attained in running.values():
            self._sort(job, attained, view)
        for job in changed.values():
            if job.id not in running:
                self._sort(job, self._attained[job.id], view)

    # ------------------------------------------------------------------------------ what differs between the two

    def finished(self, job: Job) -> float:
        """a(job) by its finished tasks."""
        return sum(
            received(task, self._curves)
            for stage in job.stages.values()
            if stage.done_tasks
            for task in stage.tasks or ()
        )

    def with_task(self, attained: float, stage: Stage, service: float) -> float:
        """a(job) when so much is added by one more task of a stage."""
        return attained + service

    # --------------------------------------------------------------------------------------------------- the levels

    def _running(self, view: View) -> dict[str, tuple[Job, float]]:
        """a(job) of jobs that run LLM tasks."""
        running: dict[str, tuple[Job, float]] = {}
        for executor in view.executors.values():
            if not executor.running:
                continue
            curve = self._curves[executor.pool]
            crowded = curve.decode(len(executor.running))
            share = curve.decode(1) / crowded if crowded else 1.0
            for task in executor.running.values():
                if task.stage.kind is StageKind.LLM:
                    job = task.job
                    so_far = running[job.id][1] if job.id in running else self._attained[job.id]
                    service = (view.now - task.started_at) * share
                    running[job.id] = job, self.with_task(so_far, task.stage, service)
        return running

    def _sort(self, job: Job, attained: float, view: View) -> None:
        level = 0 if job.id in self._promoted else self.level(attained)
        if level != self._levels.get(job.id, 0):
            self._levels[job.id] = level
            self.rekey(job, view)

    def _promote(self, view: View) -> None:
        due = view.now - self._promote_after
        while self._waiting:
            id, since = next(iter(self._waiting.items()))
            if since >= due:
                return
            del self._waiting[id]
            self._promoted[id] = None
            self._changed[id] = view.jobs[id]

    def _started(self, task: Task, view: View) -> None:
        job = task.job
        self._changed[job.id] = job
        self._promoted.pop(job.id, None)
        self._waiting.pop(job.id, None)
        if _waits(job):
            self._waiting[job.id] = view.now


class Atlas(Las):
    """Least attained service along the job's critical path so far first. Options are those of `Las`."""

    def __init__(
        self, knowledge: Knowledge | None = None, q0: float = 1.0, levels: int = 8, promote_after: float = 60.0
    ) -> None:
        super().__init__(knowledge, q0, levels, promote_after)
        #: Job -> stage that is over -> the most service along any chain that ends with it.
        self._ends: dict[str, dict[str, float]] = {}

    def on(self, change: Change, view: View) -> None:
        super().on(change, view)
        if isinstance(change, JobLeft):
            self._ends.pop(change.job.id, None)

    def finished(self, job: Job) -> float:
        self._settle(job)
        begun = (self._end(stage) for stage in job.stages.values() if stage.done_tasks and not stage.is_over)
        return max([*self._ends[job.id].values(), *begun], default=0.0)

    def with_task(self, attained: float, stage: Stage, service: float) -> float:
        return max(attained, self._before(stage) + service)

    def _settle(self, job: Job) -> None:
        """Fixes the chains that end with stages that are over now and were not before."""
        ends = self._ends.setdefault(job.id, {})
        fresh = {stage.name: stage for stage in job.stages.values() if stage.is_over and stage.name not in ends}
        while fresh:
            settled = [stage for stage in fresh.values() if not any(name in fresh for name in _follows(stage))]
            assert settled, f"a cycle in {job!r}"
            for stage in settled:
                ends[stage.name] = self._end(stage)
                del fresh[stage.name]

    def _end(self, stage: Stage) -> float:
        """The most service along any chain that ends with the finished tasks of a stage."""
        own = max((received(task, self._curves) for task in stage.tasks or ()), default=0.0)
        return self._before(stage) + own

    def _before(self, stage: Stage) -> float:
        ends = self._ends[stage.job.id]
        return max((ends.get(name, 0.0) for name in _follows(stage)), default=0.0)


def received(task: Task, curves: Curves) -> float:
    """Reference work of a finished LLM task in seconds; 0 for any other."""
    if task.state is not TaskState.DONE or task.result is None or task.stage.kind is not StageKind.LLM:
        return 0.0
    return curves[task.pool].reference(task.result.prompt_tokens or task.prompt_tokens, task.result.output_tokens)


def _waits(job: Job) -> bool:
    return any(stage.ready for stage in job.stages.values())


def _follows(stage: Stage) -> list[str]:
    """What a stage comes after; a dynamic one, after its plan."""
    after = list(stage.spec.after)
    if stage.kind is StageKind.DYNAMIC:
        after += [inner.name for inner in stage.job.inner(stage.name)]
    return after

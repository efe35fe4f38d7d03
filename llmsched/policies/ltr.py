"""`ltr`: LLM calls in the order a ranker gives them, shortest predicted answer first; long waits are promoted.

The score is asked for once, when a call becomes ready; larger means shorter. A call that has waited `starve_after`
seconds goes before all that have not, until it starts; promoted ones keep the order of their scores.

Where the source is left: its server asks again at every step of an engine and promotes after 200 steps, some five
seconds, for ten steps; here nothing that runs is preempted, and calls of whole seconds need a longer patience.
Source: Fu et al., Efficient LLM Scheduling by Learning to Rank (2024; vllm-ltr); specification 8.
"""

from __future__ import annotations

from typing import Literal

from llmsched.errors import UnknownName
from llmsched.model.job import Job, Stage, Task
from llmsched.model.kinds import StageKind
from llmsched.policies.base import Change, JobLeft, Pick, StageReady, TaskReady, TaskStarted, View
from llmsched.policies.predicted import PROMOTED, Key, PredictedPolicy, positive
from llmsched.profiler.lengths import Model

RankScope = Literal["request", "job"]


class Ltr(PredictedPolicy):
    """Highest score first. starve_after: seconds. scope "job": calls go by the mean score of their job's ready calls.

    Explains itself by `score` and, of a promoted call, `promoted`.
    """

    def __init__(self, lengths: Model | None = None, starve_after: float = 120.0, scope: RankScope = "request") -> None:
        super().__init__(lengths)
        if scope not in ("request", "job"):
            raise UnknownName.of("scope", str(scope), ("request", "job"), field="scope")
        self._starve_after = positive("starve_after", starve_after)
        self._is_by_job = scope == "job"
        #: Jobs whose ready calls have changed since their mean was taken, and the means.
        self._changed: dict[str, Job] = {}
        self._means: dict[str, float] = {}

    def order(self, task: Task, view: View) -> tuple[float, float]:
        score = self.predictions.score(task)
        return -(self._means.get(task.job.id, score) if self._is_by_job else score), task.ready_at

    def promoted(self, task: Task, view: View) -> tuple[float, float]:
        return self.order(task, view)

    def due(self, task: Task, view: View) -> float:
        return task.ready_at + self._starve_after

    def pick(self, task: Task, key: Key, view: View) -> Pick:
        if task.stage.kind is not StageKind.LLM:
            return Pick(task, why={"arrived_at": task.job.arrived_at})
        why = {"score": round(-key[1], 4)}
        if key[0] == 0.0:
            return Pick(task, priority=PROMOTED, why=why | {"promoted": True})
        return Pick(task, priority=round(1000 * self.predictions.model.quantile(-key[1])), why=why)

    def on(self, change: Change, view: View) -> None:
        super().on(change, view)
        if not self._is_by_job:
            return
        match change:
            case StageReady(stage):
                self._changed[stage.job.id] = stage.job
            case TaskReady(task) | TaskStarted(task):
                self._changed[task.job.id] = task.job
            case JobLeft(job):
                self._changed.pop(job.id, None)
                self._means.pop(job.id, None)
            case _:
                pass

    def begin(self, view: View) -> None:
        super().begin(view)
        for job in self._changed.values():
            self._rank(job, view)
        self._changed.clear()

    def _rank(self, job: Job, view: View) -> None:
        stages = [stage for stage in job.stages.values() if stage.ready and stage.kind is StageKind.LLM]
        ready = [task for stage in stages for task in _ready(stage)]
        if not ready:
            return
        mean = sum(map(self.predictions.score, ready)) / len(ready)
        if self._means.get(job.id) != mean:
            self._means[job.id] = mean
        for task in ready:
            self.rekey(task, view)


def _ready(stage: Stage) -> list[Task]:
    return [stage.tasks[index] for index in stage.ready] if stage.tasks else []

"""Shortest job first: jobs of the application with the smallest mean work first.

The estimate is one number per application, never updated while a job runs: a fitted mean where one was handed in, else
the mean the application declares, else the mean of its jobs that finished while this policy watched.
Source: baseline of LLMSched (arXiv:2504.03444), section V.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmsched.model.application import Application
from llmsched.model.job import Job, Stage, TaskState
from llmsched.model.kinds import StageKind
from llmsched.model.latency import GENERIC_7B
from llmsched.model.spec import Curve
from llmsched.policies.base import Change, JobLeft, KeyPolicy, TaskEnded, View


class Sjf(KeyPolicy):
    """means: application -> mean reference work of a job in seconds. curve: turns declared tokens into seconds."""

    def __init__(self, means: Mapping[str, float] | None = None, curve: Curve = GENERIC_7B) -> None:
        super().__init__()
        self._fitted = dict(means or {})
        self._declared: dict[tuple[str, int], float] = {}
        self._seen: dict[str, tuple[int, float]] = {}
        self._spent: dict[str, float] = {}
        self._curve = curve

    def mean_work(self, application: Application) -> float:
        """Seconds a job of the application is expected to take alone; 0 while nothing at all is known."""
        name = application.name
        if name in self._fitted:
            return self._fitted[name]
        key = (name, application.version)
        if key not in self._declared:
            self._declared[key] = application.expected_work(self._curve)
        if declared := self._declared[key]:
            return declared
        count, total = self._seen.get(name, (0, 0.0))
        return total / count if count else 0.0

    def key(self, stage: Stage, view: View) -> float:
        return self.mean_work(stage.job.application)

    def on(self, change: Change, view: View) -> None:
        match change:
            case TaskEnded(task) if task.state is TaskState.DONE and task.result is not None:
                result = task.result
                work = (
                    self._curve.reference(result.prompt_tokens, result.output_tokens)
                    if task.stage.kind is StageKind.LLM
                    else result.duration
                )
                self._spent[task.job.id] = self._spent.get(task.job.id, 0.0) + work
            case JobLeft(job):
                self._learn(job)
            case _:
                pass
        super().on(change, view)

    def _learn(self, job: Job) -> None:
        spent = self._spent.pop(job.id, 0.0)
        if job.open_stages == 0:
            count, total = self._seen.get(job.application.name, (0, 0.0))
            self._seen[job.application.name] = (count + 1, total + spent)

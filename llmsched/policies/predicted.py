"""Policies of single LLM calls by their predicted length: what `ltr` and `ssjf` share.

They know requests, not jobs: each ready LLM task has a key of its own, made of what a model (`profiler.lengths`) said
when it became ready. A task that has waited too long is promoted until it starts. Whether one has is asked only of the
task that is due next, so that waiting costs nothing. Regular tasks go in the order of their jobs' arrival.
"""

from __future__ import annotations

from abc import abstractmethod
from math import inf
from typing import Any

from sortedcontainers import SortedKeyList

from llmsched.errors import InvalidInput, show
from llmsched.model.job import Task
from llmsched.model.kinds import StageKind
from llmsched.policies.base import (
    Change,
    JobLeft,
    StageDrained,
    StageReady,
    TaskKeyPolicy,
    TaskReady,
    TaskStarted,
    View,
)
from llmsched.profiler.lengths import Model, Predictions

Key = tuple[float, float, float]

#: What a promoted task is sent with: before every other.
PROMOTED = -1


def positive(name: str, value: float) -> float:
    """The value itself. Raises InvalidInput if it is no positive number; infinity is one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidInput(f"{name} is {show(value)}; it must be a positive number", field=name)
    return float(value)


class PredictedPolicy(TaskKeyPolicy):
    """Say `order`, `promoted` and `due`. lengths: the model; None: the one that ships."""

    #: Whoever runs this policy should say what prompts are like (`Task.text`).
    reads_prompts = True

    def __init__(self, lengths: Model | None = None) -> None:
        super().__init__()
        self.predictions = Predictions(lengths)
        #: LLM tasks that wait and are not promoted, by the moment at which they will be: (due, number, order, index,
        #: task).
        self._due: SortedKeyList[Any, Any] = SortedKeyList(key=_due_key)
        #: Their entries, by stage, then by index of the task.
        self._dues: dict[tuple[str, str], dict[int, tuple[Any, ...]]] = {}
        #: Promoted tasks, by stage.
        self._promoted: dict[tuple[str, str], set[int]] = {}

    @abstractmethod
    def order(self, task: Task, view: View) -> tuple[float, float]:
        """What a waiting LLM task is ordered by, smallest first."""

    @abstractmethod
    def promoted(self, task: Task, view: View) -> tuple[float, float]:
        """What promoted tasks are ordered by, which go before all others."""

    @abstractmethod
    def due(self, task: Task, view: View) -> float:
        """When the task will have waited too long."""

    def is_due(self, due: float, now: float) -> bool:
        return due <= now

    def is_promoted(self, task: Task) -> bool:
        return task.index in self._promoted.get((task.job.id, task.stage.name), ())

    def key(self, task: Task, view: View) -> Key:
        if task.stage.kind is not StageKind.LLM:
            return 1.0, -inf, 0.0  # arrival decides; beside LLM calls in one pool they go first
        if self.is_promoted(task):
            return 0.0, *self.promoted(task, view)
        return 1.0, *self.order(task, view)

    def on(self, change: Change, view: View) -> None:
        match change:
            case StageReady(stage) if stage.kind is StageKind.LLM:
                assert stage.tasks is not None, stage
                for index in stage.ready:
                    self._wait(stage.tasks[index], view)
            case TaskReady(task) if task.stage.kind is StageKind.LLM:
                self._wait(task, view)
            case TaskStarted(task):
                self._end_wait((task.job.id, task.stage.name), task.index)
            case StageDrained(stage):
                key = (stage.job.id, stage.name)
                for index in [*self._dues.get(key, ()), *self._promoted.get(key, ())]:
                    self._end_wait(key, index)
            case JobLeft(job):
                self.predictions.forget(job.id)
            case _:
                pass
        super().on(change, view)

    def begin(self, view: View) -> None:
        while self._due and self.is_due(self._due[0][0], view.now):
            task: Task = self._due[0][-1]
            key = (task.job.id, task.stage.name)
            self._end_wait(key, task.index)
            self._promoted.setdefault(key, set()).add(task.index)
            self.rekey(task, view)

    def _wait(self, task: Task, view: View) -> None:
        due = self.due(task, view)
        if due < inf:
            entry = (due, task.job.number, task.stage.order, task.index, task)
            self._due.add(entry)
            self._dues.setdefault((task.job.id, task.stage.name), {})[task.index] = entry

    def _end_wait(self, key: tuple[str, str], index: int) -> None:
        """Forgets when a task is due, and that it was."""
        waiting, promoted = self._dues.get(key, {}), self._promoted.get(key, set())
        entry = waiting.pop(index, None)
        if entry is not None:
            self._due.remove(entry)
            if not waiting:
                del self._dues[key]
        if index in promoted:
            promoted.discard(index)
            if not promoted:
                del self._promoted[key]


def _due_key(entry: tuple[Any, ...]) -> tuple[Any, ...]:
    return entry[:-1]

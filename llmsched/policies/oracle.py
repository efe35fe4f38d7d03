"""Oracles: the true remaining work. Reference lines that show how much there is to gain; never called baselines."""

from __future__ import annotations

from llmsched.errors import InvalidInput
from llmsched.model.job import Stage, TaskState
from llmsched.policies.base import Change, KeyPolicy, TaskEnded, View
from llmsched.policies.estimated import Scope
from llmsched.profiler import Estimator


class Oracle(KeyPolicy):
    """Shortest true remaining work first. truth: handed in by the simulator, which has the recordings.

    scope "pool": in the pool the task is for; "total": in all pools.
    """

    key_name = "truth"

    def __init__(self, truth: Estimator, scope: Scope = "pool") -> None:
        super().__init__()
        if scope not in ("pool", "total"):
            raise InvalidInput(f"scope is {scope!r}; it must be pool or total", field="scope")
        self._truth = truth
        self._scope = scope

    def key(self, stage: Stage, view: View) -> float:
        left = self._truth.remaining(stage.job)
        if self._scope == "total":
            return sum(work.total for work in left.values())
        return left[stage.pool].total if stage.pool in left else 0.0

    def on(self, change: Change, view: View) -> None:
        super().on(change, view)
        if isinstance(change, TaskEnded) and change.task.state is TaskState.DONE:
            self.rekey(change.task.job, view)

"""`max_wait`: an upper bound on how long a policy may pass a job over, for every policy alike.

A job that has been in the system longer than `max_wait` goes first, within its class: its ready tasks are picked before
those of younger jobs, the oldest job first; everybody else goes in the policy's own order. The policy itself is asked
and told as ever. With no job overdue nothing changes at all, not even the cost.

A promise about order, not about time: jobs that are overdue together wait for each other, and a class still gives way
to every earlier class.
Source: the guards of LTR (vllm-ltr, starvation prevention) and SSJF, for jobs instead of requests.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

from sortedcontainers import SortedKeyList

from llmsched.errors import InvalidInput, show
from llmsched.model.job import Stage
from llmsched.policies.base import Change, Policy, StageDrained, StageReady, View
from llmsched.policies.expedited import Expedited


class Bounded(Expedited):
    """`policy`, but jobs older than `max_wait` seconds go first. Raises InvalidInput for a bound that is none."""

    def __init__(self, policy: Policy, max_wait: float) -> None:
        super().__init__(policy)
        is_number = isinstance(max_wait, int | float) and not isinstance(max_wait, bool)
        if not is_number or not isfinite(max_wait) or max_wait <= 0:
            raise InvalidInput(
                f"max_wait is {show(max_wait)}; it must be a positive number of seconds", field="max_wait"
            )
        self.max_wait = float(max_wait)
        #: Pool -> ready stages, oldest job first.
        self._ready: dict[str, SortedKeyList[Any, Any]] = {}

    def on(self, change: Change, view: View) -> None:
        match change:
            case StageReady(stage):
                queue = self._ready.get(stage.pool)
                if queue is None:
                    queue = self._ready[stage.pool] = SortedKeyList(key=_age)
                queue.add(stage)
            case StageDrained(stage):
                # A policy that takes over in mid-run is told only of what is ready.
                self._ready[stage.pool].discard(stage)
            case _:
                pass
        super().on(change, view)

    def urgent(self, pool: str, view: View) -> list[Stage]:
        overdue = []
        for stage in self._ready.get(pool, ()):
            if view.now - stage.job.arrived_at < self.max_wait:
                break
            overdue.append(stage)
        return overdue

    def reason(self, stage: Stage, view: View) -> dict[str, float]:
        return {"overdue": round(view.now - stage.job.arrived_at - self.max_wait, 3)}


def _age(stage: Stage) -> tuple[float, int, int]:
    return stage.job.arrived_at, stage.job.number, stage.order

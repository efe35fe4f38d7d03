"""`max_wait`: an upper bound on how long a policy may pass a job over, for every policy alike.

A job that has been in the system longer than `max_wait` goes first, within its class: its ready tasks are picked before
those of younger jobs, the oldest job first; everybody else goes in the policy's own order. The policy itself is asked
and told as ever. With no job overdue nothing changes at all, not even the cost.

A promise about order, not about time: jobs that are overdue together wait for each other, and a class still gives way
to every earlier class.
Source: the guards of LTR (vllm-ltr, starvation prevention) and SSJF, for jobs instead of requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

from sortedcontainers import SortedKeyList

from llmsched.errors import InvalidInput, show
from llmsched.model.job import Stage
from llmsched.policies.base import Change, Pick, Policy, StageDrained, StageReady, View


class Bounded:
    """`policy`, but jobs older than `max_wait` seconds go first. Raises InvalidInput for a bound that is none."""

    def __init__(self, policy: Policy, max_wait: float) -> None:
        is_number = isinstance(max_wait, int | float) and not isinstance(max_wait, bool)
        if not is_number or not isfinite(max_wait) or max_wait <= 0:
            raise InvalidInput(
                f"max_wait is {show(max_wait)}; it must be a positive number of seconds", field="max_wait"
            )
        self.policy = policy
        self.max_wait = float(max_wait)
        self.keeps_classes = policy.keeps_classes
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
        self.policy.on(change, view)

    def begin(self, view: View) -> None:
        self.policy.begin(view)

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        overdue = self._overdue(pool, view)
        if not overdue:
            return self.policy.picks(pool, view)
        return self._merged(overdue, pool, view)

    def _overdue(self, pool: str, view: View) -> list[Stage]:
        overdue = []
        for stage in self._ready.get(pool, ()):
            if view.now - stage.job.arrived_at < self.max_wait:
                break
            overdue.append(stage)
        return overdue

    def _merged(self, overdue: list[Stage], pool: str, view: View) -> Iterator[Pick]:
        first = sorted(overdue, key=lambda stage: stage.job.job_class)  # stable: by class, the oldest first
        done = {(stage.job.id, stage.name) for stage in first}
        k = 0
        for pick in self.policy.picks(pool, view):
            # A policy that mixes the classes is sorted by them afterwards, stably: everything overdue may come first.
            while k < len(first) and (not self.keeps_classes or first[k].job.job_class <= pick.task.job.job_class):
                yield from self._all_of(first[k], view)
                k += 1
            if (pick.task.job.id, pick.task.stage.name) not in done:
                yield pick
        for stage in first[k:]:
            yield from self._all_of(stage, view)

    def _all_of(self, stage: Stage, view: View) -> Iterator[Pick]:
        assert stage.tasks is not None, stage
        why = {"overdue": round(view.now - stage.job.arrived_at - self.max_wait, 3)}
        for index in stage.ready:
            yield Pick(stage.tasks[index], why=why)


def _age(stage: Stage) -> tuple[float, int, int]:
    return stage.job.arrived_at, stage.job.number, stage.order

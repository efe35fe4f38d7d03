"""A policy with jobs that go before it: what the bound on waiting and the order by deadlines share.

Whoever is urgent goes first, within its class, in an order of its own; everybody else goes in the policy's order. The
policy itself is asked and told as ever, and with nothing urgent nothing changes at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from llmsched.model.job import Stage
from llmsched.policies.base import Change, Pick, Policy, View


class Expedited(ABC):
    """`policy`, but the ready tasks of stages that are `urgent` are picked before all others of their class."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.keeps_classes = policy.keeps_classes

    @abstractmethod
    def urgent(self, pool: str, view: View) -> list[Stage]:
        """Ready stages that go first, in this order but for classes."""

    @abstractmethod
    def reason(self, stage: Stage, view: View) -> Mapping[str, Any]:
        """Why this one goes first, for people."""

    def on(self, change: Change, view: View) -> None:
        self.policy.on(change, view)

    def begin(self, view: View) -> None:
        self.policy.begin(view)

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        urgent = self.urgent(pool, view)
        return self._merged(urgent, pool, view) if urgent else self.policy.picks(pool, view)

    def _merged(self, urgent: list[Stage], pool: str, view: View) -> Iterator[Pick]:
        first = sorted(urgent, key=lambda stage: stage.job.job_class)  # stable
        done = {(stage.job.id, stage.name) for stage in first}
        k = 0
        for pick in self.policy.picks(pool, view):
            # A policy that mixes the classes is sorted by them afterwards, stably: everything urgent may come first.
            while k < len(first) and (not self.keeps_classes or first[k].job.job_class <= pick.task.job.job_class):
                yield from self._all_of(first[k], view)
                k += 1
            if (pick.task.job.id, pick.task.stage.name) not in done:
                yield pick
        for stage in first[k:]:
            yield from self._all_of(stage, view)

    def _all_of(self, stage: Stage, view: View) -> Iterator[Pick]:
        assert stage.tasks is not None, stage
        why = self.reason(stage, view)
        for index in stage.ready:
            yield Pick(stage.tasks[index], why=why)

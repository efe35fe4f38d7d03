"""`ssjf`: speculative shortest job first: LLM calls by predicted seconds, with a guard for those that wait long.

    estimate = prefill(prompt) + predicted tokens x l(b)

with b a full batch: whoever chooses has more calls than slots, and so an estimate does not change while a call waits. A
call is starved when it has waited more than `wait` seconds, or more than `factor` times its estimate.

Where the source is left: its guard compares the wait with the true execution time, which no scheduler has, and then
serves the whole queue by waiting time (`guard="global"`); here only the starved calls go first. Trees over features of
the prompt stand in for BERT (`profiler.lengths`).
Source: Qiu et al., Efficient Interactive LLM Serving with Proxy Model-based Sequence Length Prediction (2024);
specification 9.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Literal

from llmsched.errors import UnknownName
from llmsched.model.job import Task
from llmsched.model.kinds import StageKind
from llmsched.policies.base import Pick, View
from llmsched.policies.predicted import PROMOTED, Key, PredictedPolicy, positive
from llmsched.profiler import Knowledge
from llmsched.profiler.lengths import Model

Guard = Literal["first", "global"]


class Ssjf(PredictedPolicy):
    """Smallest estimate first. knowledge: whose latency curves turn tokens into seconds. wait: seconds.

    guard "first": starved calls before all others, longest wait first; "global": while one is starved, all calls of its
    class and pool go by wait. Explains itself by `estimate` (seconds) and, of a starved call, `promoted`.
    """

    key_name = "estimate"

    def __init__(
        self,
        lengths: Model | None = None,
        knowledge: Knowledge | None = None,
        guard: Guard = "first",
        wait: float = 100.0,
        factor: float = 10.0,
    ) -> None:
        super().__init__(lengths)
        if guard not in ("first", "global"):
            raise UnknownName.of("guard", str(guard), ("first", "global"), field="guard")
        self._knowledge = knowledge or Knowledge()
        self._is_global = guard == "global"
        self._wait_at_most = positive("wait", wait)
        self._factor = positive("factor", factor)

    def estimate(self, task: Task, view: View) -> float:
        """Seconds the call is expected to take in a full batch."""
        curve = self._knowledge.curves[task.pool]
        slots = max((e.slots for e in view.in_pool(task.pool)), default=1)
        return curve.prefill(task.prompt_tokens) + self.predictions.tokens(task) * curve.decode(max(1, slots))

    def order(self, task: Task, view: View) -> tuple[float, float]:
        return self.estimate(task, view), task.ready_at

    def promoted(self, task: Task, view: View) -> tuple[float, float]:
        return task.ready_at, self.estimate(task, view)

    def due(self, task: Task, view: View) -> float:
        return task.ready_at + min(self._wait_at_most, self._factor * self.estimate(task, view))

    def is_due(self, due: float, now: float) -> bool:
        return due < now

    def pick(self, task: Task, key: Key, view: View) -> Pick:
        if task.stage.kind is not StageKind.LLM:
            return Pick(task, why={"arrived_at": task.job.arrived_at})
        if key[0] == 0.0:
            return Pick(task, priority=PROMOTED, why={"estimate": round(key[2], 3), "promoted": True})
        return Pick(task, priority=round(self.predictions.tokens(task)), why={"estimate": round(key[1], 3)})

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        picks = super().picks(pool, view)
        if not self._is_global or not self._promoted:
            yield from picks
            return
        for _, own in groupby(picks, key=lambda pick: pick.task.job.job_class):
            listed = list(own)
            if any(self.is_promoted(pick.task) for pick in listed):
                listed.sort(key=_by_wait)
            yield from listed


def _by_wait(pick: Pick) -> tuple[float, float, int, int, int]:
    task = pick.task
    return task.ready_at, task.job.arrived_at, task.job.number, task.stage.order, task.index

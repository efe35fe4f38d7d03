"""Oracles: reference lines that show how much there is to gain, and how much of it can be known. Never baselines.

`oracle-pool` and `oracle-srtf` order by the true remaining work. `oracle-ready` is told the truth of stages that are
ready, and believes what history says of the rest: the ceiling for any predictor of lengths.
"""

from __future__ import annotations

from llmsched.model.job import Job, Stage
from llmsched.policies.base import View
from llmsched.policies.estimated import LeftPolicy, Scope, checked_scope
from llmsched.policies.pool import LlmschedPool
from llmsched.profiler import Knowledge, Outlook, Truth
from llmsched.profiler.ceiling import Ceiling
from llmsched.profiler.estimator import Estimator
from llmsched.profiler.kernel import HistoryEstimator


class Oracle(LeftPolicy):
    """Shortest true remaining work first. truth: handed in by the simulator, which has the recordings.

    scope "pool": in the pool the task is for; "total": in all pools.
    """

    key_name = "truth"

    def __init__(self, truth: Estimator, scope: Scope = "pool") -> None:
        super().__init__()
        self._truth = truth
        self._scope = checked_scope(scope)

    def key(self, stage: Stage, view: View) -> float:
        left = self._truth.remaining(stage.job)
        if self._scope == "total":
            return sum(work.total for work in left.values())
        return left[stage.pool].total if stage.pool in left else 0.0


class OracleReady(LlmschedPool):
    """The default's order, with the true cost of every stage that is ready."""

    def __init__(self, truth: Truth, knowledge: Knowledge | None = None) -> None:
        super().__init__(knowledge)
        self._truth = truth
        self._ceilings: dict[tuple[str, int], Ceiling] = {}

    def outlook(self, job: Job) -> Outlook:
        """The distribution of what is left, as far as it cannot be known."""
        estimator = self.knowledge.estimator(job.application, "history")
        if not isinstance(estimator, HistoryEstimator):
            return super().outlook(job)
        key = (job.application.name, self.knowledge.revision)
        if key not in self._ceilings:
            self._ceilings[key] = Ceiling(estimator, self._truth)
        return self._ceilings[key].outlook(job)

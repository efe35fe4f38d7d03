"""`llmsched-pool`, the default: what a job may have left in the task's own pool, by its Gittins index.

A pool is a queue of its own. What makes jobs wait in it is only the work that each brings to it, so that is what a job
is ordered by: not its work elsewhere, and not how long it will take in all. Seconds are those of a full batch (Eq. 2
with b = the slots of the pool's largest engine): decoding slows down as the batch grows and prefill does not, and when
order matters, the batch is full.

What is left is not one number but a distribution, by the estimator that predicted the application best in
cross-validation, updated with everything the job has shown: what its input looks like, what is over, what runs, what
its plan says. Its Gittins index (`gittins.py`) is the least expected work per job that gets done: a job that is over
soon with a fair chance is tried before one whose mean is as small but certain. That is all the exploration there is,
and it needs no randomness.
Source: ours. What was tried beside it, and did not help, is in docs/policies.md.
"""

from __future__ import annotations

from typing import Literal

from llmsched.errors import UnknownName
from llmsched.model.job import Stage
from llmsched.policies.base import View
from llmsched.policies.estimated import EstimatePolicy
from llmsched.policies.gittins import gittins_rank
from llmsched.profiler import Knowledge

Rank = Literal["gittins", "mean"]


class LlmschedPool(EstimatePolicy):
    """Smallest rank of the calibrated work in the stage's own pool first.

    rank "mean": the expected work in place of the Gittins index. estimator: this one instead of each profile's choice.
    """

    def __init__(
        self, knowledge: Knowledge | None = None, estimator: str | None = None, rank: Rank = "gittins"
    ) -> None:
        super().__init__(knowledge, estimator)
        if rank not in ("gittins", "mean"):
            raise UnknownName.of("rank", rank, ("gittins", "mean"), field="rank")
        self._rank = rank

    def key(self, stage: Stage, view: View) -> float:
        if self._rank == "gittins":
            outlook = self.outlook(stage.job)
            return gittins_rank(outlook.totals(stage.pool, self.pace(stage.pool, view)), outlook.weights)
        work = self.remaining(stage.job).get(stage.pool)
        return 0.0 if work is None else work.calibrated(self.pace(stage.pool, view))

    def pace(self, pool: str, view: View) -> float:
        """l(b) / l(1) of a full batch."""
        slots = max((e.slots for e in view.in_pool(pool)), default=1)
        curve = self.knowledge.curves[pool]
        alone = curve.decode(1)
        return curve.decode(max(1, slots)) / alone if alone else 1.0

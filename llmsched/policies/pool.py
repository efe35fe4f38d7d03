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

from math import log1p
from typing import Literal

from llmsched.errors import UnknownName
from llmsched.model.job import Job, Stage
from llmsched.model.kinds import StageKind
from llmsched.policies.base import Change, JobLeft, View
from llmsched.policies.estimated import EstimatePolicy
from llmsched.policies.gittins import gittins_rank
from llmsched.profiler import Knowledge, Outlook, Remaining
from llmsched.profiler.lengths import Model, Predictions

Rank = Literal["gittins", "mean"]
Switch = Literal["off", "on"]


class LlmschedPool(EstimatePolicy):
    """Smallest rank of the calibrated work in the stage's own pool first.

    rank "mean": the expected work in place of the Gittins index. estimator: this one instead of each profile's choice.
    predicted "on": finished jobs also count for more where their answers were as long as `lengths` predicts those of
    stages that are ready or run.
    """

    def __init__(
        self,
        knowledge: Knowledge | None = None,
        estimator: str | None = None,
        rank: Rank = "gittins",
        predicted: Switch = "off",
        lengths: Model | None = None,
    ) -> None:
        super().__init__(knowledge, estimator)
        if rank not in ("gittins", "mean"):
            raise UnknownName.of("rank", rank, ("gittins", "mean"), field="rank")
        if predicted not in ("off", "on"):
            raise UnknownName.of("value of predicted", str(predicted), ("off", "on"), field="predicted")
        self._rank = rank
        #: Whoever runs this policy should say what prompts are like (`Task.text`).
        self.reads_prompts = predicted == "on"
        self._predictions = Predictions(lengths) if predicted == "on" else None
        #: Job -> its revision, that of what is known, and the outlook, where lengths are predicted.
        self._foreseen: dict[str, tuple[int, int, Outlook]] = {}
        #: Pool -> the machines it was counted for, and the slots of its largest executor.
        self._slots: dict[str, tuple[int, int]] = {}

    def outlook(self, job: Job) -> Outlook:
        if self._predictions is None:
            return super().outlook(job)
        at = job.revision, self.knowledge.revision_of(job.application.name)
        known = self._foreseen.get(job.id)
        if known is None or known[:2] != at:
            predicted = {stage.name: self._prediction(stage) for stage in job.stages.values() if _is_open(stage)}
            known = self._foreseen[job.id] = *at, self.knowledge.foresee(job, predicted, self._estimator)
        return known[2]

    def remaining(self, job: Job) -> Remaining:
        return super().remaining(job) if self._predictions is None else self.outlook(job).means()

    def on(self, change: Change, view: View) -> None:
        super().on(change, view)
        if isinstance(change, JobLeft) and self._predictions is not None:
            self._predictions.forget(change.job.id)
            self._foreseen.pop(change.job.id, None)

    def _prediction(self, stage: Stage) -> tuple[float, float]:
        assert self._predictions is not None, stage
        return log1p(self._predictions.mean_tokens(stage)), self._predictions.model.spread(stage)

    def key(self, stage: Stage, view: View) -> float:
        if self._rank == "gittins":
            outlook = self.outlook(stage.job)
            return gittins_rank(outlook.totals(stage.pool, self.pace(stage.pool, view)), outlook.weights)
        work = self.remaining(stage.job).get(stage.pool)
        return 0.0 if work is None else work.calibrated(self.pace(stage.pool, view))

    def pace(self, pool: str, view: View) -> float:
        """l(b) / l(1) of a full batch."""
        known = self._slots.get(pool)
        if known is None or known[0] != view.machines:
            known = self._slots[pool] = view.machines, max((e.slots for e in view.in_pool(pool)), default=1)
        slots, curve = known[1], self.knowledge.curves[pool]
        alone = curve.decode(1)
        return curve.decode(max(1, slots)) / alone if alone else 1.0


def _is_open(stage: Stage) -> bool:
    """Whether it is an LLM stage of which tasks are known and not all done."""
    return stage.kind is StageKind.LLM and bool(stage.tasks) and stage.done_tasks < len(stage.tasks or ())

"""What historical means and extremes of whole jobs say of a running one: LLMSched without its Bayesian network.

    est_rd = max(mean work of the application - completed work, a tenth of the means of the stages that are left)

Source: LLMSched (arXiv:2504.03444), section V-C, "uses the average historical job duration for estimation". The floor
is ours, because a job that has outrun its mean is not done.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmsched.model.application import Application
from llmsched.model.job import Job, Stage, StageState
from llmsched.profiler.bayesnet import BayesEstimator
from llmsched.profiler.done import FLOOR, finished_work
from llmsched.profiler.evidence import OPEN, UNKNOWN, Evidence
from llmsched.profiler.reading import Reading
from llmsched.profiler.sight import Reduction, Sight
from llmsched.profiler.spans import extremes
from llmsched.profiler.uncertainty import Uncertainty


class Averages(Uncertainty):
    """One part per job: the application's. constant: what a job has done is not taken off."""

    def __init__(
        self, application: Application, estimator: BayesEstimator, reading: Reading, *, constant: bool = False
    ) -> None:
        super().__init__(application, estimator, reading)
        self._constant = constant
        jobs = self.spans.work.sum(axis=1)
        #: (3, C) of a whole job, and (rows, C) of its stages.
        self._whole = np.concatenate((jobs.mean(axis=0)[None], extremes(jobs)))
        self._means = self.spans.work.mean(axis=0)

    def see(self, job: Job, had: Mapping[str, float] | None = None) -> Sight:
        """The average job of the application, less what this one has done."""
        evidence = Evidence.of(self.tables.layout, job)
        left = [row for row, first in enumerate(self.spans.first) if evidence.pattern[first] in (UNKNOWN, OPEN)]
        whole = self._whole.copy()
        rows: dict[str, int] = {}
        tasks: dict[str, float] = {}
        for stage in job.stages.values():
            if stage.tasks is None or stage.state is StageState.SKIPPED or self._constant:
                continue
            if stage.done_tasks:
                whole -= self._seconds(stage, *finished_work(stage, self.tables.curves))
            if stage.done_tasks < len(stage.tasks):
                rows[stage.name], tasks[stage.name] = 0, len(stage.tasks) - stage.done_tasks
        floor = FLOOR * self._means[left].sum(axis=0)
        return Sight(job.revision, self.tables.pools, whole[None], rows, tasks, floor=floor, pattern=evidence.pattern)

    def is_outlived(self, job: Job, sight: Sight, had: Mapping[str, float]) -> bool:
        return False

    def reduction(self, job: Job, stage: Stage, sight: Sight) -> Reduction:
        """R(X) of the static prior: whatever the job has shown is no evidence."""
        if not sight.marginals:
            sight.marginals = self.inference.marginals()
        return super().reduction(job, stage, sight)

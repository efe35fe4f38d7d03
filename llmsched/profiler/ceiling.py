"""The ceiling of what can be known: the truth of stages that are ready, what history says of the rest.

No scheduler can see how long a ready task will be, but a perfect length predictor could. So this is what an estimator
could reach at best without looking into stages whose inputs do not exist yet. For reference lines only.
"""

from __future__ import annotations

from llmsched.model.job import Job, Stage, StageState
from llmsched.model.kinds import StageKind
from llmsched.profiler.estimator import Outlook, Work
from llmsched.profiler.evidence import OPEN, OVER, Evidence
from llmsched.profiler.history import Curves
from llmsched.profiler.kernel import HistoryEstimator
from llmsched.profiler.truth import Truth


class Ceiling:
    """The `history` estimator of one application, told the true cost of every stage that runs or is ready."""

    def __init__(self, estimator: HistoryEstimator, truth: Truth) -> None:
        self._estimator = estimator
        self._truth = truth
        self._curves: Curves = estimator.tables.curves

    def outlook(self, job: Job) -> Outlook:
        """What may be left: certain where a stage is ready, believed elsewhere."""
        tables = self._estimator.tables
        recorded = self._truth.recorded(job)
        evidence = Evidence.of(tables.layout, job)
        pattern = list(evidence.pattern)
        for k, column in enumerate(tables.layout.columns):
            if pattern[k] == OPEN and not column.is_plan:
                tasks = recorded[column.stage].tasks
                pattern[k] = OVER
                evidence.costs[k][:] = [
                    float(len(tasks)),
                    float(sum(t.prompt_tokens for t in tasks)),
                    float(sum(t.output_tokens for t in tasks)),
                    sum(t.duration for t in tasks),
                ]
        believed = self._estimator.outlook_given(evidence._replace(pattern=tuple(pattern)), job)
        fixed, decode = believed.fixed.copy(), believed.decode.copy()
        for stage in job.stages.values():
            if stage.state is StageState.READY and stage.kind is not StageKind.DYNAMIC and stage.pool in tables.pools:
                true, guess = self._truth.of_stage(job, recorded[stage.name]), self._priced(stage)
                pool = tables.pools.index(stage.pool)
                fixed[:, pool] = (fixed[:, pool] + true.fixed - guess.fixed).clip(0.0)
                decode[:, pool] = (decode[:, pool] + true.decode - guess.decode).clip(0.0)
        return Outlook(believed.pools, believed.weights, fixed, decode)

    def _priced(self, stage: Stage) -> Work:
        """What the outlook already counts for a ready stage: nothing, but for stages of plans their price."""
        if stage.spec.parent is None or stage.tasks is None or stage.pool not in self._estimator.tables.pools:
            return Work()
        price = self._estimator.tables.price(stage.spec.parent, stage.spec.candidate)
        curve = self._curves[stage.pool]
        open_tasks = [task for task in stage.tasks if task.result is None]
        if stage.kind is not StageKind.LLM:
            return Work(price.seconds * len(open_tasks))
        prompts = sum(curve.prefill(task.prompt_tokens or price.prompt_tokens) for task in open_tasks)
        return Work(prompts, price.output_tokens * curve.decode(1) * len(open_tasks))

"""The estimator of an application nothing was learned of yet: the means its template declares (`expected`)."""

from __future__ import annotations

from llmsched.model.application import Application
from llmsched.model.job import Job, Stage, TaskState
from llmsched.model.kinds import StageKind
from llmsched.model.spec import Expected, StageSpec
from llmsched.profiler.estimator import Outlook, Remaining, Running, Work
from llmsched.profiler.history import Curves, Layout


class DeclaredEstimator:
    """Means per stage from the template; all zero where it declares nothing, so that such jobs tie."""

    def __init__(self, application: Application, curves: Curves) -> None:
        self._layout = Layout.of(application)
        self._curves = curves

    def remaining(self, job: Job, running: Running | None = None) -> Remaining:
        left = dict.fromkeys(self._layout.pools, Work())
        for stage in job.stages.values():
            if stage.is_over:
                continue
            if stage.kind is StageKind.DYNAMIC:
                if not stage.is_revealed:
                    self._add_plan(left, stage)
                continue
            self._add(left, stage)
        if running:
            for ref, task in job.running.items():
                fixed, decode = left.get(task.pool, Work())
                had = running.get(ref, 0.0)
                is_llm = task.stage.kind is StageKind.LLM
                left[task.pool] = Work(fixed, max(0.0, decode - had)) if is_llm else Work(max(0.0, fixed - had), decode)
        return left

    def outlook(self, job: Job, running: Running | None = None) -> Outlook:
        return Outlook.certain(self.remaining(job, running))

    def _add(self, left: dict[str, Work], stage: Stage) -> None:
        expected = self._inner(stage) if stage.spec.parent is not None else stage.spec.expected
        open_tasks = (
            expected.probability * expected.tasks
            if stage.tasks is None
            else sum(task.state is not TaskState.DONE for task in stage.tasks)
        )
        fixed, decode = left.get(stage.pool, Work())
        if stage.kind is StageKind.LLM:
            curve = self._curves[stage.pool]
            fixed += open_tasks * curve.prefill(expected.prompt_tokens)
            decode += open_tasks * expected.output_tokens * curve.decode(1)
        else:
            fixed += open_tasks * expected.duration
        left[stage.pool] = Work(fixed, decode)

    def _inner(self, stage: Stage) -> Expected:
        """What a stage of a plan costs: the share of its kind in what the dynamic stage declares per task."""
        parent = stage.job.stages.get(stage.spec.parent or "")
        return parent.spec.expected if parent is not None else Expected()

    def _add_plan(self, left: dict[str, Work], stage: Stage) -> None:
        spec: StageSpec = stage.spec
        pools = {StageKind.LLM: "", StageKind.REGULAR: ""}
        for candidate in reversed(spec.candidates):
            pools[candidate.kind] = candidate.pool
        tasks = spec.expected.probability * spec.expected.tasks
        if pool := pools[StageKind.LLM]:
            fixed, decode = left.get(pool, Work())
            curve = self._curves[pool]
            fixed += tasks * curve.prefill(spec.expected.prompt_tokens)
            left[pool] = Work(fixed, decode + tasks * spec.expected.output_tokens * curve.decode(1))
        if pool := pools[StageKind.REGULAR]:
            fixed, decode = left.get(pool, Work())
            left[pool] = Work(fixed + tasks * spec.expected.duration, decode)

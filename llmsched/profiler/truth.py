"""The `truth`: what an oracle would say. Only oracle policies are handed it, in the simulator, and visibly."""

from __future__ import annotations

from collections.abc import Mapping

from llmsched.model.job import Job, TaskState
from llmsched.model.kinds import StageKind
from llmsched.model.recording import RecordedStage, Recording
from llmsched.model.unfolding import pool_of
from llmsched.profiler.estimator import Outlook, Remaining, Running, Work
from llmsched.profiler.history import Curves


class Truth:
    """Knows the recording behind every job. recordings: by job id. One object serves all applications."""

    def __init__(self, recordings: Mapping[str, Recording], curves: Curves | None = None) -> None:
        self._recordings = recordings
        self._curves = curves or Curves()

    def remaining(self, job: Job, running: Running | None = None) -> Remaining:
        left: dict[str, Work] = {}
        for stage in self._recordings[job.id].stages:
            if stage.kind is not StageKind.DYNAMIC:
                pool = pool_of(job.application, stage)
                before, more = left.get(pool, Work()), self.of_stage(job, stage, running)
                left[pool] = Work(before.fixed + more.fixed, before.decode + more.decode)
        return left

    def recorded(self, job: Job) -> Mapping[str, RecordedStage]:
        """The stages of a job as they will be, by name."""
        return {stage.name: stage for stage in self._recordings[job.id].stages}

    def of_stage(self, job: Job, stage: RecordedStage, running: Running | None = None) -> Work:
        """What is left of one stage, which the job itself may not know yet."""
        curve = self._curves[pool_of(job.application, stage)]
        known = job.stages.get(stage.name)
        tasks = known.tasks if known is not None and known.tasks else (None,) * len(stage.tasks)
        fixed = decode = 0.0
        for task, real in zip(tasks, stage.tasks, strict=True):
            if task is not None and task.state is TaskState.DONE:
                continue
            had = running.get(task.ref, 0.0) if running and task is not None else 0.0
            if stage.kind is StageKind.LLM:
                fixed += curve.prefill(real.prompt_tokens)
                decode += max(0.0, real.output_tokens * curve.decode(1) - had)
            else:
                fixed += max(0.0, real.duration - had)
        return Work(fixed, decode)

    def outlook(self, job: Job, running: Running | None = None) -> Outlook:
        return Outlook.certain(self.remaining(job, running))

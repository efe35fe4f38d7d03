"""What jobs have done: the reference work of their finished tasks."""

from __future__ import annotations

from llmsched.model.job import Job, Stage, TaskState
from llmsched.model.kinds import StageKind
from llmsched.profiler.estimator import Work
from llmsched.profiler.history import Curves

#: A mean less what is done is never below this share of the means of the stages that are left (LLMSched without its
#: network).
FLOOR = 0.1


def finished_work(stage: Stage, curves: Curves) -> Work:
    """Reference seconds of the finished tasks of a stage."""
    if not stage.done_tasks:
        return Work()
    fixed = decode = 0.0
    curve = curves[stage.pool]
    for task in stage.tasks or ():
        if task.state is not TaskState.DONE or (result := task.result) is None:
            continue
        if stage.kind is StageKind.LLM:
            fixed += curve.prefill(result.prompt_tokens or task.prompt_tokens)
            decode += result.output_tokens * curve.decode(1)
        else:
            fixed += result.duration
    return Work(fixed, decode)


def work_done(job: Job, curves: Curves) -> float:
    """Reference seconds of all tasks that are done."""
    return sum(finished_work(stage, curves).total for stage in job.stages.values())

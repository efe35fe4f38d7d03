"""Relives a finished job alone, stage by stage: the points at which an estimator can be asked and checked.

Not a scheduler: nothing queues and nothing fails. The stages that are ready run one after the other, in order, so the
job passes through states that a running job passes through, knowing exactly what it would know.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmsched.model.application import Application
from llmsched.model.events import TaskResult
from llmsched.model.job import Job, Stage, StageState, Task, TaskState
from llmsched.model.kinds import StageKind
from llmsched.model.recording import Recording
from llmsched.model.unfolding import RecordedUnfolding, Texts, Unfolded


def walk(application: Application, recording: Recording, id: str = "job", texts: Texts | None = None) -> Iterator[Job]:
    """The same `Job`, at submission and after every completed stage that leaves something to do. Do not keep it.

    texts: what its prompts are like, by stage.
    """
    unfolding = RecordedUnfolding(application, recording, texts)
    job = Job(id, 0, application, 0.0, features=recording.features)
    _unfold(job, unfolding.begin())
    while True:
        stage = next((s for s in job.stages.values() if s.state is StageState.READY), None)
        if stage is None:
            return
        yield job
        _run(stage, unfolding)
        _unfold(job, unfolding.complete(stage.name))


def _unfold(job: Job, unfolded: Unfolded) -> None:
    job.revision += 1
    for name in unfolded.skipped:
        job.stages[name].become(StageState.SKIPPED)
    for spec, prompt_tokens, texts in unfolded.reveals:
        stage = job.stages.get(spec.name) or job.add(spec)
        stage.spec = spec
        prompts = zip(prompt_tokens, texts or (None,) * len(prompt_tokens), strict=True)
        stage.tasks = tuple(Task(stage, i, tokens, text) for i, (tokens, text) in enumerate(prompts))
    _close(job)
    while startable := [s for s in job.stages.values() if s.is_startable]:
        for stage in startable:
            stage.become(StageState.EXPANDING if stage.kind is StageKind.DYNAMIC else StageState.READY)
        _close(job)


def _close(job: Job) -> None:
    for stage in job.stages.values():
        is_open = stage.kind is StageKind.DYNAMIC and stage.state is StageState.EXPANDING
        if is_open and all(s.is_over for s in job.inner(stage.name)):
            stage.become(StageState.DONE)


def _run(stage: Stage, unfolding: RecordedUnfolding) -> None:
    for task in stage.tasks or ():
        real = unfolding.task(stage.name, task.index)
        task.become(TaskState.DONE)
        task.result = TaskResult(real.duration, real.prompt_tokens, real.output_tokens)
        stage.done_tasks += 1
    stage.become(StageState.EXPANDING)
    stage.become(StageState.DONE)

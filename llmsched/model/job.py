"""The growing state of one job: its stages and tasks, and the life cycle they follow.

```
task      READY ──dispatch──> RUNNING ──finished──> DONE
            ^                    │
            │                    ├──failed, attempts left──> BACKOFF ──due──┐
            └────executor lost───┘                                         │
            └──────────────────────────────────────────────────────────────┘
stage     WAITING ──revealed and parents over──> READY ──all tasks DONE──> EXPANDING ──expanded──> DONE
            └──told so──> SKIPPED            (a dynamic stage is EXPANDING until its inner stages are over)
job       QUEUED ──first dispatch──> RUNNING ──> COMPLETED | FAILED | CANCELLED
```

One writer: the scheduler. Policies and estimators read. What is absent on purpose: texts (the store has them), clocks,
and anything not yet revealed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from llmsched.errors import InvalidTransition
from llmsched.model.application import Application
from llmsched.model.events import JobClass, TaskRef, TaskResult
from llmsched.model.kinds import StageKind
from llmsched.model.prompt import PromptText
from llmsched.model.spec import StageSpec


class TaskState(StrEnum):
    READY = "ready"
    RUNNING = "running"
    BACKOFF = "backoff"
    DONE = "done"


#: Every legal step of a task.
TASK_STEPS: dict[TaskState, tuple[TaskState, ...]] = {
    TaskState.READY: (TaskState.RUNNING, TaskState.DONE),  # DONE at once: restored from the store, or withdrawn
    TaskState.RUNNING: (TaskState.DONE, TaskState.BACKOFF, TaskState.READY),
    TaskState.BACKOFF: (TaskState.READY, TaskState.DONE),
    TaskState.DONE: (),
}


class StageState(StrEnum):
    WAITING = "waiting"
    READY = "ready"
    EXPANDING = "expanding"
    DONE = "done"
    SKIPPED = "skipped"


#: Every legal step of a stage.
STAGE_STEPS: dict[StageState, tuple[StageState, ...]] = {
    StageState.WAITING: (StageState.READY, StageState.EXPANDING, StageState.SKIPPED),
    StageState.READY: (StageState.EXPANDING,),
    StageState.EXPANDING: (StageState.DONE,),
    StageState.DONE: (),
    StageState.SKIPPED: (),
}


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Task:
    """One unit of a stage: one LLM call or one call of a handler."""

    __slots__ = (
        "attempt",
        "avoid",
        "executor",
        "failures",
        "generated",
        "index",
        "losses",
        "prompt_tokens",
        "ready_at",
        "result",
        "stage",
        "started_at",
        "state",
        "text",
    )

    def __init__(self, stage: Stage, index: int, prompt_tokens: int, text: PromptText | None = None) -> None:
        self.stage = stage
        self.index = index
        #: Length of the prompt in tokens, known once the stage is revealed; 0: unknown, or a regular task.
        self.prompt_tokens = prompt_tokens
        #: What is known of the words of its prompt; None: nothing, or nobody asked.
        self.text = text
        self.state = TaskState.READY
        #: Counts dispatches; news of an earlier attempt is stale.
        self.attempt = 0
        self.failures = 0
        #: Output tokens of earlier slices.
        self.generated = 0
        #: How often its executor was lost under it.
        self.losses = 0
        self.executor: str | None = None
        #: The executor where the last attempt failed; another one is preferred.
        self.avoid: str | None = None
        #: When it last became ready, and when its last attempt started.
        self.ready_at = 0.0
        self.started_at = 0.0
        self.result: TaskResult | None = None

    @property
    def job(self) -> Job:
        return self.stage.job

    @property
    def ref(self) -> TaskRef:
        return TaskRef(self.stage.job.id, self.stage.name, self.index)

    @property
    def pool(self) -> str:
        return self.stage.pool

    def become(self, state: TaskState) -> None:
        """The next step of its life.

        Raises InvalidTransition, with the task's story, for a step the table does not have.
        """
        if state not in TASK_STEPS[self.state]:
            raise InvalidTransition(f"{self!r} cannot become {state}")
        self.state = state

    def __repr__(self) -> str:
        return (
            f"<task {self.ref} {self.state}, attempt {self.attempt}, {self.failures} failed, {self.losses} lost,"
            f" on {self.executor}>"
        )


class Stage:
    """A node of the job's DAG as far as it is known."""

    __slots__ = ("done_tasks", "job", "order", "ready", "spec", "state", "tasks")

    def __init__(self, job: Job, spec: StageSpec, order: int) -> None:
        self.job = job
        self.spec = spec
        #: Position in the job's topological order; ties within a job end here.
        self.order = order
        self.state = StageState.WAITING
        #: None until the world revealed how many tasks there are.
        self.tasks: tuple[Task, ...] | None = None
        #: Indices of tasks that could be dispatched now, ascending.
        self.ready: list[int] = []
        self.done_tasks = 0

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def kind(self) -> StageKind:
        return self.spec.kind

    @property
    def pool(self) -> str:
        return self.spec.pool

    @property
    def is_over(self) -> bool:
        """Done or skipped: children need not wait for it."""
        return self.state in (StageState.DONE, StageState.SKIPPED)

    @property
    def is_revealed(self) -> bool:
        """Known to run, with its tasks."""
        return self.tasks is not None

    @property
    def is_startable(self) -> bool:
        """Revealed, not started, and nothing to wait for any more."""
        return self.state is StageState.WAITING and self.is_revealed and self.job.parents_over(self)

    @property
    def is_active(self) -> bool:
        """Work of its own is ready, runs or is being expanded (a dynamic stage has none)."""
        return self.kind is not StageKind.DYNAMIC and self.state in (StageState.READY, StageState.EXPANDING)

    def become(self, state: StageState) -> None:
        """The next step of its life.

        Raises InvalidTransition for a step the table does not have.
        """
        if state not in STAGE_STEPS[self.state]:
            raise InvalidTransition(f"stage {self.job.id}/{self.name} is {self.state} and cannot become {state}")
        self.state = state

    def __repr__(self) -> str:
        return f"<stage {self.job.id}/{self.name} {self.state}, tasks {self.done_tasks}/{len(self.tasks or ())}>"


class Job:
    """One run of an application on one input."""

    __slots__ = (
        "application",
        "arrived_at",
        "due",
        "features",
        "id",
        "job_class",
        "number",
        "open_stages",
        "revision",
        "running",
        "stages",
        "status",
        "tenant",
    )

    def __init__(
        self,
        id: str,
        number: int,
        application: Application,
        arrived_at: float,
        job_class: JobClass = JobClass.STANDARD,
        tenant: str = "",
        features: Mapping[str, str | int] | None = None,
        due: float | None = None,
    ) -> None:
        self.id = id
        #: Submission order.
        self.number = number
        self.application = application
        self.arrived_at = arrived_at
        self.job_class = job_class
        self.tenant = tenant
        #: What was known of its input at submission.
        self.features: Mapping[str, str | int] = features or {}
        #: When it should be over; None: it has no deadline.
        self.due = due
        self.status = JobStatus.QUEUED
        self.stages: dict[str, Stage] = {}
        for spec in application.stages:
            self.stages[spec.name] = Stage(self, spec, len(self.stages))
        #: Stages that are neither done nor skipped.
        self.open_stages = len(self.stages)
        #: Grows with everything that is found out about the job: a stage revealed, skipped or over, a task done.
        self.revision = 0
        #: Tasks that run now, by reference, in order of dispatch.
        self.running: dict[TaskRef, Task] = {}

    def add(self, spec: StageSpec) -> Stage:
        """A stage the application did not know (generated by a planner, or recorded off-profile)."""
        stage = self.stages[spec.name] = Stage(self, spec, len(self.stages))
        self.open_stages += 1
        return stage

    def inner(self, dynamic: str) -> list[Stage]:
        """The stages that a plan put in the place of a dynamic stage."""
        return [s for s in self.stages.values() if s.spec.parent == dynamic]

    def dissolve(self) -> None:
        """Lets go of its stages, and they of their tasks; the job is over and nobody asks about it any more.

        Job, stages and tasks know each other. Without this only a full garbage collection frees them, which looks at
        every object of every job: with 10,000 active ones the event loop stands still for half a second.
        """
        for stage in self.stages.values():
            stage.tasks = None
        self.stages.clear()

    def parents_over(self, stage: Stage) -> bool:
        return all(self.stages[p].is_over for p in stage.spec.after)

    def __repr__(self) -> str:
        return f"<job {self.id} {self.application.name} {self.status}, {self.open_stages} stages open>"


class Executor:
    """Something with slots in one pool: an engine or a worker."""

    __slots__ = ("id", "order", "pool", "running", "slots")

    def __init__(self, id: str, pool: str, slots: int, order: int) -> None:
        self.id = id
        self.pool = pool
        self.slots = slots
        #: Order of first joining; ties of least-loaded placement end here.
        self.order = order
        self.running: dict[TaskRef, Task] = {}

    @property
    def free(self) -> int:
        return max(0, self.slots - len(self.running))

    def __repr__(self) -> str:
        return f"<executor {self.id} of {self.pool}, {len(self.running)}/{self.slots}>"

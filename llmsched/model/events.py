"""What the world tells the scheduler (events, past tense) and what the scheduler wants done (commands).

All are plain values: they can be compared, pickled and replayed. A batch is everything that was due at one instant
(simulated) or waiting in the queue (live).

    JobSubmitted     a job and what is known of it at submission
    StageExpanded    a stage is complete, and this is what its completion revealed
    StagesRevealed   more stages are known, though none completed: somebody asked for more
    StageWithdrawn   nobody waits for a stage any more: what of it runs is to stop, and it counts as done
    StageFailed      a stage completed, but what it revealed cannot be used (a plan outside its candidates, …)
    TaskFinished     one attempt of a task succeeded
    TaskFailed       one attempt of a task did not
    SliceEnded       one attempt was capped and reached its cap: the task wants to go on
    ExecutorJoined   an executor offers slots (again); a known executor changes its number of slots: 0 drains it
    ExecutorLost     an executor is gone, with everything that ran on it
    JobCancelled     somebody does not want the job any more
    Wakeup           the time `Scheduler.next_wakeup` asked for has come

    Dispatch         run this attempt of a task on this executor
    CancelTask       stop this attempt; its outcome no longer matters
    FinishJob        the job has this outcome, final
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

from llmsched.model.application import Application
from llmsched.model.prompt import PromptText
from llmsched.model.spec import StageSpec


class TaskRef(NamedTuple):
    """Names one task of one job everywhere."""

    job: str
    stage: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs

    def __str__(self) -> str:
        return f"{self.job}/{self.stage}[{self.index}]"


class JobClass(IntEnum):
    """Strict priority classes: work of an earlier class is always preferred to work of a later one."""

    INTERACTIVE = 0
    STANDARD = 1
    BATCH = 2

    @property
    def label(self) -> str:
        return self.name.lower()


class Outcome(StrEnum):
    """How a job ended, exactly once."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a finished attempt cost. Tokens for LLM tasks, wall seconds for both kinds."""

    duration: float
    prompt_tokens: int = 0
    output_tokens: int = 0


class Reveal(NamedTuple):
    """A stage is now known to run, with one task per entry of `prompt_tokens` (0: unknown, or regular).

    `spec.after` lists the stages it really waits for; a dynamic placeholder is revealed without tasks.
    texts: what is known of each task's prompt, for policies that ask; () where nothing is.
    """

    spec: StageSpec
    prompt_tokens: tuple[int, ...] = ()
    texts: tuple[PromptText | None, ...] = ()


# --------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """number: submission order, unique. arrived_at: may lie before the batch (restored jobs).

    features: what is known of its input, such as its size (`llmsched.model.recording.FEATURES`). due: when it should be
    over; None: it has no deadline.
    """

    job: str
    number: int
    application: Application
    arrived_at: float
    reveals: tuple[Reveal, ...]
    skipped: tuple[str, ...] = ()
    job_class: JobClass = JobClass.STANDARD
    tenant: str = ""
    features: Mapping[str, str | int] = field(default_factory=dict, hash=False)
    due: float | None = None


@dataclass(frozen=True, slots=True)
class StageExpanded:
    """`stage` is complete. results: what its tasks cost, given only when a stored stage is restored.

    Of one job, these arrive in the order in which they were found out: a reveal may name stages of an earlier one.
    """

    job: str
    stage: str
    reveals: tuple[Reveal, ...] = ()
    skipped: tuple[str, ...] = ()
    results: tuple[TaskResult, ...] = ()


@dataclass(frozen=True, slots=True)
class StagesRevealed:
    """More of a job's structure is known although none of its stages completed just now: somebody asked for more."""

    job: str
    reveals: tuple[Reveal, ...]


@dataclass(frozen=True, slots=True)
class StageWithdrawn:
    """Nobody waits for the stage any more: what of it runs is stopped, and it counts as done, its tasks with `result`.

    The stage was revealed, and what it waits for is over. It completes with `StageExpanded`, like any other.
    """

    job: str
    stage: str
    result: TaskResult


@dataclass(frozen=True, slots=True)
class StageFailed:
    job: str
    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class TaskFinished:
    task: TaskRef
    attempt: int
    result: TaskResult


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """reason: one sentence, its first word a code. retry_after: seconds the world asked us to wait.

    reached: False if the executor never heard of the attempt; it then counts as a lost executor, not as a failure.
    """

    task: TaskRef
    attempt: int
    reason: str
    retryable: bool = True
    retry_after: float = 0.0
    reached: bool = True


@dataclass(frozen=True, slots=True)
class SliceEnded:
    """output_tokens: what this attempt generated; the next attempt continues behind it."""

    task: TaskRef
    attempt: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class ExecutorJoined:
    executor: str
    pool: str
    slots: int


@dataclass(frozen=True, slots=True)
class ExecutorLost:
    executor: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class JobCancelled:
    job: str


@dataclass(frozen=True, slots=True)
class Wakeup:
    pass


Event = (
    JobSubmitted
    | StageExpanded
    | StagesRevealed
    | StageWithdrawn
    | StageFailed
    | TaskFinished
    | TaskFailed
    | SliceEnded
    | ExecutorJoined
    | ExecutorLost
    | JobCancelled
    | Wakeup
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that are due at the same moment, in the order they happened."""

    at: float
    events: tuple[Event, ...]


# ------------------------------------------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class Dispatch:
    """max_tokens: cap for slice-level policies. priority: vLLM's key, smaller first. why: what the policy went by."""

    task: TaskRef
    attempt: int
    executor: str
    max_tokens: int | None = None
    priority: int | None = None
    why: Mapping[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class CancelTask:
    task: TaskRef
    attempt: int
    executor: str


@dataclass(frozen=True, slots=True)
class FinishJob:
    job: str
    outcome: Outcome
    reason: str = ""


Command = Dispatch | CancelTask | FinishJob

"""What a policy is: it hears what changed, and says which ready task it would start next in a pool.

The core calls `on` for every change, `begin` once per batch, and `picks` for each pool that has both a free slot and a
ready task; it takes as many picks as there are slots. A policy never mutates the view and never learns which
world it runs in. Most policies are a sort key: derive from `KeyPolicy` where all tasks of a stage have the same, from
`TaskKeyPolicy` where each has its own.

Ties end in submission order: (arrival, job number, stage, task).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from sortedcontainers import SortedKeyList

from llmsched.model.job import Executor, Job, Stage, StageState, Task

# -------------------------------------------------------------------------------- what a policy gets to hear


class JobArrived(NamedTuple):
    job: Job


class JobChanged(NamedTuple):
    """New evidence or structure: a stage of the job is complete, skipped or revealed."""

    job: Job


class JobLeft(NamedTuple):
    job: Job


class StageReady(NamedTuple):
    """The stage has ready tasks now and had none before."""

    stage: Stage


class StageDrained(NamedTuple):
    """The stage had ready tasks and has none any more."""

    stage: Stage


class TaskReady(NamedTuple):
    """A task waits again that ran before (its slice, its executor or its back-off is over), beside others of its stage.

    Where none of its stage was ready, `StageReady` tells of it instead.
    """

    task: Task


class TaskStarted(NamedTuple):
    task: Task


class TaskEnded(NamedTuple):
    """An attempt is over, well or not: see the task's state."""

    task: Task


Change = JobArrived | JobChanged | JobLeft | StageReady | StageDrained | TaskReady | TaskStarted | TaskEnded


class Pick(NamedTuple):
    """A task to start next. max_tokens: slice cap. engine: placement wish. priority: vLLM's key, smaller first.

    why: what the policy went by, for people: `estimate` (seconds of work), `reduction` (bit seconds), `draw`,
    `explored`, whatever else its docstring names.
    """

    task: Task
    max_tokens: int | None = None
    engine: str | None = None
    priority: int | None = None
    why: Mapping[str, Any] | None = None


@dataclass(slots=True)
class View:
    """What policies see: the time of the batch and the scheduler's own state, not to be changed."""

    now: float = 0.0
    #: Unfinished jobs by id, in submission order.
    jobs: dict[str, Job] = field(default_factory=dict)
    #: Pool -> stages with ready tasks, by (job id, stage name), in the order they became ready.
    ready: dict[str, dict[tuple[str, str], Stage]] = field(default_factory=dict)
    #: Executors by id, in order of joining.
    executors: dict[str, Executor] = field(default_factory=dict)
    #: Grows with every executor that joins, changes its slots or is lost.
    machines: int = 0

    def ready_stages(self, pool: str) -> Iterable[Stage]:
        return self.ready.get(pool, {}).values()

    def in_pool(self, pool: str) -> Iterator[Executor]:
        return (e for e in self.executors.values() if e.pool == pool)


class Policy(Protocol):
    """Ready tasks to order, per pool. Implementations are cheap to create, deterministic and picklable."""

    #: Whether `picks` itself keeps priority classes apart; otherwise the core sorts the picks by class, stably.
    keeps_classes: bool

    def on(self, change: Change, view: View) -> None: ...

    def begin(self, view: View) -> None: ...

    def picks(self, pool: str, view: View) -> Iterator[Pick]: ...


def reads_prompts(policy: Policy) -> bool:
    """Whether a policy, or one that it wraps, goes by what prompts are like; then whoever runs it should say so."""
    inner: Policy | None = getattr(policy, "policy", None)
    return bool(getattr(policy, "reads_prompts", False)) or (inner is not None and reads_prompts(inner))


# ------------------------------------------------------------------------------------------------ key policies


def _sort_key(entry: tuple[Any, ...]) -> tuple[Any, ...]:
    return entry[:-1]


#: Id and revision of a job, and the states of its stages: a dynamic stage may begin without a new revision.
_Standing = tuple[str, int, list[StageState]]


def _standing(job: Job) -> _Standing:
    return job.id, job.revision, [stage.state for stage in job.stages.values()]


def _is_alone(stage: Stage) -> bool:
    """Whether no other stage of its job is ready."""
    return not any(other.ready for other in stage.job.stages.values() if other is not stage)


class KeyPolicy(ABC):
    """A policy that orders ready stages by a key: override `key`, ascending, and nothing else.

    Stages are kept sorted, so one decision costs O(log n) per change however many jobs wait. A key may depend on
    everything in the job; it is asked again when the job changed. A key that depends on time does not fit here.
    """

    keeps_classes = True
    #: What the key is called where a decision is explained.
    key_name = "key"

    def __init__(self) -> None:
        self._queues: dict[str, SortedKeyList[Any, Any]] = {}
        self._entries: dict[tuple[str, str], tuple[Any, ...]] = {}
        #: What the last change sorted in, if it sorted in a stage, and how its job stood then.
        self._newest: tuple[Stage, _Standing] | None = None

    @abstractmethod
    def key(self, stage: Stage, view: View) -> Any:
        """What to sort by, smallest first. Comparable with every other key of this policy."""

    def on(self, change: Change, view: View) -> None:
        newest, self._newest = self._newest, None
        match change:
            case StageReady(stage):
                self._insert(stage, view)
                self._newest = stage, _standing(stage.job)
            case StageDrained(stage):
                self._remove(stage)
            case JobChanged(job):
                # Of most jobs that change, one stage became ready just now: its key cannot have changed since, and an
                # estimate costs more than all else that is done for an arrival.
                if newest is None or newest[1] != _standing(job) or not _is_alone(newest[0]):
                    self.rekey(job, view)
            case _:
                pass

    def rekey(self, job: Job, view: View) -> None:
        """Sorts the job's ready stages in again: its key may have changed."""
        for stage in job.stages.values():
            if stage.ready:
                self._remove(stage)
                self._insert(stage, view)

    def begin(self, view: View) -> None:  # noqa: B027 (a default, to be overridden only by who needs it)
        """Nothing to do: the queues are kept in order by `on`."""

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        for _, key, *_, stage in self._queues.get(pool, ()):
            why = {self.key_name: key}
            for index in stage.ready:
                yield Pick(stage.tasks[index], why=why)

    def _insert(self, stage: Stage, view: View) -> None:
        job = stage.job
        entry = (job.job_class, self.key(stage, view), job.arrived_at, job.number, stage.order, stage)
        queue = self._queues.get(stage.pool)
        if queue is None:
            queue = self._queues[stage.pool] = SortedKeyList(key=_sort_key)
        queue.add(entry)
        self._entries[job.id, stage.name] = entry

    def _remove(self, stage: Stage) -> None:
        entry = self._entries.pop((stage.job.id, stage.name), None)
        if entry is not None:
            self._queues[stage.pool].remove(entry)


class TaskKeyPolicy(ABC):
    """A policy that orders ready tasks, one by one, by a key: override `key`, ascending.

    Keys need only be comparable within a pool. `rekey` sorts a task in again when its key has changed; a policy whose
    keys depend on time does so in `begin`.
    """

    keeps_classes = True
    #: What the key is called where a decision is explained.
    key_name = "key"

    def __init__(self) -> None:
        self._queues: dict[str, SortedKeyList[Any, Any]] = {}
        #: Entries of ready tasks by stage, then by index of the task.
        self._entries: dict[tuple[str, str], dict[int, tuple[Any, ...]]] = {}

    @abstractmethod
    def key(self, task: Task, view: View) -> Any:
        """What to sort by, smallest first. Asked once, when the task becomes ready."""

    def pick(self, task: Task, key: Any, view: View) -> Pick:
        """The pick of a task with this key."""
        return Pick(task, why={self.key_name: key})

    def on(self, change: Change, view: View) -> None:
        match change:
            case StageReady(stage):
                assert stage.tasks is not None, stage
                for index in stage.ready:
                    self._insert(stage.tasks[index], view)
            case TaskReady(task):
                self._insert(task, view)
            case TaskStarted(task):
                self._remove(task)
            case StageDrained(stage):
                for entry in self._entries.pop((stage.job.id, stage.name), {}).values():
                    self._queues[stage.pool].remove(entry)
            case _:
                pass

    def rekey(self, task: Task, view: View) -> None:
        """Sorts a ready task in again: its key may have changed. Nothing happens to one that is not ready."""
        if self._remove(task):
            self._insert(task, view)

    def begin(self, view: View) -> None:  # noqa: B027 (a default, to be overridden only by who needs it)
        """Nothing to do: the queues are kept in order by `on`."""

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        for _, key, *_, task in self._queues.get(pool, ()):
            yield self.pick(task, key, view)

    def _insert(self, task: Task, view: View) -> None:
        stage, job = task.stage, task.job
        entry = (job.job_class, self.key(task, view), job.arrived_at, job.number, stage.order, task.index, task)
        queue = self._queues.get(stage.pool)
        if queue is None:
            queue = self._queues[stage.pool] = SortedKeyList(key=_sort_key)
        queue.add(entry)
        self._entries.setdefault((job.id, stage.name), {})[task.index] = entry

    def _remove(self, task: Task) -> bool:
        entry = self._entries.get((task.job.id, task.stage.name), {}).pop(task.index, None)
        if entry is None:
            return False
        self._queues[task.pool].remove(entry)
        return True

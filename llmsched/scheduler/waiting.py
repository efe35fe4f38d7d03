"""Why a job is not further: what of it runs, what waits for what, and who is before it in each pool.

Only looks. The order is the policy's own, asked as a decision would ask it, without making one: `picks` changes nothing
(every policy is held to that). Policies that lay down an order per decision, as `llmsched` does, show that of the last
one; what became ready since has no place in it yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from llmsched.model.job import Job, Stage, StageState, Task, TaskState
from llmsched.model.kinds import StageKind
from llmsched.scheduler.core import Scheduler

#: Tasks that are looked at to find a job's place, per pool: some milliseconds.
LOOKED_AT = 2_000
#: Jobs before it that are named.
NAMED = 10


@dataclass(frozen=True, slots=True)
class Ahead:
    """A job that goes before another in one pool: its tasks that do, and what the policy goes by for the first."""

    job: Job
    tasks: int
    why: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job stands in a pool that has ready tasks of it.

    place: tasks of other jobs before its first, None where the policy has not placed it (yet). is_exact: False if there
    may be more, because `looked_at` ran out. ahead: the first of the jobs before it, in order.
    """

    pool: str
    ready: int
    place: int | None
    is_exact: bool
    jobs_ahead: int
    ahead: tuple[Ahead, ...]
    why: Mapping[str, Any] | None
    slots: int
    running: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is to be said of an unfinished job. blocked: revealed stages that wait, and for which unfinished ones."""

    places: tuple[Place, ...]
    running: tuple[Task, ...]
    backing_off: tuple[Task, ...]
    blocked: tuple[tuple[Stage, tuple[str, ...]], ...]


def waiting(scheduler: Scheduler, job: Job, *, looked_at: int = LOOKED_AT, named: int = NAMED) -> Waiting:
    """Why `job`, one of the scheduler's view, is not further."""
    ready: dict[str, int] = {}
    for stage in job.stages.values():
        if stage.ready:
            ready[stage.pool] = ready.get(stage.pool, 0) + len(stage.ready)
    tasks = [task for stage in job.stages.values() for task in stage.tasks or ()]
    revealed = (s for s in job.stages.values() if s.state is StageState.WAITING and s.is_revealed)
    blocked = [(s, _parents(s)) for s in revealed if s.kind is not StageKind.DYNAMIC]
    return Waiting(
        places=tuple(_place(scheduler, job, pool, n, looked_at, named) for pool, n in ready.items()),
        running=tuple(job.running.values()),
        backing_off=tuple(task for task in tasks if task.state is TaskState.BACKOFF),
        blocked=tuple(blocked),
    )


def _parents(stage: Stage) -> tuple[str, ...]:
    """The unfinished stages that it waits for."""
    return tuple(name for name in stage.spec.after if not stage.job.stages[name].is_over)


def _place(scheduler: Scheduler, job: Job, pool: str, ready: int, looked_at: int, named: int) -> Place:
    view = scheduler.view
    before: dict[str, tuple[Job, int, Mapping[str, Any] | None]] = {}
    place, why, seen = None, None, 0
    picks = scheduler.policy.picks(pool, view)
    if not scheduler.policy.keeps_classes and len({s.job.job_class for s in view.ready_stages(pool)}) > 1:
        picks = iter(sorted(picks, key=lambda pick: pick.task.job.job_class))
    for pick in islice(picks, looked_at):
        if pick.task.state is not TaskState.READY:
            continue
        if pick.task.job is job:
            place, why = seen, pick.why
            break
        seen += 1
        other = pick.task.job
        _, n, reason = before.get(other.id, (other, 0, pick.why))
        before[other.id] = other, n + 1, reason
    executors = list(view.in_pool(pool))
    return Place(
        pool=pool,
        ready=ready,
        place=place,
        is_exact=place is not None,
        jobs_ahead=len(before),
        ahead=tuple(Ahead(*entry) for entry in islice(before.values(), named)),
        why=why,
        slots=sum(e.slots for e in executors),
        running=sum(len(e.running) for e in executors),
    )

"""`carbyne`: every job has a fair share of the machines and gives up what of it can wait, to the shortest jobs.

    share   d_j = mean work per pool / capacity, scaled to a maximum of 1;  x = 1 / max over pools of sum_j d_j
            quota_j = max(1, floor(x d_j capacity)) slots of each pool                   (dominant resource fairness)
    plan    T_j = when what is left of the job would be over within its quota: a list schedule, longest path first
            latest start of each task: the list schedule of the reversed graph in the same quota, mirrored at T_j
    must    ready tasks with latest start <= now + delta, jobs by the dominant share they hold, then by arrival
    rest    what is left over: jobs by mean work of their tasks that have not started, within a job by latest start,
            then by the longest path behind the task

A job's quota less what it holds: a slot of a running task is free for the plan when that task ends by its mean, and at
most so many tasks must start as the job may hold more. Plans are in reference seconds, of the padded template and its
means (`Prior`), as far as the job has not unfolded: what is skipped is gone, what is revealed has the tasks it has. A
plan nobody knows yet is one task in each pool it may use. A job whose means are exceeded is late, and must.

Everything of one job is kept until the job or its quota changes, so slack melts away as time passes. A decision plans
at most `_PLANNED` jobs, those that changed first; the others stand by their last plan, one without any as if it had no
slack. A job is planned in at most about `_BUNDLES` pieces. The rest is O(log n) per change and per job passed over.

Source: Carbyne (OSDI'16) and its public simulator; specification 7. The simulator plans jobs again with all that is
left over; the order of the rest stands for that here. Ours: a quota is at least one slot, so with more jobs than slots
every job insists on one and the order is that of the shares held, then of arrival; no more must than the quota has to
spare; seconds are what a task takes alone, however full the batch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, islice
from math import floor, inf, isfinite
from random import Random
from typing import Any, NamedTuple, assert_never

from sortedcontainers import SortedKeyList

from llmsched.errors import InvalidInput, show
from llmsched.model.application import Application
from llmsched.model.events import JobClass
from llmsched.model.job import Job, Stage, Task, TaskState
from llmsched.model.kinds import StageKind
from llmsched.policies.base import (
    Change,
    JobArrived,
    JobChanged,
    JobLeft,
    Pick,
    StageDrained,
    StageReady,
    TaskEnded,
    TaskReady,
    TaskStarted,
    View,
)
from llmsched.profiler import Knowledge
from llmsched.profiler.prior import Prior, Priors

#: Jobs that one decision plans: some milliseconds.
_PLANNED = 24
#: Pieces in which a job is planned; beyond, tasks of a stage are planned as bundles that follow each other.
_BUNDLES = 256
#: Rounding errors of sums of seconds.
_TINY = 1e-9

#: (name, version) of an application.
_Version = tuple[str, int]


class Part(NamedTuple):
    """Like tasks of a stage that have not started: so many bundles of `size` tasks, each task `seconds` long."""

    pool: str
    bundles: int
    seconds: float
    size: int = 1


class Held(NamedTuple):
    """A running task. ends: seconds from now, by its mean. lane: whether its slot is the job's to use again."""

    ends: float
    stage: int
    pool: str
    lane: bool


class Left(NamedTuple):
    """What is left of a job: parts of each stage, the stages it waits for and that wait for it, and what runs."""

    names: list[str]
    parts: list[list[Part]]
    before: list[list[int]]
    after: list[list[int]]
    held: list[Held]


class Plan(NamedTuple):
    """latest: stage -> moments when its tasks have to start, ascending. tails: stage -> longest path from its start on.

    score: mean seconds of all tasks that have not started.
    """

    latest: Mapping[str, Sequence[float]]
    tails: Mapping[str, float]
    score: float


class _Filed(NamedTuple):
    """Where a job stands in a pool. tasks: ready ones with their latest start, in its own order. spare: quota left."""

    by_share: tuple[Any, ...]
    by_score: tuple[Any, ...]
    tasks: list[tuple[float, Task]]
    spare: int


class _Queue:
    """Jobs with ready tasks of one class in one pool, in both orders."""

    __slots__ = ("by_score", "by_share")

    def __init__(self) -> None:
        self.by_share: SortedKeyList[Any, Any] = SortedKeyList(key=_sort_key)
        self.by_score: SortedKeyList[Any, Any] = SortedKeyList(key=_sort_key)


class Carbyne:
    """Altruistic scheduling. delta: seconds before its latest start when a task must go.

    altruism: probability that a job gives up what it does not need; another job insists on all that it could start
    within its quota. Drawn once per job, from `seed` and its id.
    Raises InvalidInput for a value that cannot be.
    """

    keeps_classes = True

    def __init__(
        self, knowledge: Knowledge | None = None, delta: float = 0.0, altruism: float = 1.0, seed: int = 0
    ) -> None:
        if isinstance(delta, bool) or not isinstance(delta, int | float) or not (isfinite(delta) and delta >= 0):
            raise InvalidInput(f"delta is {show(delta)}; it must be a number of seconds, 0 or more", field="delta")
        if isinstance(altruism, bool) or not isinstance(altruism, int | float) or not 0 <= altruism <= 1:
            raise InvalidInput(f"altruism is {show(altruism)}; it must be from 0 to 1", field="altruism")
        self.knowledge = knowledge or Knowledge()
        self._delta = delta
        self._altruism = altruism
        self._seed = seed
        self._priors = Priors(self.knowledge)
        self._revision = self.knowledge.revision
        #: Pool -> slots of its executors.
        self._capacity: dict[str, int] = {}
        #: Unfinished jobs of each version of an application.
        self._counts: dict[_Version, tuple[Application, int]] = {}
        self._quotas: dict[_Version, dict[str, int]] = {}
        #: Whether quotas may be different from what they were.
        self._is_recounted = False
        #: Jobs to be filed anew, in order of change.
        self._changed: dict[str, None] = {}
        #: Jobs to be planned anew: what changed in them, and what changed around them.
        self._unplanned: dict[str, None] = {}
        self._outdated: dict[str, None] = {}
        self._plans: dict[str, Plan] = {}
        #: Job -> pool -> where it stands.
        self._filed: dict[str, dict[str, _Filed]] = {}
        self._queues: dict[str, dict[JobClass, _Queue]] = {}

    # ------------------------------------------------------------------------------------------- what it hears

    def on(self, change: Change, view: View) -> None:
        match change:
            case JobArrived(job):
                self._count(job, 1)
                self._touch(job)
            case JobLeft(job):
                self._count(job, -1)
                self._forget(job)
            case JobChanged(job):
                self._touch(job)
            case StageReady(stage) | StageDrained(stage):
                self._touch(stage.job)
            case TaskReady(task) | TaskStarted(task) | TaskEnded(task):
                self._touch(task.job)
            case _:
                assert_never(change)

    def _touch(self, job: Job) -> None:
        self._changed[job.id] = self._unplanned[job.id] = None
        self._outdated.pop(job.id, None)

    def _count(self, job: Job, more: int) -> None:
        key = _version(job)
        count = self._counts.get(key, (job.application, 0))[1] + more
        if count:
            self._counts[key] = job.application, count
        else:
            del self._counts[key]
            self._quotas.pop(key, None)
        if not self._counts:
            self._priors = Priors(self.knowledge)
        self._is_recounted = True

    def _forget(self, job: Job) -> None:
        self._unfile(job)
        self._plans.pop(job.id, None)
        for waiting in (self._changed, self._unplanned, self._outdated):
            waiting.pop(job.id, None)

    # --------------------------------------------------------------------------------------------- what it says

    def begin(self, view: View) -> None:
        self._see_world(view)
        for id in list(islice(chain(self._unplanned, self._outdated), _PLANNED)):
            self._unplanned.pop(id, None)
            self._outdated.pop(id, None)
            self._changed[id] = None
            self._plans[id] = self._plan(view.jobs[id], view.now)
        for id in self._changed:
            self._unfile(view.jobs[id])
            self._file(view.jobs[id], view.now)
        self._changed.clear()

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        queues = self._queues.get(pool, {})
        for job_class in sorted(queues):
            queue = queues[job_class]
            gone: dict[str, int] = {}
            for *_, id in queue.by_share:
                filed = self._filed[id][pool]
                gone[id] = must = self._must(filed, view.now)
                for latest, task in filed.tasks[:must]:
                    yield Pick(task, why={"must": True, "slack": latest - view.now})
            for _, score, *_, id in queue.by_score:
                for latest, task in self._filed[id][pool].tasks[gone[id] :]:
                    yield Pick(task, why={"must": False, "slack": latest - view.now, "left": score})

    def _must(self, filed: _Filed, now: float) -> int:
        """How many of its tasks, the first ones, must start now."""
        count = 0
        for latest, _ in filed.tasks[: filed.spare]:
            if latest > now + self._delta + _TINY:
                break
            count += 1
        return count

    def _file(self, job: Job, now: float) -> None:
        """Puts the job where it belongs in each pool in which it has ready tasks."""
        plan = self._plans.get(job.id) or Plan({}, {}, self._prior(job).mean_work)
        ready: dict[str, list[tuple[float, float, int, Task]]] = {}
        for stage in job.stages.values():
            if not stage.ready:
                continue
            assert stage.tasks is not None, stage
            latest = plan.latest.get(stage.name, ())
            tail = plan.tails.get(stage.name, 0.0)
            own = ready.setdefault(stage.pool, [])
            for k, index in enumerate(stage.ready):
                own.append((latest[k] if k < len(latest) else now, -tail, stage.order, stage.tasks[index]))
        if not ready:
            return
        held = _held(job)
        share = max((n / max(1, self._capacity.get(pool, 0)) for pool, n in held.items()), default=0.0)
        quota = self._quotas.get(_version(job), {})
        last = job.arrived_at, job.number, job.id
        filed = self._filed[job.id] = {}
        for pool, tasks in ready.items():
            tasks.sort(key=_own_order)
            spare = max(0, quota.get(pool, 1) - held.get(pool, 0))
            entry = _Filed((0, share, *last), (0, plan.score, *last), [(at, task) for at, *_, task in tasks], spare)
            filed[pool] = entry
            queue = self._queues.setdefault(pool, {}).setdefault(job.job_class, _Queue())
            queue.by_share.add(entry.by_share)
            queue.by_score.add(entry.by_score)

    def _unfile(self, job: Job) -> None:
        for pool, filed in self._filed.pop(job.id, {}).items():
            queue = self._queues[pool][job.job_class]
            queue.by_share.remove(filed.by_share)
            queue.by_score.remove(filed.by_score)

    # ---------------------------------------------------------------------------------------------------- shares

    def _see_world(self, view: View) -> None:
        """Quotas for the jobs and machines there are; jobs whose quota or means changed are to be planned again."""
        capacity: dict[str, int] = {}
        for executor in view.executors.values():
            capacity[executor.pool] = capacity.get(executor.pool, 0) + executor.slots
        if capacity != self._capacity or self.knowledge.revision != self._revision:
            self._capacity, self._revision = capacity, self.knowledge.revision
            self._outdate(view, self._counts)
        elif not self._is_recounted:
            return
        self._is_recounted = False
        before, self._quotas = self._quotas, self._fair_quotas()
        self._outdate(view, {key: None for key, quota in self._quotas.items() if quota != before.get(key, quota)})

    def _outdate(self, view: View, versions: Mapping[_Version, object]) -> None:
        if versions:
            for job in view.jobs.values():
                if _version(job) in versions and job.id not in self._unplanned:
                    self._outdated[job.id] = None

    def _fair_quotas(self) -> dict[_Version, dict[str, int]]:
        """Slots of each pool that a job of each application may claim: dominant resource fairness."""
        demands: dict[_Version, dict[str, float]] = {}
        totals: dict[str, float] = {}
        for key, (application, count) in self._counts.items():
            demands[key] = self._demand(application)
            for pool, demand in demands[key].items():
                totals[pool] = totals.get(pool, 0.0) + count * demand
        x = 1.0 / max(totals.values(), default=1.0)
        return {
            key: {pool: max(1, floor(x * d * self._capacity[pool] + _TINY)) for pool, d in demand.items()}
            for key, demand in demands.items()
        }

    def _demand(self, application: Application) -> dict[str, float]:
        """Of each pool that is there, relative to the one that is needed most; nothing known: the same of each."""
        work = self._priors[application].work
        shares = {pool: w / self._capacity[pool] for pool, w in work.items() if self._capacity.get(pool) and w > 0}
        most = max(shares.values(), default=0.0)
        if most:
            return {pool: share / most for pool, share in shares.items()}
        return dict.fromkeys((stage.pool for stage in application.stages if self._capacity.get(stage.pool)), 1.0)

    # ----------------------------------------------------------------------------------------------------- plans

    def _prior(self, job: Job) -> Prior:
        return self._priors[job.application]

    def _is_altruistic(self, job: Job) -> bool:
        if 0 < self._altruism < 1:
            return Random(f"{self._seed}/{job.id}").random() < self._altruism
        return self._altruism == 1

    def _plan(self, job: Job, now: float) -> Plan:
        quota = self._quotas.get(_version(job), {})
        left = what_is_left(job, self._prior(job), now, quota)
        tails, heads = _paths(left, left.before, left.after), _paths(left, left.after, left.before)
        free: dict[str, list[float]] = {}
        closing: dict[str, list[float]] = {}
        for pool in {part.pool: None for parts in left.parts for part in parts}:
            busy = [held.ends for held in left.held if held.pool == pool and held.lane]
            free[pool] = [inf] * max(0, quota.get(pool, 1) - len(busy))
            closing[pool] = busy
        starts, end = list_schedule(left.parts, left.before, left.after, tails, free, left.held)
        mirror = None
        if self._is_altruistic(job):
            mirror = end
            lanes = {pool: _mirrored(free[pool], busy, end) for pool, busy in closing.items()}
            starts, _ = list_schedule(left.parts, left.after, left.before, heads, lanes)
        latest = {name: _moments(left.parts[k], starts[k], now, mirror) for k, name in enumerate(left.names)}
        score = sum(part.bundles * part.size * part.seconds for parts in left.parts for part in parts)
        return Plan(latest, dict(zip(left.names, tails, strict=True)), score)


def what_is_left(job: Job, prior: Prior, now: float, quota: Mapping[str, int]) -> Left:
    """The job's stages that are not over, with what is known of them, else with their means."""
    stages = [stage for stage in job.stages.values() if not stage.is_over]
    at = {stage.name: k for k, stage in enumerate(stages)}
    left = Left(list(at), [], [[] for _ in stages], [[] for _ in stages], [])
    most = max(1, _BUNDLES // max(1, len(stages)))
    for k, stage in enumerate(stages):
        parts, running = _parts(stage, prior)
        left.parts.append([_bundled(part, most) for part in parts])
        for task in running:
            ends = max(0.0, _seconds(stage, prior) - (now - task.started_at))
            left.held.append(Held(ends, k, stage.pool, False))
        for name in stage.spec.after:
            if name in at:
                _join(left, at[name], k)
        if stage.spec.parent in at:
            _join(left, k, at[stage.spec.parent])
    _open_lanes(left.held, quota)
    return left


def _join(left: Left, first: int, then: int) -> None:
    left.before[then].append(first)
    left.after[first].append(then)


def _open_lanes(held: list[Held], quota: Mapping[str, int]) -> None:
    """A job that holds more than its quota may start something only when it holds less: the last ones to end count."""
    held.sort()
    open_lanes: dict[str, int] = {}
    for k in reversed(range(len(held))):
        pool = held[k].pool
        open_lanes[pool] = open_lanes.get(pool, 0) + 1
        held[k] = held[k]._replace(lane=open_lanes[pool] <= quota.get(pool, 1))


def _parts(stage: Stage, prior: Prior) -> tuple[list[Part], list[Task]]:
    """Tasks of a stage that have not started, and those that run."""
    if stage.tasks is None:
        mean = prior.stages[stage.name]
        count = 1 if stage.kind is StageKind.DYNAMIC else mean.tasks
        return [Part(pool, count, work / count) for pool, work in mean.work.items()], []
    waiting = sum(task.state in (TaskState.READY, TaskState.BACKOFF) for task in stage.tasks)
    parts = [Part(stage.pool, waiting, _seconds(stage, prior))] if waiting else []
    return parts, [task for task in stage.tasks if task.state is TaskState.RUNNING]


def _seconds(stage: Stage, prior: Prior) -> float:
    """Mean of one task of a stage that is known to run."""
    return prior.each(stage.name, stage.spec.parent, stage.spec.candidate)


def _bundled(part: Part, most: int) -> Part:
    """The part in at most so many bundles."""
    if part.bundles <= most:
        return part
    size = -(-part.bundles // most)
    return part._replace(bundles=-(-part.bundles // size), size=size)


def _paths(left: Left, before: list[list[int]], after: list[list[int]]) -> list[float]:
    """Seconds of the longest path that begins with each stage, one task of each; 0 on a circle."""
    longest = [max((part.seconds * part.size for part in parts), default=0.0) for parts in left.parts]
    for held in left.held:
        longest[held.stage] = max(longest[held.stage], held.ends)
    waits = [len(then) for then in after]
    paths = [0.0] * len(longest)
    over = [k for k, count in enumerate(waits) if not count]
    for k in over:
        paths[k] = longest[k] + max((paths[then] for then in after[k]), default=0.0)
        for first in before[k]:
            waits[first] -= 1
            if not waits[first]:
                over.append(first)
    return paths


def list_schedule(
    parts: Sequence[Sequence[Part]],
    before: Sequence[Sequence[int]],
    after: Sequence[Sequence[int]],
    ranks: Sequence[float],
    lanes: Mapping[str, Sequence[float]],
    held: Sequence[Held] = (),
) -> tuple[list[list[float]], float]:
    """When each bundle of each stage starts, and when all is over, if no lane of a pool ever idles without need.

    parts, before, after, ranks: by stage; the larger rank goes first, then the earlier stage. lanes: when each lane of
    a pool closes, ascending; a bundle takes the first one that is open for as long as it takes. held: what runs, and
    opens its lane when it ends. Stages on a circle never start.
    """
    free = {pool: list(closing) for pool, closing in lanes.items()}
    starts: list[list[float]] = [[] for _ in parts]
    waits = [len(first) for first in before]
    todo = [sum(part.bundles for part in own) for own in parts]
    #: (when, stage, pool, when its lane closes; -1: no lane)
    events = [(h.ends, h.stage, h.pool, inf if h.lane else -1.0) for h in held]
    for h in held:
        todo[h.stage] += 1
    heapify(events)
    ready: dict[str, list[tuple[float, int, int, float]]] = {pool: [] for pool in free}
    opened = [k for k, count in enumerate(waits) if not count]
    now = 0.0
    while True:
        for k in opened:  # grows while it is read: a stage without tasks is over at once
            for part in parts[k]:
                heappush(ready[part.pool], (-ranks[k], k, part.bundles, part.seconds * part.size))
            if not todo[k]:
                _over(k, after, waits, opened)
        opened = []
        for pool, waiting in ready.items():
            open_lanes = free[pool]
            while waiting and open_lanes:
                rank, k, count, seconds = waiting[0]
                lane = bisect_left(open_lanes, now + seconds - _TINY)
                if lane == len(open_lanes):
                    break
                heappush(events, (now + seconds, k, pool, open_lanes.pop(lane)))
                starts[k].append(now)
                if count == 1:
                    heappop(waiting)
                else:
                    waiting[0] = rank, k, count - 1, seconds
        if not events:
            return starts, now
        now = events[0][0]
        while events and events[0][0] <= now:
            _, k, pool, closes = heappop(events)
            if closes >= 0 and pool in free:
                insort(free[pool], closes)
            todo[k] -= 1
            if not todo[k] and not waits[k]:
                _over(k, after, waits, opened)


def _over(stage: int, after: Sequence[Sequence[int]], waits: list[int], opened: list[int]) -> None:
    for then in after[stage]:
        waits[then] -= 1
        if not waits[then]:
            opened.append(then)


def _mirrored(free: Sequence[float], busy: Sequence[float], end: float) -> list[float]:
    """When lanes close in mirrored time: at the end of what runs in them. One never does: everything has its place."""
    lanes = sorted(end - ends for ends in busy)
    return [*lanes, *free] if free else [*lanes[:-1], inf]


def _moments(parts: Sequence[Part], starts: Sequence[float], now: float, mirror: float | None) -> list[float]:
    """Moments when tasks of a stage start, ascending. mirror: starts are in time mirrored at this; None: they are not.

    Only those of a revealed stage are ever asked for, and it has one part.
    """
    if not starts:
        return []
    _, _, seconds, size = parts[0]
    first = [now + start if mirror is None else now + mirror - start - size * seconds for start in starts]
    return sorted(at + k * seconds for at in first for k in range(size))


def _held(job: Job) -> dict[str, int]:
    held: dict[str, int] = {}
    for task in job.running.values():
        held[task.pool] = held.get(task.pool, 0) + 1
    return held


def _version(job: Job) -> _Version:
    return job.application.name, job.application.version


def _sort_key(entry: tuple[Any, ...]) -> tuple[Any, ...]:
    return entry[:-1]


def _own_order(entry: tuple[float, float, int, Task]) -> tuple[float, float, int, int]:
    latest, tail, order, task = entry
    return latest, tail, order, task.index

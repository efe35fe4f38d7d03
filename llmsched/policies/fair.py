"""Fair: every job that has work gets the same number of running tasks, per pool.

    run[j] = tasks of j that run in this pool
    while tasks wait:  j = argmin over jobs that wait of (run[j] / weight, arrival, number)
                       pick the next task of j, in topological order;  run[j] += 1

Jobs below `min_share` go before all others, by run / min_share. Nothing is preempted, so shares become equal only as
slots fall free. Without the increment one job would get all slots that fall free together.

`share="partition"` is what simulators of Decima call Fair: each job may use up to cap = ceil(slots / unfinished jobs)
slots of the pool, in order of arrival, except that jobs whose tasks freed a slot since the last dispatch come first;
what is free after that goes to whoever waits, in order of arrival. (In those simulators a job may exceed its cap with
the slots it freed itself; here the cap holds for all, or it would never give any back.)

Source: FairSchedulingAlgorithm of Spark (minShare, weight); "Fair" in LLMSched (arXiv:2504.03444), section V;
partition: Decima (SIGCOMM'19), hongzimao/decima-sim and ArchieGertsman/spark-sched-sim; specification 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from itertools import chain, groupby, islice
from math import ceil
from typing import Any, Literal, NamedTuple

from sortedcontainers import SortedKeyList

from llmsched.errors import InvalidInput, UnknownName, show
from llmsched.model.events import JobClass
from llmsched.model.job import Job, Stage, Task
from llmsched.policies.base import Change, JobLeft, Pick, StageDrained, StageReady, TaskEnded, TaskStarted, View
from llmsched.policies.weights import weights_from

Count = Literal["pool", "combined"]
Share = Literal["comparator", "partition"]


class Place(NamedTuple):
    """Where a job that waits for a pool stands. rank: by what it has now; the same for all under `partition`."""

    job_class: JobClass
    rank: tuple[int, float]
    arrived_at: float
    number: int


class Entry(NamedTuple):
    """A job that waits for a pool. stages: those that are ready there, by name."""

    place: Place
    job: Job
    stages: dict[str, Stage]


class Fair:
    """Least running tasks per weight first.

    count: running tasks of the pool, or of all pools "combined". share: see above. min_share: running tasks below which
    a job goes first. weights: by application, "chat=2,search=0.5" or a mapping, 1 for others. The last two are those of
    the comparator. Raises UnknownName or InvalidInput for a value that cannot be.
    """

    keeps_classes = True

    def __init__(
        self,
        count: Count = "pool",
        share: Share = "comparator",
        min_share: int = 0,
        weights: Mapping[str, float] | str = "",
    ) -> None:
        if count not in ("pool", "combined"):
            raise UnknownName.of("value of count", str(count), ("pool", "combined"), field="count")
        if share not in ("comparator", "partition"):
            raise UnknownName.of("value of share", str(share), ("comparator", "partition"), field="share")
        if isinstance(min_share, bool) or not isinstance(min_share, int) or min_share < 0:
            raise InvalidInput(
                f"min_share is {show(min_share)}; it must be a whole number from 0 up", field="min_share"
            )
        self._count = count
        self._share = share
        self._min_share = min_share
        self._weights = weights_from(weights, of="application")
        #: Job -> pool -> its tasks that run there.
        self._running: dict[str, dict[str, int]] = {}
        #: Pool -> jobs that wait for it, in order of their places.
        self._queues: dict[str, SortedKeyList[Any, Any]] = {}
        #: Job -> pool -> its entry in that pool's queue.
        self._entries: dict[str, dict[str, Entry]] = {}
        #: Pool -> jobs that freed a slot of it since the last dispatch, in that order.
        self._sources: dict[str, dict[str, None]] = {}

    def on(self, change: Change, view: View) -> None:
        match change:
            case StageReady(stage):
                self._ready(stage)
            case StageDrained(stage):
                self._drained(stage)
            case TaskStarted(task):
                self._sources.pop(task.pool, None)
                self._change(task, 1)
            case TaskEnded(task):
                self._sources.setdefault(task.pool, {})[task.job.id] = None
                self._change(task, -1)
            case JobLeft(job):  # its running tasks ended without a word
                self._running.pop(job.id, None)
                for jobs in self._sources.values():
                    jobs.pop(job.id, None)
            case _:
                pass

    def begin(self, view: View) -> None:
        """Nothing to do: the queues are kept in order by `on`."""

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        queue = self._queues.get(pool, ())
        return self._levelled(queue, pool) if self._share == "comparator" else self._partitioned(queue, pool, view)

    # ------------------------------------------------------------------------------------------------ the order

    def _levelled(self, queue: Iterable[Entry], pool: str) -> Iterator[Pick]:
        """Spark's comparator after every pick: jobs that have one already queue again, behind their new count."""
        ahead = iter(queue)
        head = next(ahead, None)
        #: Jobs picks were taken of: (place, running, job, what else waits); no two have the same place.
        again: list[tuple[Place, int, Job, Iterator[Task]]] = []
        while head is not None or again:
            if head is not None and (not again or head.place < again[0][0]):
                place, running, job, tasks = head.place, self._runs(head.job, pool), head.job, _tasks(head)
                head = next(ahead, None)
            else:
                place, running, job, tasks = heappop(again)
            if task := next(tasks, None):
                yield Pick(task, why={"running": running})
                place = place._replace(rank=self._rank(job, running + 1))
                heappush(again, (place, running + 1, job, tasks))

    def _partitioned(self, queue: Iterable[Entry], pool: str, view: View) -> Iterator[Pick]:
        """Class by class: sources, then everybody, up to the cap; then the rest."""
        cap = ceil(sum(e.slots for e in view.in_pool(pool)) / max(1, len(view.jobs)))
        for job_class, of_class in groupby(queue, key=lambda entry: entry.place.job_class):
            sources = self._waiting_sources(pool, job_class)
            others = (entry for entry in of_class if entry.job.id not in sources)
            rest: list[Iterator[Task]] = []
            for entry in chain(sources.values(), others):
                tasks = _tasks(entry)
                for task in islice(tasks, max(0, cap - self._runs(entry.job, pool))):
                    yield Pick(task, why={"cap": cap})
                rest.append(tasks)
            for task in chain.from_iterable(rest):
                yield Pick(task, why={"cap": cap})

    def _waiting_sources(self, pool: str, job_class: JobClass) -> dict[str, Entry]:
        entries = {id: self._entries.get(id, {}).get(pool) for id in self._sources.get(pool, ())}
        return {id: entry for id, entry in entries.items() if entry and entry.place.job_class == job_class}

    def _rank(self, job: Job, running: int) -> tuple[int, float]:
        if self._share == "partition":
            return 0, 0.0
        if running < self._min_share:
            return 0, running / self._min_share
        return 1, running / self._weights.get(job.application.name, 1.0)

    # --------------------------------------------------------------------------------------------- the accounts

    def _runs(self, job: Job, pool: str) -> int:
        running = self._running.get(job.id)
        if running is None:
            return 0
        return running.get(pool, 0) if self._count == "pool" else sum(running.values())

    def _change(self, task: Task, by: int) -> None:
        pool, job = task.pool, task.job
        running = self._running.setdefault(job.id, {})
        running[pool] = running.get(pool, 0) + by
        if not running[pool]:
            del running[pool]
        if not running:
            del self._running[job.id]
        for waits in self._entries.get(job.id, {}) if self._count == "combined" else (pool,):
            self._sort_in_again(job, waits)

    def _sort_in_again(self, job: Job, pool: str) -> None:
        entry = self._entries.get(job.id, {}).get(pool)
        if entry is not None and (place := self._place(job, pool)) != entry.place:
            self._queues[pool].remove(entry)
            entry = self._entries[job.id][pool] = entry._replace(place=place)
            self._queues[pool].add(entry)

    def _place(self, job: Job, pool: str) -> Place:
        return Place(job.job_class, self._rank(job, self._runs(job, pool)), job.arrived_at, job.number)

    def _ready(self, stage: Stage) -> None:
        job, pool = stage.job, stage.pool
        entries = self._entries.setdefault(job.id, {})
        if pool not in entries:
            if pool not in self._queues:
                self._queues[pool] = SortedKeyList(key=_place_of)
            entries[pool] = Entry(self._place(job, pool), job, {})
            self._queues[pool].add(entries[pool])
        entries[pool].stages[stage.name] = stage

    def _drained(self, stage: Stage) -> None:
        job, pool = stage.job, stage.pool
        entries = self._entries[job.id]
        entry = entries[pool]
        del entry.stages[stage.name]
        if not entry.stages:
            self._queues[pool].remove(entry)
            del entries[pool]
        if not entries:
            del self._entries[job.id]


def _place_of(entry: Entry) -> Place:
    return entry.place


def _tasks(entry: Entry) -> Iterator[Task]:
    """The job's tasks that wait for the pool, in topological order."""
    for stage in sorted(entry.stages.values(), key=lambda s: s.order):
        for index in stage.ready:
            assert stage.tasks is not None, stage
            yield stage.tasks[index]

"""`scls`, slice-level scheduling: no dispatch generates more than a slice, and slices are served in planned batches.

With at most S tokens per dispatch, what a batch costs is known beforehand, whatever its requests will say in all:
Tserve(N, L, S) = prefill(N x L) + S x l(N), for N requests of which the longest input (prompt and what was generated so
far) has L tokens. Every interval, or when an engine stands empty, all requests that wait are planned anew:

    1. sort them by input length
    2. cut the sorted list into batches of consecutive requests, at least sum of Tserve: `cut`, a dynamic program
    3. longest batch first, each to the engine with the least assigned time (max-min)
    4. serve the batches in that order, S tokens per request; who is not done then waits again, S tokens longer

    interval = max(interval_share x least assigned time of an engine, least_interval)

Engines batch continuously, so a batch here is a group that is sent to one engine, not one that ends together: requests
are admitted wherever their engine has a slot. `static` holds a batch back until its engine has finished all it runs, as
in the source, but at best: the core never lets a slot stand free while anything waits, and fills it with what comes
next in the order, on the engine that has the fewest. What became ready since the last plan follows the plan, shortest
input first, on any engine; so does what is planned for an engine without a slot. What an engine runs is assigned to it
until the estimated end of its longest slice.

Absent: memory (the source also bounds N by the KV cache, which nobody knows here; N ends at the slots of the largest
engine) and a cache of prefixes (each slice is taken to prefill its whole input, as in the source). Padding to the
longest input is fiction on a paged engine, and kept as the measure of likeness it is.
Each priority class is planned by itself, earlier ones first. At most `planned` requests are, those that have waited
longest: the program takes O(n x slots). Regular tasks are first come, first served by the arrival of their job.
Source: SCLS (arXiv:2406.13511); specification 10.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heapify, heapreplace, nsmallest
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from llmsched.errors import InvalidInput, show
from llmsched.model.events import JobClass
from llmsched.model.job import Executor, Task
from llmsched.model.kinds import StageKind
from llmsched.policies.base import Change, Pick, StageDrained, TaskKeyPolicy, TaskStarted, View
from llmsched.profiler import Knowledge

#: Where LLM tasks stand in the queue of a pool, behind regular ones if it has both.
_REGULAR, _LLM = 0, 1


class Planned(NamedTuple):
    """What a plan says of a request. batch: its number in the class, in the order of service, from 0."""

    task: Task
    engine: str
    batch: int


class Batching(NamedTuple):
    """sizes: of the batches, in the order of the list. costs: seconds of the first i requests, (n + 1,)."""

    sizes: list[int]
    costs: list[float]


class Scls(TaskKeyPolicy):
    """Batches of slices, planned per interval.

    slice: S, tokens per dispatch. static: a batch waits for its engine to be empty, where that is possible.
    interval_share and least_interval (seconds): of the time between plans. planned: requests that are planned at once.
    Raises InvalidInput for a value that cannot be.
    """

    def __init__(
        self,
        knowledge: Knowledge | None = None,
        slice: int = 128,
        static: bool = False,
        interval_share: float = 0.5,
        least_interval: float = 3.0,
        planned: int = 512,
    ) -> None:
        super().__init__()
        for name, count in (("slice", slice), ("planned", planned)):
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 10**6:
                raise InvalidInput(f"{name} is {show(count)}; it must be a whole number from 1 to 1000000", field=name)
        for name, number in (("interval_share", interval_share), ("least_interval", least_interval)):
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1e6:
                raise InvalidInput(f"{name} is {show(number)}; it must be a number from 0 to 1000000", field=name)
        if not isinstance(static, bool):
            raise InvalidInput(f"static is {show(static)}; it must be true or false", field="static")
        self.knowledge = knowledge or Knowledge()
        self._slice = slice
        self._static = static
        self._interval_share = interval_share
        self._least_interval = least_interval
        self._most = planned
        #: Pool -> class -> (job, stage, index) -> what is planned and waits, in the order of service.
        self._plans: dict[str, dict[JobClass, dict[tuple[str, str, int], Planned]]] = {}
        #: Pool -> when it is planned again.
        self._due: dict[str, float] = {}

    # ------------------------------------------------------------------------------------------- what it hears

    def key(self, task: Task, view: View) -> tuple[int, float]:
        """Input length in tokens. Regular tasks: the arrival of the job."""
        return (_LLM, _input(task)) if task.stage.kind is StageKind.LLM else (_REGULAR, task.job.arrived_at)

    def on(self, change: Change, view: View) -> None:
        match change:
            case TaskStarted(task):
                self._unplan(task)
            case StageDrained(stage):
                for task in stage.tasks or ():
                    self._unplan(task)
            case _:
                pass
        super().on(change, view)

    def _unplan(self, task: Task) -> None:
        plan = self._plans.get(task.pool, {}).get(task.job.job_class, {})
        plan.pop(_name(task), None)

    # ---------------------------------------------------------------------------------------------- what it says

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        queue = self._queues.get(pool)
        if queue is None:
            return
        open_slots = {e.id: e.free for e in view.in_pool(pool) if not (self._static and e.running)}
        for job_class in JobClass:
            plan = self._plans.get(pool, {}).get(job_class, {})
            for key, task in _requests(queue, job_class, _REGULAR):
                yield Pick(task, why={"arrived_at": key})
            yield from self._planned_picks(plan, open_slots)
            for key, task in _requests(queue, job_class, _LLM):
                if _name(task) not in plan:
                    yield Pick(task, self._slice, priority=0, why={"input_tokens": key})

    def _planned_picks(self, plan: dict[tuple[str, str, int], Planned], open_slots: dict[str, int]) -> Iterator[Pick]:
        """First who finds a slot where it should go, then the others."""
        others = []
        for planned in plan.values():
            task, engine, batch = planned
            if open_slots.get(engine, 0) > 0 and engine != task.avoid:
                open_slots[engine] -= 1
                yield Pick(task, self._slice, engine, 0, {"batch": batch})
            else:
                others.append(planned)
        for task, _, batch in others:
            yield Pick(task, self._slice, None, 0, {"batch": batch})

    # --------------------------------------------------------------------------------------------------- the plan

    def begin(self, view: View) -> None:
        for pool, queue in self._queues.items():
            if queue and self._is_due(pool, view):
                self._plan(pool, view)

    def _is_due(self, pool: str, view: View) -> bool:
        """The interval is over, or an engine is empty and nothing is planned for it. Without a slot it can wait."""
        engines = [e for e in view.in_pool(pool) if e.free]
        if not engines or view.now >= self._due.get(pool, view.now):
            return bool(engines)
        empty = [e.id for e in engines if not e.running]
        if not empty:
            return False
        served = {planned.engine for plan in self._plans[pool].values() for planned in plan.values()}
        return not served.issuperset(empty)

    def _plan(self, pool: str, view: View) -> None:
        queue = self._queues[pool]
        waiting = [task for job_class in JobClass for _, task in _requests(queue, job_class, _LLM)]
        if not waiting:
            return
        engines = [e for e in view.in_pool(pool) if e.slots]
        curve = self.knowledge.curves[pool]
        token = curve.prefill(1)
        decoding = [self._slice * curve.decode(n) for n in range(1, max(e.slots for e in engines) + 1)]
        #: (assigned seconds, order of joining, engine)
        loads = [(self._residual(e, token, decoding, view.now), e.order, e.id) for e in engines]
        heapify(loads)
        plans = self._plans[pool] = {}
        for job_class, group in groupby(self._oldest(waiting), key=_job_class):
            plan = plans[job_class] = {}
            for number, (seconds, batch) in enumerate(_batches(list(group), token, decoding)):
                load, order, engine = loads[0]
                heapreplace(loads, (load + seconds, order, engine))
                plan.update((_name(task), Planned(task, engine, number)) for task in batch)
        self._due[pool] = view.now + max(self._interval_share * loads[0][0], self._least_interval)

    def _oldest(self, waiting: list[Task]) -> list[Task]:
        """Those that have waited longest, classes apart, in the order given."""
        if len(waiting) <= self._most:
            return waiting
        oldest = nsmallest(self._most, range(len(waiting)), key=lambda i: (_job_class(waiting[i]), waiting[i].ready_at))
        return [waiting[i] for i in sorted(oldest)]

    def _residual(self, engine: Executor, token: float, decoding: Sequence[float], now: float) -> float:
        """Seconds until the last slice an engine runs is over, by estimate."""
        running = engine.running.values()
        if not running:
            return 0.0
        decode = decoding[min(len(running), len(decoding)) - 1]
        return max(0.0, max(task.started_at + _input(task) * token for task in running) + decode - now)


def cut(lengths: Sequence[int], token: float, decoding: Sequence[float]) -> Batching:
    """Cuts an ascending list of input lengths into batches of neighbours that take least time in all.

    lengths: (n,) tokens. token: seconds of prefill per token. decoding: (b,) seconds in which 1 … b requests generate a
    slice side by side. A batch of N ending with length L takes N x L x token + decoding[N - 1]; thus

        f[i] = min over N <= min(b, i) of f[i - N] + N x lengths[i - 1] x token + decoding[N - 1],     f[0] = 0.

    Among equals the larger last batch wins. O(n x b), vectorised over b: 0.5 ms for n = 512 and b = 16.
    Source: SCLS (arXiv:2406.13511); specification 10.

    >>> cut([100, 100, 1000], 0.001, [128 * (0.01 + 0.001 * n) for n in (1, 2, 3)]).sizes
    [2, 1]
    """
    n, b = len(lengths), len(decoding)
    sizes = np.arange(b, 0, -1)
    serve = np.multiply.outer(np.asarray(lengths, dtype=float) * token, sizes) + np.asarray(decoding)[::-1]
    #: f[0] stands at b - 1; before it is what cannot be.
    f = np.full(n + b, np.inf)
    f[b - 1] = 0.0
    last = [0] * n
    for i in range(n):
        total = serve[i] + f[i : i + b]
        best = total.argmin()
        f[i + b] = total[best]
        last[i] = b - int(best)
    batches: list[int] = []
    while n:
        batches.append(last[n - 1])
        n -= last[n - 1]
    return Batching(batches[::-1], f[b - 1 :].tolist())


def _batches(tasks: list[Task], token: float, decoding: Sequence[float]) -> list[tuple[float, list[Task]]]:
    """(seconds, tasks) of each batch, longest first; equals in order of input length."""
    sizes, costs = cut([_input(task) for task in tasks], token, decoding)
    batches = []
    end = 0
    for size in sizes:
        start, end = end, end + size
        batches.append((costs[end] - costs[start], tasks[start:end]))
    return sorted(batches, key=lambda batch: -batch[0])


def _requests(queue: Any, job_class: JobClass, kind: int) -> Iterator[tuple[float, Task]]:
    """(length or arrival, task) of one kind and class, ascending."""
    for _, (_, key), *_, task in queue.irange_key((job_class, (kind,)), (job_class, (kind + 1,))):
        yield key, task


def _input(task: Task) -> int:
    """Tokens a dispatch has to read: the prompt, and what earlier slices generated."""
    return task.prompt_tokens + task.generated


def _job_class(task: Task) -> JobClass:
    return task.job.job_class


def _name(task: Task) -> tuple[str, str, int]:
    return task.job.id, task.stage.name, task.index

"""What is left of all unfinished jobs, in seconds at today's batches: est_rd and the interval of each (LLMSched).

A job is seen anew only when something was found out about it (A37). What changes at every moment, the batches and the
progress of running tasks, is applied to all jobs at once:

    seconds = max(parts . (1, F_1, 1, F_2, …) - progress, 0), summed over the parts of a job

with F = l(b_t) / l(1) of a pool (Eq. 2). A running LLM task has had its prefill first, and then decodes l(1) / l(n)
reference seconds per second beside n - 1 others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from math import ceil, exp
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmsched.model.job import Executor, Job
from llmsched.model.kinds import StageKind
from llmsched.policies.base import View
from llmsched.policies.options import Options
from llmsched.profiler.history import Array, Curves
from llmsched.profiler.sight import Reduction, Seer, Sight

#: Seconds after which a batch counts for 1/e in `bt=ewma`.
_EWMA = 30.0


@dataclass(slots=True)
class Seen:
    """A job as it was last seen. parts: (n, 3, C), those of the sight in the columns of the backlog."""

    job: Job
    seer: Seer
    sight: Sight
    parts: Array
    #: Place of its first part among those of all jobs.
    start: int = 0
    #: R of ready stages; empty whenever a task of the job began or ended.
    reductions: dict[str, Reduction] = field(default_factory=dict)


class Amounts(NamedTuple):
    """Of every job in order, (n,): est_rd and the interval in seconds. jobs: id -> its place."""

    places: dict[str, int]
    estimates: list[float]
    lo: Array
    hi: Array


class Backlog:
    """All jobs a policy has seen. C columns: fixed and decode seconds of each pool in turn."""

    def __init__(self, options: Options, curves: Curves) -> None:
        self._options = options
        self._curves = curves
        self.jobs: dict[str, Seen] = {}
        self._pools: dict[str, int] = {}
        #: Pool -> F of the last moment.
        self._factors: dict[str, float] = {}
        #: Pools of a sight -> the factors of its columns, at that moment.
        self._columns: dict[tuple[str, ...], list[float]] = {}
        #: None when a job has changed.
        self._stack: _Stack | None = None
        #: For `bt=ewma`: when the batches were last looked at, and their mean by pool.
        self._looked_at = 0.0
        self._loads: dict[str, float] = {}

    def put(self, job: Job, seer: Seer, sight: Sight) -> None:
        """The job looks like this now."""
        before = len(self._pools)
        for pool in sight.pools:
            self._pools.setdefault(pool, len(self._pools))
        self.jobs[job.id] = Seen(job, seer, sight, self._widened(sight.pools, sight.parts))
        if len(self._pools) > before:
            for seen in self.jobs.values():
                seen.parts = self._widened(seen.sight.pools, seen.sight.parts)
        self._stack = None

    def drop(self, job_id: str) -> None:
        self.jobs.pop(job_id, None)
        self._stack = None

    def clear(self) -> None:
        self.jobs.clear()
        self._stack = None

    def reduction(self, seen: Seen, stage: str) -> float:
        """R of a ready stage at today's batches (Eq. 2, A9); per second where that is asked for (A43)."""
        known = seen.reductions.get(stage)
        if known is None:
            known = seen.reductions[stage] = seen.seer.reduction(seen.job, seen.job.stages[stage], seen.sight)
        factors = self._columns.get(seen.sight.pools)
        if factors is None:
            factors = [x for pool in seen.sight.pools for x in (1.0, self._factors.get(pool, 1.0))]
            self._columns[seen.sight.pools] = factors
        return known.value(factors, per_second=self._options.per_second)

    def amounts(self, view: View) -> Amounts:
        """What is left of every job at this moment."""
        places = {job_id: k for k, job_id in enumerate(self.jobs)}
        if not places:
            return Amounts(places, [], np.empty(0), np.empty(0))
        engines: dict[str, list[Executor]] = {}
        for executor in view.executors.values():
            engines.setdefault(executor.pool, []).append(executor)
        self._factors = self._calibrate(view.now, engines)
        self._columns.clear()
        if self._options.evidence == "censored":
            self._look_at_running(view)
        if self._stack is None:
            self._stack = self._stacked()
        parts, starts, floors = self._stack
        factors = np.array([x for pool in self._pools for x in (1.0, self._factors[pool])])
        had = self._progress(view, len(parts))
        seconds = parts @ factors
        seconds[:, : 1 if self._options.interval == "total" else 3] -= had.sum(axis=1)[:, None]
        np.maximum(seconds, 0.0, out=seconds)
        sums = np.add.reduceat(seconds, starts)
        match self._options.est:
            case "sum":
                estimates = sums[:, 0] if floors is None else np.maximum(sums[:, 0], floors @ factors)
            case "bottleneck":
                own = np.add.reduceat(np.maximum(_by_pool(parts[:, 0] * factors) - had, 0.0), starts)
                if floors is not None:
                    own = np.maximum(own, _by_pool(floors * factors))
                estimates = (own / [_slots(engines, pool) for pool in self._pools]).max(axis=1)
            case "critical_path":
                each = seconds[:, 0].tolist()
                slots = {pool: _slots(engines, pool) for pool in self._pools}
                paths = (
                    _longest_path(seen, each, slots) if seen.sight.is_apart else total
                    for seen, total in zip(self.jobs.values(), sums[:, 0].tolist(), strict=True)
                )
                estimates = np.fromiter(paths, np.float64, len(starts))
        return Amounts(places, estimates.tolist(), sums[:, 1], sums[:, 2])

    # ------------------------------------------------------------------------------------------ batches, progress

    def _calibrate(self, now: float, engines: dict[str, list[Executor]]) -> dict[str, float]:
        """F = l(b_t) / l(1) by pool (Eq. 2, A7)."""
        weight = 1.0 - exp(-(now - self._looked_at) / _EWMA)
        self._looked_at = now
        factors: dict[str, float] = {}
        for pool in self._pools:
            curve = self._curves[pool]
            own = [e for e in engines.get(pool, ()) if e.slots] or [Executor("", pool, 1, 0)]
            match self._options.bt:
                case "next":
                    least = min(own, key=lambda e: len(e.running))
                    batch = min(least.slots, 1 + len(least.running))
                case "full":
                    batch = max(e.slots for e in own)
                case "mean_running":
                    batch = round(_mean_running(own))
                case "ewma":
                    mean = _mean_running(own)
                    load = self._loads.get(pool, mean)
                    self._loads[pool] = load + weight * (mean - load)
                    batch = round(self._loads[pool])
            alone = curve.decode(1)
            factors[pool] = curve.decode(max(1, batch)) / alone if alone else 1.0
        return factors

    def _progress(self, view: View, n_parts: int) -> Array:
        """(parts, pools) seconds, at today's batches, that running tasks have had."""
        had = np.zeros((n_parts, len(self._pools)))
        is_scaled = self._options.prefill == "scaled"
        jobs, at_once = self.jobs, view.now
        for executor in view.executors.values():
            if not executor.running or (at := self._pools.get(executor.pool)) is None:
                continue
            curve = self._curves[executor.pool]
            now = curve.decode(len(executor.running))
            rate = self._factors[executor.pool] * curve.decode(1) / now if now else 1.0
            per_token = 0.0 if is_scaled else curve.prefill(1.0)
            # Hundreds of tasks may run: this loop is most of a decision, so it is spelled out.
            rows: dict[int, float] = {}
            for (job, stage, _), task in executor.running.items():
                seen = jobs.get(job)
                row = None if seen is None else seen.sight.rows.get(stage)
                if seen is None or row is None:
                    continue
                wall = at_once - task.started_at
                if task.stage.spec.kind is StageKind.LLM:
                    prefill = task.prompt_tokens * per_token
                    if wall > prefill:
                        wall = prefill + (wall - prefill) * rate
                row += seen.start
                rows[row] = rows.get(row, 0.0) + wall
            had[list(rows), at] += list(rows.values())
        return had

    def _look_at_running(self, view: View) -> None:
        """Sees jobs again whose running LLM stages have outlived what was their shortest state (A32)."""
        decoded: dict[str, dict[str, float]] = {}
        for executor in view.executors.values():
            curve = self._curves[executor.pool]
            now = curve.decode(max(1, len(executor.running)))
            for ref, task in executor.running.items():
                if task.stage.kind is StageKind.LLM and ref.job in self.jobs:
                    wall = max(0.0, view.now - task.started_at - curve.prefill(task.prompt_tokens))
                    own = decoded.setdefault(ref.job, {})
                    own[ref.stage] = own.get(ref.stage, 0.0) + (wall * curve.decode(1) / now if now else 0.0)
        for job_id, had in decoded.items():
            seen = self.jobs[job_id]
            if seen.seer.is_outlived(seen.job, seen.sight, had):
                self.put(seen.job, seen.seer, seen.seer.see(seen.job, had))

    # ------------------------------------------------------------------------------------------ columns and rows

    def _widened(self, pools: Sequence[str], columns: Array) -> Array:
        wide = np.zeros((*columns.shape[:-1], 2 * len(self._pools)))
        for k, pool in enumerate(pools):
            at = 2 * self._pools[pool]
            wide[..., at : at + 2] = columns[..., 2 * k : 2 * k + 2]
        return wide

    def _stacked(self) -> _Stack:
        starts: list[int] = []
        start = 0
        for seen in self.jobs.values():
            seen.start = start
            starts.append(start)
            start += len(seen.parts)
        floors = None
        if any(seen.sight.floor is not None for seen in self.jobs.values()):
            floors = np.zeros((len(self.jobs), 2 * len(self._pools)))
            for k, seen in enumerate(self.jobs.values()):
                if seen.sight.floor is not None:
                    floors[k] = self._widened(seen.sight.pools, seen.sight.floor)
        return _Stack(np.concatenate([seen.parts for seen in self.jobs.values()]), np.array(starts), floors)


class _Stack(NamedTuple):
    """parts: (parts, 3, C) of all jobs in a row. starts: (jobs,), where those of each begin. floors: (jobs, C)."""

    parts: Array
    starts: npt.NDArray[np.intp]
    floors: Array | None


def _mean_running(engines: Sequence[Executor]) -> float:
    return sum(len(e.running) for e in engines) / len(engines)


def _by_pool(columns: Array) -> Array:
    """(n, C) to (n, pools)."""
    return columns[:, ::2] + columns[:, 1::2]


def _slots(engines: Mapping[str, Sequence[Executor]], pool: str) -> int:
    return max(1, sum(e.slots for e in engines.get(pool, ())))


def _longest_path(seen: Seen, each: Sequence[float], slots: Mapping[str, int]) -> float:
    """Seconds of the longest path through what is left of a job, whose stages are known one by one (A33).

    each: seconds of all parts. A stage of n tasks takes ceil(n / slots) rounds of a mean task; a plan that is not known
    yet takes all its work, one after the other.
    """
    stages, sight = seen.job.stages, seen.sight
    before: dict[str, list[str]] = {
        name: [p for p in stage.spec.after if p != stage.spec.parent] for name, stage in stages.items()
    }
    for name, stage in stages.items():
        if stage.spec.parent is not None:
            before[stage.spec.parent].append(name)
    ends: dict[str, float] = {}
    for name in TopologicalSorter(before).static_order():
        stage = stages[name]
        row, left = sight.rows.get(name), sight.left.get(name, 0.0)
        time = 0.0
        if row is not None and left > 0.0 and not stage.is_over:
            time = each[seen.start + row] / left * ceil(left / slots.get(stage.pool, 1))
        ends[name] = time + max((ends[p] for p in before[name]), default=0.0)
    return max(ends.values(), default=0.0)

"""What is left of all unfinished jobs, in seconds at today's batches: est_rd and the interval of each (LLMSched).

A job is seen anew only when something was found out about it (A37). What changes at every moment, the batches and the
progress of running tasks, is applied to all jobs at once:

    seconds = max(parts . (1, F_1, 1, F_2, …) - progress, 0), summed over the parts of a job

with F = l(b_t) / l(1) of a pool (Eq. 2), in arrays that are kept up job by job (`parts.py`). A running LLM task has had
its prefill first, and then decodes l(1) / l(n) reference seconds per second beside n - 1 others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from math import ceil, exp
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmsched.model.job import Executor, Job, Stage
from llmsched.model.kinds import StageKind
from llmsched.policies.base import View
from llmsched.policies.options import Options
from llmsched.policies.parts import Parts, Spot
from llmsched.profiler.history import Array, Curves
from llmsched.profiler.sight import Reduction, Seer, Sight, values, weighed

#: Seconds after which a batch counts for 1/e in `bt=ewma`.
_EWMA = 30.0


@dataclass(slots=True)
class Seen:
    """A job as it was last seen."""

    job: Job
    seer: Seer
    sight: Sight
    spot: Spot
    #: R of ready stages; empty whenever a task of the job began or ended.
    reductions: dict[str, Reduction] = field(default_factory=dict)


class Amounts(NamedTuple):
    """What is left of every job, by place: est_rd and the interval in seconds. places: of jobs; taken: those of any.

    keys: what to sort jobs by, the last one first (`numpy.lexsort`): number, arrival, est_rd.
    """

    places: Mapping[str, int]
    taken: npt.NDArray[np.intp]
    estimates: Array
    lo: Array
    hi: Array
    keys: tuple[npt.NDArray[np.intp], Array, Array]


class Backlog:
    """All jobs a policy has seen. C columns: fixed and decode seconds of each pool in turn."""

    def __init__(self, options: Options, curves: Curves) -> None:
        self._options = options
        self._curves = curves
        self.jobs: dict[str, Seen] = {}
        self._pools: dict[str, int] = {}
        self._parts = Parts(0)
        #: Pool -> F of the last moment.
        self._factors: dict[str, float] = {}
        #: For `bt=ewma`: when the batches were last looked at, and their mean by pool.
        self._looked_at = 0.0
        self._loads: dict[str, float] = {}

    def put(self, job: Job, seer: Seer, sight: Sight) -> None:
        """The job looks like this now."""
        before = len(self._pools)
        for pool in sight.pools:
            self._pools.setdefault(pool, len(self._pools))
        known = self.jobs.get(job.id)
        spot = self._parts.enter(job.id, job.arrived_at, job.number) if known is None else known.spot
        self.jobs[job.id] = seen = Seen(job, seer, sight, spot)
        if len(self._pools) == before:
            self._place(seen)
            return
        self._parts = Parts(2 * len(self._pools))
        for seen in self.jobs.values():
            seen.spot = self._parts.enter(seen.job.id, seen.job.arrived_at, seen.job.number)
            self._place(seen)

    def drop(self, job_id: str) -> None:
        if self.jobs.pop(job_id, None) is not None:
            self._parts.leave(job_id)
            if not self.jobs:
                self.clear()

    def clear(self) -> None:
        self.jobs.clear()
        self._parts = Parts(2 * len(self._pools))

    def reductions(self, stages: Sequence[Stage]) -> Array:
        """(n,) R of ready stages at today's batches (Eq. 2, A9); per second where that is asked for (A43)."""
        found = np.empty(len(stages))
        #: Pools of a sight -> the stages whose R is in their columns: where they are, and R.
        by_pools: dict[tuple[str, ...], tuple[list[int], list[Reduction]]] = {}
        for k, stage in enumerate(stages):
            seen = self.jobs[stage.job.id]
            known = seen.reductions.get(stage.name)
            if known is None:
                known = seen.reductions[stage.name] = seen.seer.reduction(seen.job, stage, seen.sight)
            places, those = by_pools.setdefault(seen.sight.pools, ([], []))
            places.append(k)
            those.append(known)
        for pools, (places, those) in by_pools.items():
            factors = [x for pool in pools for x in (1.0, self._factors.get(pool, 1.0))]
            found[places] = values(those, factors, per_second=self._options.per_second)
        return found

    def amounts(self, view: View) -> Amounts:
        """What is left of every job at this moment."""
        engines: dict[str, list[Executor]] = {}
        for executor in view.executors.values():
            engines.setdefault(executor.pool, []).append(executor)
        self._factors = self._calibrate(view.now, engines)
        if self._options.evidence == "censored":
            self._look_at_running(view)
        parts = self._parts
        work, floors = parts.work, parts.floors
        factors = [x for pool in self._pools for x in (1.0, self._factors[pool])]
        had = self._progress(view)
        seconds = weighed(work, factors)
        seconds[: 1 if self._options.interval == "total" else 3] -= had.sum(axis=0)
        np.maximum(seconds, 0.0, out=seconds)
        total, lo, hi = map(parts.sums, seconds)
        match self._options.est:
            case "sum":
                estimates = np.maximum(total, weighed(floors, factors))
            case "bottleneck":
                estimates = np.zeros(len(total))
                for pool, k in self._pools.items():
                    own = slice(2 * k, 2 * k + 2)
                    left = np.maximum(weighed(work[own, 0], factors[own]) - had[k], 0.0)
                    left = np.maximum(parts.sums(left), weighed(floors[own], factors[own]))
                    np.maximum(estimates, left / _slots(engines, pool), out=estimates)
            case "critical_path":
                estimates, each = total.copy(), seconds[0].tolist()
                slots = {pool: _slots(engines, pool) for pool in self._pools}
                for seen in self.jobs.values():
                    if seen.sight.is_apart:
                        estimates[seen.spot.place] = _longest_path(seen, each, slots)
        return Amounts(parts.places, parts.taken, estimates, lo, hi, (parts.numbers, parts.arrived, estimates))

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

    def _progress(self, view: View) -> Array:
        """(pools, rows) seconds, at today's batches, that running tasks have had."""
        had = np.zeros((len(self._pools), self._parts.work.shape[2]))
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
                row += seen.spot.start
                rows[row] = rows.get(row, 0.0) + wall
            had[at, list(rows)] += list(rows.values())
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

    def _place(self, seen: Seen) -> None:
        """Puts what is left of a job into the columns of all pools."""
        sight = seen.sight
        at = [2 * self._pools[pool] + k for pool in sight.pools for k in (0, 1)]
        work = np.zeros((*sight.parts.shape[:2], 2 * len(self._pools)))
        work[..., at] = sight.parts
        floor = None
        if sight.floor is not None:
            floor = np.zeros(2 * len(self._pools))
            floor[at] = sight.floor
        self._parts.put(seen.job.id, work, floor)


def _mean_running(engines: Sequence[Executor]) -> float:
    return sum(len(e.running) for e in engines) / len(engines)


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
            time = each[seen.spot.start + row] / left * ceil(left / slots.get(stage.pool, 1))
        ends[name] = time + max((ends[p] for p in before[name]), default=0.0)
    return max(ends.values(), default=0.0)

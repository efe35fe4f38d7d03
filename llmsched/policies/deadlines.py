"""`deadlines`: jobs with a deadline go first while that decides whether they meet it, whatever the policy.

Of a job with a deadline d let R be what it has left, as it is believed (seconds at a full batch), and s the seconds
that jobs of its application took per second of work (below). Its *expected lateness*, were it begun at t and slowed
down by the margin m, is

    L(t) = E[(t + m s R - d)+]

* It is *pressing* from the moment at which L(t) exceeds a tenth of m s E[R]. Before that there is time, and the
  policy's own order serves everybody best.
* It is *lost* from the moment at which even at once and alone, t + s R, nine cases in ten are late. Then each second
  it waits is one second of lateness as well as of completion time, whatever its deadline was, and of such seconds the
  policy's order makes the fewest. So it is let go, and holds up nobody who can still be on time.

Pressing jobs go before all others of their class, the earliest deadline first (which meets all of their deadlines if
any order of jobs that are not interrupted and arrive together does: Jackson 1955). Everybody else goes in the policy's
own order; while no job has a deadline nothing changes, and nothing is computed.

s is the median of (seconds from its first task to its end) / (work it did) over the last jobs with a deadline of the
application: stages with many tasks side by side take less than their work, waiting for slots takes more. Until there
are `FEWEST` of them s is 1, and a job counts as lost only when its deadline has passed.
Both moments are known when something is found out about the job, so a decision costs no more than a look at the clock.
Source: ours; pressing is the critical time of the apparent tardiness cost rule (Vepsalainen and Morton, 1987) over a
distribution, letting go what is lost is Moore's algorithm (1968).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from itertools import islice
from math import inf, isfinite
from typing import Any

import numpy as np
from sortedcontainers import SortedKeyList

from llmsched.errors import InvalidInput, show
from llmsched.model.job import Job, JobStatus, Stage
from llmsched.policies.base import (
    Change,
    JobChanged,
    JobLeft,
    Policy,
    StageDrained,
    StageReady,
    TaskStarted,
    View,
)
from llmsched.policies.estimated import full_batch
from llmsched.policies.expedited import Expedited
from llmsched.profiler import Knowledge
from llmsched.profiler.done import work_done
from llmsched.profiler.history import Array

#: Of the expected seconds, the expected lateness that presses.
TOLERANCE = 0.1
#: Share of the cases that are late when a job is lost.
LOST = 0.9
#: Jobs of an application that say how long work takes, and the fewest that do.
WINDOW = 50
FEWEST = 10

#: Stages that one decision sorts in again after a profile was learned anew.
_RESORTED = 50


class Punctual(Expedited):
    """`policy`, but jobs whose deadline presses go first.

    margin: how much longer than believed a job may take before it is late. Raises InvalidInput for one that is not
    positive.
    """

    def __init__(self, policy: Policy, margin: float, knowledge: Knowledge | None = None) -> None:
        super().__init__(policy)
        is_number = isinstance(margin, int | float) and not isinstance(margin, bool)
        if not is_number or not isfinite(margin) or margin <= 0:
            raise InvalidInput(
                f"deadlines is {show(margin)}; it must be a positive number, how many times what is believed a job"
                " with a deadline may take",
                field="deadlines",
            )
        self.margin = float(margin)
        self.knowledge = knowledge or Knowledge()
        self._revision = self.knowledge.revision
        #: Pool -> (pressing from, stage) of ready stages of jobs with a deadline.
        self._ready: dict[str, SortedKeyList[Any, Any]] = {}
        self._entries: dict[tuple[str, str], tuple[float, Stage]] = {}
        #: Job -> (its revision, pressing from, lost from).
        self._moments: dict[str, tuple[int, float, float]] = {}
        #: Stages that are still sorted by what was known before.
        self._stale: dict[tuple[str, str], None] = {}
        #: When the first task of a job with a deadline was started.
        self._started: dict[str, float] = {}
        self._paces: dict[str, _Pace] = {}

    def on(self, change: Change, view: View) -> None:
        match change:
            case StageReady(stage) if stage.job.due is not None:
                self._insert(stage, view)
            case StageDrained(stage):
                self._remove(stage)
            case JobChanged(job) if job.due is not None:
                self._rekey(job, view)
            case TaskStarted(task) if task.job.due is not None:
                self._started.setdefault(task.job.id, view.now)
            case JobLeft(job) if job.due is not None:
                self._left(job, view)
            case _:
                pass
        super().on(change, view)

    def begin(self, view: View) -> None:
        if self._revision != self.knowledge.revision:
            self._revision = self.knowledge.revision
            self._stale = dict.fromkeys(self._entries)
        # A few at a time: with thousands of jobs a new profile must not stop the world.
        for key in list(islice(self._stale, _RESORTED)):
            del self._stale[key]
            if (entry := self._entries.get(key)) is not None:
                self._moments.pop(key[0], None)
                self._remove(entry[1])
                self._insert(entry[1], view)
        super().begin(view)

    def urgent(self, pool: str, view: View) -> list[Stage]:
        pressing: list[Stage] = []
        lost: list[Stage] = []
        for at, stage in self._ready.get(pool, ()):
            if at > view.now:
                break
            (lost if self._moments[stage.job.id][2] <= view.now else pressing).append(stage)
        for stage in lost:  # until something new is known of it
            self._remove(stage)
            self._put(stage, inf)
        return sorted(pressing, key=lambda s: (s.job.due, s.job.arrived_at, s.job.number, s.order))

    def reason(self, stage: Stage, view: View) -> dict[str, float]:
        assert stage.job.due is not None, stage
        return {"due_in": round(stage.job.due - view.now, 3)}

    # ------------------------------------------------------------------------------------------------- moments

    def moments(self, job: Job, view: View) -> tuple[float, float]:
        """When the job begins to press, and when it is lost."""
        assert job.due is not None, job
        known = self._moments.get(job.id)
        if known is None or known[0] != job.revision:
            outlook = self.knowledge.outlook(job)
            left = np.zeros(len(outlook.weights))
            for pool in outlook.pools:
                left += outlook.totals(pool, full_batch(self.knowledge.curves, pool, view))
            pace = self._paces.get(job.application.name)
            seconds = left * (1.0 if pace is None else pace.median)
            lost = job.due
            if pace is not None and pace.is_known:
                lost -= _quantile(seconds, outlook.weights, 1 - LOST)
            pressing = job.due - latest_start(self.margin * seconds, outlook.weights, TOLERANCE)
            known = self._moments[job.id] = job.revision, min(pressing, lost), lost
        return known[1:]

    def _left(self, job: Job, view: View) -> None:
        self._moments.pop(job.id, None)
        started = self._started.pop(job.id, None)
        if job.status is JobStatus.COMPLETED and started is not None:
            work = work_done(job, self.knowledge.curves)
            if work > 0:
                self._paces.setdefault(job.application.name, _Pace()).add((view.now - started) / work)

    # -------------------------------------------------------------------------------------------------- queues

    def _rekey(self, job: Job, view: View) -> None:
        for stage in job.stages.values():
            if (job.id, stage.name) in self._entries:
                self._remove(stage)
                self._insert(stage, view)

    def _insert(self, stage: Stage, view: View) -> None:
        self._put(stage, self.moments(stage.job, view)[0])

    def _put(self, stage: Stage, at: float) -> None:
        queue = self._ready.get(stage.pool)
        if queue is None:
            queue = self._ready[stage.pool] = SortedKeyList(key=_moment)
        entry = self._entries[stage.job.id, stage.name] = at, stage
        queue.add(entry)

    def _remove(self, stage: Stage) -> None:
        entry = self._entries.pop((stage.job.id, stage.name), None)
        if entry is not None:
            self._ready[stage.pool].remove(entry)


class _Pace:
    """Seconds per second of reference work of the last jobs of one application."""

    def __init__(self) -> None:
        self._last: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, ratio: float) -> None:
        self._last.append(ratio)
        insort(self._sorted, ratio)
        if len(self._last) > WINDOW:
            self._sorted.remove(self._last.popleft())

    @property
    def is_known(self) -> bool:
        return len(self._last) >= FEWEST

    @property
    def median(self) -> float:
        return self._sorted[len(self._sorted) // 2] if self.is_known else 1.0


def latest_start(seconds: Array, weights: Array, tolerance: float) -> float:
    """How long before its deadline a job has to begin, so that its expected lateness is `tolerance` of its mean.

    seconds, weights: (m,) how long it takes in each case, and its probability. That is, the x with
    E[(seconds - x)+] = tolerance E[seconds].

    >>> round(latest_start(np.array([10.0]), np.ones(1), 0.1), 6)  # (10 - x)+ = 1
    9.0
    >>> round(latest_start(np.array([0.0, 20.0]), np.array([0.5, 0.5]), 0.1), 6)  # (20 - x) / 2 = 1
    18.0
    """
    order = np.argsort(-seconds, kind="stable")
    s, p = seconds[order], weights[order]
    bound = tolerance * float(s @ p)
    # With x between s[k+1] and s[k] the lateness is sum over the k+1 longest of p (s - x).
    mass, work = np.cumsum(p), np.cumsum(p * s)
    ends = np.append(s[1:], -inf)
    at_end = work - mass * ends
    k = int(np.argmax(at_end >= bound))
    return float((work[k] - bound) / mass[k])


def _quantile(seconds: Array, weights: Array, level: float) -> float:
    order = np.argsort(seconds, kind="stable")
    reached = np.cumsum(weights[order])
    return float(seconds[order][min(int(np.searchsorted(reached, level * reached[-1])), len(order) - 1)])


def _moment(entry: tuple[float, Stage]) -> tuple[float, float, int, int]:
    at, stage = entry
    return at, stage.job.arrived_at, stage.job.number, stage.order

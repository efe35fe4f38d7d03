"""How the service has been doing: a few numbers per step of time, for the last quarter of an hour, two hours and day.

Kept in memory, in rings of `STEPS` steps, whatever the load; Prometheus has the long memory. What happens is counted as
it happens (`Observer`); what simply is (jobs, queues, slots) is read off the scheduler every `SAMPLED` seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from statistics import quantiles
from typing import Any

from llmsched.model.job import JobStatus
from llmsched.policies.base import View
from llmsched.runtime.observer import Silent

#: Steps of every ring, and seconds of a step by the ring's name.
STEPS = 180
RINGS: Mapping[str, float] = {"15m": 5.0, "2h": 40.0, "24h": 480.0}
#: Seconds between two looks at the scheduler.
SAMPLED = 2.5
#: Completion times of a step that its percentiles are taken of, a fair sample where there were more.
TIMES = 200
#: Applications that have lines of their own.
APPLICATIONS = 12


@dataclass(slots=True)
class _Step:
    """at: its beginning, unix seconds. gauges: sums of what was read, over `reads`."""

    at: float
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    seconds: float = 0.0
    times: list[float] = field(default_factory=list)
    #: Application -> (completed, seconds).
    by_application: dict[str, tuple[int, float]] = field(default_factory=dict)
    decisions: int = 0
    deciding: float = 0.0
    slowest: float = 0.0
    started: int = 0
    queued: float = 0.0
    reads: int = 0
    active: float = 0.0
    #: Pool -> (ready, running, slots).
    pools: dict[str, tuple[float, float, float]] = field(default_factory=dict)


class Ring:
    """The last `STEPS` steps of `width` seconds; times with nothing to tell have none."""

    def __init__(self, width: float) -> None:
        self.width = width
        self._steps: deque[_Step] = deque(maxlen=STEPS)

    def now(self, at: float) -> _Step:
        """The step that `at` falls into."""
        begin = at - at % self.width
        if not self._steps or self._steps[-1].at < begin:
            self._steps.append(_Step(begin))
        return self._steps[-1]

    def to_json(self, at: float) -> dict[str, Any]:
        """Columns of equal length, oldest first, null where nothing was known; the last step is still going on."""
        last = at - at % self.width
        known = {step.at: step for step in self._steps}
        times = [last - self.width * k for k in range(STEPS - 1, -1, -1)]
        steps = [known.get(t) for t in times]
        pools = list(dict.fromkeys(p for step in self._steps for p in step.pools))
        counts: dict[str, int] = {}
        for step in self._steps:
            for name, (n, _) in step.by_application.items():
                counts[name] = counts.get(name, 0) + n
        busiest = sorted(sorted(counts), key=lambda name: -counts[name])[:APPLICATIONS]

        def column(value: Callable[[_Step], float | None]) -> list[float | None]:
            return [None if s is None else _short(value(s)) for s in steps]

        def pool(name: str, k: int) -> list[float | None]:
            return column(lambda s: s.pools[name][k] / s.reads if name in s.pools else None)

        def mean_of(name: str) -> list[float | None]:
            return column(lambda s: s.by_application[name][1] / s.by_application[name][0] if _has(s, name) else None)

        return {
            "step_s": self.width,
            "at": times,
            "submitted": column(lambda s: s.submitted),
            "completed": column(lambda s: s.completed),
            "failed": column(lambda s: s.failed),
            "jct_mean": column(lambda s: s.seconds / s.completed if s.completed else None),
            "jct_p50": column(lambda s: percentile(s.times, 50)),
            "jct_p95": column(lambda s: percentile(s.times, 95)),
            "queue_mean": column(lambda s: s.queued / s.started if s.started else None),
            "active": column(lambda s: s.active / s.reads if s.reads else None),
            "decisions": column(lambda s: s.decisions),
            "decision_ms_mean": column(lambda s: 1000 * s.deciding / s.decisions if s.decisions else None),
            "decision_ms_max": column(lambda s: 1000 * s.slowest if s.decisions else None),
            "pools": {p: {"ready": pool(p, 0), "running": pool(p, 1), "slots": pool(p, 2)} for p in pools},
            "applications": {name: {"jct_mean": mean_of(name)} for name in busiest},
        }

    def recent(self, at: float) -> dict[str, float | None]:
        """The whole ring in one line: jobs, completion times and what a decision cost."""
        steps = [s for s in self._steps if s.at > at - STEPS * self.width]
        times = [t for s in steps for t in s.times]
        completed, decisions = sum(s.completed for s in steps), sum(s.decisions for s in steps)
        return {
            "completed": completed,
            "failed": sum(s.failed for s in steps),
            "jct_mean": _short(sum(s.seconds for s in steps) / completed) if completed else None,
            "jct_p50": _short(percentile(times, 50)),
            "jct_p95": _short(percentile(times, 95)),
            "decisions": decisions,
            "decision_ms_mean": _short(1000 * sum(s.deciding for s in steps) / decisions) if decisions else None,
            "decision_ms_max": _short(1000 * max((s.slowest for s in steps), default=0.0)) if decisions else None,
        }


def percentile(times: list[float], p: int) -> float | None:
    """Of a sample; None for none.

    >>> percentile([1.0, 2.0, 3.0], 50), percentile([], 50)
    (2.0, None)
    """
    if len(times) < 2:
        return times[0] if times else None
    return quantiles(times, n=100, method="inclusive")[p - 1]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _has(step: _Step, name: str) -> bool:
    return name in step.by_application


class Trends(Silent):
    """An observer with a memory of a day. now: unix seconds."""

    def __init__(self, now: Callable[[], float], seed: int = 0) -> None:
        self._now = now
        self._rings = {name: Ring(width) for name, width in RINGS.items()}
        self._random = Random(seed)
        #: Application -> outcome -> jobs that ended so since the start.
        self.finished: dict[str, dict[str, int]] = {}

    # ------------------------------------------------------------------------------------------------- Observer

    def job_submitted(self, application: str, job_class: str) -> None:
        for step in self._steps():
            step.submitted += 1

    def job_finished(self, application: str, outcome: str, seconds: float) -> None:
        ends = self.finished.setdefault(application, {})
        ends[outcome] = ends.get(outcome, 0) + 1
        for step in self._steps():
            if outcome == JobStatus.COMPLETED.value:
                step.completed += 1
                step.seconds += seconds
                n, total = step.by_application.get(application, (0, 0.0))
                step.by_application[application] = n + 1, total + seconds
                self._sample(step, seconds)
            elif outcome == JobStatus.FAILED.value:
                step.failed += 1

    def task_started(self, pool: str, application: str, queued: float) -> None:
        for step in self._steps():
            step.started += 1
            step.queued += queued

    def decided(self, seconds: float) -> None:
        for step in self._steps():
            step.decisions += 1
            step.deciding += seconds
            step.slowest = max(step.slowest, seconds)

    # --------------------------------------------------------------------------------------------------- looking

    def look(self, view: View) -> None:
        """Takes down what is now: jobs, queues and slots."""
        pools: dict[str, list[float]] = {}
        for executor in view.executors.values():
            counts = pools.setdefault(executor.pool, [0.0, 0.0, 0.0])
            counts[1] += len(executor.running)
            counts[2] += executor.slots
        for pool, stages in view.ready.items():
            pools.setdefault(pool, [0.0, 0.0, 0.0])[0] += sum(len(s.ready) for s in stages.values())
        for step in self._steps():
            step.reads += 1
            step.active += len(view.jobs)
            for pool, (ready, running, slots) in pools.items():
                a, b, c = step.pools.get(pool, (0.0, 0.0, 0.0))
                step.pools[pool] = a + ready, b + running, c + slots

    async def watch(self, view: Callable[[], View]) -> None:
        """Looks every `SAMPLED` seconds until it is cancelled."""
        while True:
            self.look(view())
            await asyncio.sleep(SAMPLED)

    def to_json(self, span: str) -> dict[str, Any]:
        """The ring of this name, one of `RINGS`."""
        return {"span": span, **self._rings[span].to_json(self._now())}

    def recent(self) -> dict[str, float | None]:
        """The shortest ring in one line."""
        return next(iter(self._rings.values())).recent(self._now())

    def _steps(self) -> list[_Step]:
        now = self._now()
        return [ring.now(now) for ring in self._rings.values()]

    def _sample(self, step: _Step, seconds: float) -> None:
        if len(step.times) < TIMES:
            step.times.append(seconds)
        elif (k := self._random.randrange(step.completed)) < TIMES:
            step.times[k] = seconds

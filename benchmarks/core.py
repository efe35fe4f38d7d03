"""What one decision costs: `Scheduler.handle` per batch with 100, 1,000 and 10,000 active jobs.

    python benchmarks/core.py [--batches N] [--policies fcfs,sjf,…]

One process, no I/O, no clock: generated jobs of the six applications unfold as recorded. Every batch is what a live
tick usually is: one finished task, what its stage reveals if it was the last one, and a new job for each one that
ended, so that the number of active jobs stays what it is. All executors are busy all the time. Policies that estimate
have profiles of 300 generated jobs of each application; their answers are part of the cost.

`decisions.py` has the cost at the load of the paper, where far fewer jobs are active.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import cycle
from random import Random
from statistics import mean

import numpy as np
import rig
from rig import Figure

from llmsched.catalogue import installed_applications
from llmsched.model.events import (
    Batch,
    Dispatch,
    Event,
    ExecutorJoined,
    FinishJob,
    JobSubmitted,
    Outcome,
    StageExpanded,
    TaskFinished,
    TaskRef,
    TaskResult,
)
from llmsched.model.recording import Recording
from llmsched.model.unfolding import RecordedUnfolding, Unfolded
from llmsched.policies import make_policy
from llmsched.profiler import Knowledge, fit
from llmsched.scheduler import Scheduler
from llmsched.workloads import APPLICATIONS, generate

JOBS = (100, 1_000, 10_000)
#: Policies that are to cost the same however many jobs wait, and how much more they may at 10,000 than at 100.
POLICIES = {"fcfs": 2.0, "sjf": 2.0, "llmsched-pool": 3.0, "srpt": 3.0}
ENGINES, SLOTS, WORKERS = 4, 16, 64


class World:
    """Runs recorded jobs on a scheduler, oldest dispatch first, and keeps `jobs` of them active."""

    def __init__(self, policy: str, jobs: int, recordings: Sequence[Recording], knowledge: Knowledge) -> None:
        self.scheduler = Scheduler(make_policy(policy, knowledge=knowledge))
        #: seconds of each `handle` since the last `clear`
        self.costs: list[float] = []
        self._applications = installed_applications()
        self._recordings = cycle(recordings)
        self._unfoldings: dict[str, RecordedUnfolding] = {}
        self._left: dict[tuple[str, str], int] = {}
        self._running: deque[Dispatch] = deque()
        self._number = 0
        self._at = 0.0
        executors = [ExecutorJoined(f"engine-{k}", "llm", SLOTS) for k in range(ENGINES)]
        self._handle([*(self._submitted() for _ in range(jobs)), *executors, ExecutorJoined("workers", "cpu", WORKERS)])
        self.costs.clear()

    def turn(self) -> None:
        """One batch: the task that has run longest is finished."""
        dispatch = self._running.popleft()
        ref = dispatch.task
        task = self._unfoldings[ref.job].task(ref.stage, ref.index)
        result = TaskResult(task.duration or 1.0, task.prompt_tokens, task.output_tokens)
        events: list[Event] = [TaskFinished(ref, dispatch.attempt, result)]
        self._left[ref.job, ref.stage] -= 1
        if not self._left[ref.job, ref.stage]:
            events.append(self._completed(ref))
        self._handle(events)

    def _completed(self, ref: TaskRef) -> StageExpanded:
        unfolded = self._unfoldings[ref.job].complete(ref.stage)
        self._open(ref.job, unfolded)
        return StageExpanded(ref.job, ref.stage, *unfolded)

    def _submitted(self) -> JobSubmitted:
        self._number += 1
        recording = next(self._recordings)
        id, application = f"job-{self._number}", self._applications[recording.application]
        self._unfoldings[id] = RecordedUnfolding(application, recording)
        unfolded = self._unfoldings[id].begin()
        self._open(id, unfolded)
        return JobSubmitted(id, self._number, application, self._at, *unfolded, features=recording.features)

    def _open(self, job: str, unfolded: Unfolded) -> None:
        for spec, prompt_tokens, _ in unfolded.reveals:
            self._left[job, spec.name] = len(prompt_tokens)

    def _handle(self, events: Sequence[Event]) -> None:
        self._at += 0.01
        batch = Batch(self._at, tuple(events))
        began = time.perf_counter()
        commands = self.scheduler.handle(batch)
        self.costs.append(time.perf_counter() - began)
        ended = 0
        for command in commands:
            if isinstance(command, Dispatch):
                self._running.append(command)
            elif isinstance(command, FinishJob):
                assert command.outcome is Outcome.COMPLETED, command
                del self._unfoldings[command.job]
                ended += 1
        if ended:
            self._handle([self._submitted() for _ in range(ended)])


def measure(batches: int = 5_000, policies: Iterable[str] = POLICIES, jobs: Sequence[int] = JOBS) -> list[Figure]:
    rng = Random(0)
    recordings = [generate(APPLICATIONS[k % len(APPLICATIONS)], rng) for k in range(600)]
    profiles = [fit(installed_applications()[a], [generate(a, rng) for _ in range(300)]) for a in APPLICATIONS]
    figures = []
    for policy in policies:
        means = []
        for count in jobs:
            world = World(policy, count, recordings, Knowledge(profiles))
            gc.collect()
            for _ in range(batches):
                world.turn()
            p99 = float(np.percentile(world.costs, 99))
            means.append(mean(world.costs))
            name = f"{policy}, {count:,} active jobs"
            figures += [Figure(f"{name}, mean", means[-1] * 1e6, "us"), Figure(f"{name}, p99", p99 * 1e6, "us")]
            figures.append(Figure(f"{name}, worst", max(world.costs) * 1e6, "us"))
        growth = means[-1] / means[0]
        name = f"{policy}, {jobs[-1]:,} jobs against {jobs[0]:,}, mean"
        figures.append(Figure(name, growth, "x", goal=POLICIES.get(policy)))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=5_000)
    parser.add_argument("--policies", default=",".join(POLICIES), help="comma list")
    options = parser.parse_args()
    rig.show(measure(options.batches, options.policies.split(",")))


if __name__ == "__main__":
    main()

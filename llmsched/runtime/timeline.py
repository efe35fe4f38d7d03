"""When each task of the last jobs ran where: the bars of a Gantt chart.

Kept in memory and bounded: the store remembers stages, not attempts. So of jobs from before a restart, and of those
that so many came after, nothing is here.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from llmsched.model.events import TaskRef

#: Jobs that are remembered, attempts of one of them, and attempts in all.
JOBS, ATTEMPTS, ALL = 1_000, 500, 50_000

Outcome = Literal["running", "done", "failed", "sliced", "given_up"]


@dataclass(slots=True)
class Span:
    """One attempt of a task on an executor. Unix seconds; ended_at: None while it runs."""

    stage: str
    task: int
    attempt: int
    executor: str
    started_at: float
    ended_at: float | None = None
    outcome: Outcome = "running"

    def end(self, outcome: Outcome, at: float) -> None:
        if self.ended_at is None:
            self.ended_at, self.outcome = at, outcome


class Timeline:
    """The attempts of the last jobs, in order of dispatch."""

    def __init__(self, jobs: int = JOBS, attempts: int = ATTEMPTS, all: int = ALL) -> None:
        self._most_jobs, self._most_attempts, self._most = jobs, attempts, all
        self._spans: OrderedDict[str, list[Span]] = OrderedDict()
        self._open: dict[TaskRef, Span] = {}
        self._count = 0

    def of(self, job: str) -> list[Span]:
        """Of one job; empty where nothing is remembered."""
        return self._spans.get(job, [])

    def started(self, ref: TaskRef, attempt: int, executor: str, at: float) -> None:
        if (before := self._open.pop(ref, None)) is not None:
            before.end("given_up", at)
        spans = self._spans.setdefault(ref.job, [])
        if len(spans) < self._most_attempts:
            span = self._open[ref] = Span(ref.stage, ref.index, attempt, executor, at)
            spans.append(span)
            self._count += 1
            while len(self._spans) > self._most_jobs or self._count > self._most:
                self._forget(next(iter(self._spans)))

    def ended(self, ref: TaskRef, outcome: Outcome, at: float) -> None:
        if (span := self._open.pop(ref, None)) is not None:
            span.end(outcome, at)

    def finished(self, job: str, at: float) -> None:
        """The job is over: what of it still ran was given up."""
        for span in self._spans.get(job, ()):
            if span.ended_at is None:
                self.ended(TaskRef(job, span.stage, span.task), "given_up", at)

    def _forget(self, job: str) -> None:
        gone = self._spans.pop(job)
        self._count -= len(gone)
        for span in gone:
            self._open.pop(TaskRef(job, span.stage, span.task), None)

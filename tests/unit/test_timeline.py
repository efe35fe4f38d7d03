"""The bars of a Gantt chart: what is remembered of attempts, and that it stays bounded."""

from __future__ import annotations

from llmsched.model.events import TaskRef
from llmsched.runtime.timeline import Span, Timeline

A, B = TaskRef("j", "s", 0), TaskRef("j", "s", 1)


def test_attempts_are_kept_with_how_they_ended() -> None:
    timeline = Timeline()
    timeline.started(A, 1, "e1", 1.0)
    timeline.started(B, 1, "e2", 1.5)
    timeline.ended(A, "failed", 2.0)
    timeline.started(A, 2, "e2", 3.0)
    timeline.ended(A, "done", 4.0)

    assert timeline.of("j") == [
        Span("s", 0, 1, "e1", 1.0, 2.0, "failed"),
        Span("s", 1, 1, "e2", 1.5),
        Span("s", 0, 2, "e2", 3.0, 4.0, "done"),
    ]


def test_an_attempt_that_reported_nothing_ends_with_the_next_one_or_with_its_job() -> None:
    timeline = Timeline()
    timeline.started(A, 1, "lost", 1.0)
    timeline.started(A, 2, "e", 5.0)
    timeline.finished("j", 6.0)

    assert [(s.outcome, s.ended_at) for s in timeline.of("j")] == [("given_up", 5.0), ("given_up", 6.0)]


def test_old_jobs_are_forgotten() -> None:
    timeline = Timeline(jobs=2)
    for k in range(4):
        timeline.started(TaskRef(f"j{k}", "s", 0), 1, "e", float(k))

    assert [bool(timeline.of(f"j{k}")) for k in range(4)] == [False, False, True, True]
    timeline.ended(TaskRef("j0", "s", 0), "done", 9.0)  # nothing happens


def test_no_job_and_no_crowd_fills_the_memory() -> None:
    timeline = Timeline(jobs=100, attempts=3, all=5)
    for k in range(10):
        timeline.started(TaskRef("wide", "s", k), 1, "e", 0.0)
    assert len(timeline.of("wide")) == 3

    for k in range(10):
        timeline.started(TaskRef(f"j{k}", "s", 0), 1, "e", 1.0)
    assert timeline.of("wide") == []
    assert sum(len(timeline.of(f"j{k}")) for k in range(10)) == 5

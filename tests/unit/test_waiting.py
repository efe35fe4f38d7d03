"""Why a job is not further: its place in the order, who goes before it, and what else it waits for."""

from __future__ import annotations

from typing import Any

from llmsched.model.application import Application
from llmsched.model.events import (
    Batch,
    ExecutorJoined,
    JobClass,
    JobSubmitted,
    Reveal,
    TaskFailed,
    TaskRef,
)
from llmsched.policies import make_policy
from llmsched.scheduler import Scheduler
from llmsched.scheduler.waiting import Place, Waiting, waiting

PAIR = Application.parse(
    {
        "name": "app",
        "stages": [{"name": "a", "kind": "llm", "max_tasks": 9}, {"name": "b", "kind": "llm", "after": ["a"]}],
    }
)


def scheduler(policy: str = "fcfs", slots: int = 1, **jobs: int) -> Scheduler:
    """One engine, and jobs with so many tasks in their first stage, in this order; the first task runs."""
    made = Scheduler(make_policy(policy))
    made.handle(Batch(0.0, (ExecutorJoined("e", "llm", slots),)))
    for number, (name, tasks) in enumerate(jobs.items(), 1):
        submit(made, name, number, tasks)
    return made


def submit(to: Scheduler, name: str, number: int, tasks: int, **more: Any) -> None:
    reveals = (Reveal(PAIR["a"], (0,) * tasks),)
    to.handle(Batch(float(number), (JobSubmitted(name, number, PAIR, float(number), reveals, **more),)))


def asked(of: Scheduler, job: str, **limits: int) -> Waiting:
    return waiting(of, of.view.jobs[job], **limits)


def test_a_job_stands_behind_the_tasks_that_the_policy_prefers() -> None:
    found = asked(scheduler(first=2, second=3, third=1), "third")

    (place,) = found.places
    assert (place.pool, place.ready, place.place, place.jobs_ahead) == ("llm", 1, 4, 2)
    assert [(a.job.id, a.tasks) for a in place.ahead] == [("first", 1), ("second", 3)]
    assert (place.slots, place.running, place.is_exact) == (1, 1, True)
    assert found.running == () == found.backing_off == found.blocked


def test_who_is_next_has_nobody_before_it() -> None:
    found = asked(scheduler(first=2, second=1), "first")

    assert [task.ref for task in found.running] == [TaskRef("first", "a", 0)]
    (place,) = found.places
    assert (place.place, place.jobs_ahead, place.ahead) == (0, 0, ())


def test_a_place_beyond_what_is_looked_at_is_not_guessed() -> None:
    (place,) = asked(scheduler(first=9, second=1), "second", looked_at=5).places

    assert (place.place, place.is_exact, place.jobs_ahead) == (None, False, 1)


def test_only_the_first_jobs_before_it_are_named() -> None:
    made = scheduler(**{f"j{k}": 1 for k in range(1, 9)})
    (place,) = asked(made, "j8", named=3).places

    assert place.jobs_ahead == 6
    assert [a.job.id for a in place.ahead] == ["j2", "j3", "j4"]


def test_classes_are_kept_apart_whatever_the_policy() -> None:
    made = scheduler("random", first=1)
    submit(made, "batch", 2, 1, job_class=JobClass.BATCH)
    submit(made, "urgent", 3, 1, job_class=JobClass.INTERACTIVE)

    places = {job: asked(made, job).places[0].place for job in ("batch", "urgent")}
    assert places == {"batch": 1, "urgent": 0}


def test_a_task_that_failed_is_waited_for_and_is_in_no_order() -> None:
    made = scheduler(first=1)
    made.handle(Batch(9.0, (TaskFailed(TaskRef("first", "a", 0), 1, "http_500: no"),)))

    found = asked(made, "first")
    assert [(task.index, task.failures) for task in found.backing_off] == [(0, 1)]
    assert found.places == ()


def test_looking_changes_nothing() -> None:
    made = scheduler("llmsched", first=3, second=2)
    before = [asked(made, job).places for job in ("first", "second")]

    assert [asked(made, job).places for job in ("first", "second")] == before
    assert all(isinstance(place, Place) for places in before for place in places)

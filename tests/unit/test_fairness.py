"""What holds for every policy alike: a bound on waiting, and turns between tenants."""

from __future__ import annotations

from typing import Any

import pytest

from llmsched.errors import InvalidInput
from llmsched.model.application import Application
from llmsched.model.events import (
    Batch,
    Event,
    ExecutorJoined,
    JobCancelled,
    JobClass,
    JobSubmitted,
    Reveal,
    TaskFinished,
    TaskRef,
    TaskResult,
    Wakeup,
)
from llmsched.model.job import Stage
from llmsched.policies import make_policy
from llmsched.policies.base import KeyPolicy, Policy, View
from llmsched.policies.bounded import Bounded
from llmsched.policies.fcfs import Fcfs
from llmsched.policies.tenants import Shared
from llmsched.scheduler import Scheduler

WIDE = Application.parse({"name": "wide", "stages": [{"name": "s", "kind": "llm", "max_tasks": 99}]})


class Youngest(KeyPolicy):
    """Last come, first served: starves the old."""

    def key(self, stage: Stage, view: View) -> float:
        return -stage.job.arrived_at


class Mixing(Youngest):
    """The same without regard to classes, which the core then sorts."""

    keeps_classes = False

    def picks(self, pool: str, view: View) -> Any:
        found = list(super().picks(pool, view))
        return iter(sorted(found, key=lambda pick: -pick.task.job.arrived_at))


def job(
    name: str, at: float = 0.0, tasks: int = 1, job_class: JobClass = JobClass.STANDARD, tenant: str = ""
) -> JobSubmitted:
    reveals = (Reveal(WIDE["s"], (0,) * tasks),)
    return JobSubmitted(name, int(name[1:]), WIDE, at, reveals, (), job_class, tenant)


def order(policy: Policy, now: float, *events: Event) -> list[str]:
    """Jobs of the tasks in the order in which slots would be given, all of them."""
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, events))
    commands = scheduler.handle(Batch(now, (ExecutorJoined("e", "llm", 99),)))
    return [command.task.job for command in commands]  # type: ignore[union-attr]


@pytest.mark.parametrize("inner", [Youngest, Mixing])
def test_a_job_that_waited_too_long_goes_first(inner: type[Youngest]) -> None:
    jobs = [job("J1", 0.0), job("J2", 5.0), job("J3", 40.0), job("J4", 50.0)]

    assert order(inner(), 60.0, *jobs) == ["J4", "J3", "J2", "J1"]
    # At 60 s J1 and J2 are older than 50 s; of those the oldest first, then the policy's own order.
    assert order(Bounded(inner(), 50.0), 60.0, *jobs) == ["J1", "J2", "J4", "J3"]


@pytest.mark.parametrize("inner", [Youngest, Mixing])
def test_an_overdue_job_goes_first_within_its_class_only(inner: type[Youngest]) -> None:
    jobs = [
        job("J1", 0.0, job_class=JobClass.BATCH),
        job("J2", 1.0),
        job("J3", 50.0),
        job("J4", 55.0, job_class=JobClass.INTERACTIVE),
        job("J5", 55.0, job_class=JobClass.BATCH),
    ]

    assert order(Bounded(inner(), 30.0), 60.0, *jobs) == ["J4", "J2", "J3", "J1", "J5"]


def test_every_task_is_picked_once_also_of_jobs_that_are_overdue() -> None:
    jobs = [job("J1", 0.0, tasks=3), job("J2", 90.0, tasks=2)]

    assert order(Bounded(Youngest(), 30.0), 100.0, *jobs) == ["J1"] * 3 + ["J2"] * 2


def test_a_bounded_policy_forgets_jobs_that_left() -> None:
    scheduler = Scheduler(Bounded(Youngest(), 1.0))
    scheduler.handle(Batch(0.0, (job("J1"), JobCancelled("J1"))))
    scheduler.handle(Batch(5.0, (job("J2", 5.0), ExecutorJoined("e", "llm", 9))))

    assert [ref.job for ref in scheduler.view.executors["e"].running] == ["J2"]


def test_nothing_changes_while_nobody_is_overdue() -> None:
    jobs = [job("J1", 0.0), job("J2", 5.0)]

    assert order(Bounded(Youngest(), 1e6), 60.0, *jobs) == order(Youngest(), 60.0, *jobs)


@pytest.mark.parametrize("bound", [0, -1.0, float("inf"), "soon", True])
def test_a_bound_is_a_positive_number_of_seconds(bound: Any) -> None:
    with pytest.raises(InvalidInput, match="it must be a positive number of seconds"):
        make_policy("fcfs", max_wait=bound)


# -------------------------------------------------------------------------------------------------------- tenants


def test_tenants_take_turns_by_jobs_at_work() -> None:
    jobs = [job(f"J{n}", tenant="a") for n in (1, 2, 3)] + [job(f"J{n}", tenant="b") for n in (4, 5)]

    assert order(Shared(Fcfs(), {}), 1.0, *jobs) == ["J1", "J4", "J2", "J5", "J3"]


def test_a_weight_of_two_is_two_jobs_for_one() -> None:
    jobs = [job(f"J{n}", tenant="a") for n in (1, 2)] + [job(f"J{n}", tenant="b") for n in (3, 4, 5, 6)]

    # Jobs at work per weight, a and b: 0, 0 -> J1; 1, 0 -> J3; 1, 1/2 -> J4; 1, 1 -> J2 (first in order); then b.
    assert order(Shared(Fcfs(), "b=2"), 1.0, *jobs) == ["J1", "J3", "J4", "J2", "J5", "J6"]


def test_a_fork_join_job_counts_once() -> None:
    jobs = [job("J1", tasks=4, tenant="a"), job("J2", tenant="b"), job("J3", tenant="b")]

    # J1 at work: a has 1; J2 then: b has 1; level again, and J1's other tasks come first and cost a nothing more.
    assert order(Shared(Fcfs(), {}), 1.0, *jobs) == ["J1", "J2", "J1", "J1", "J1", "J3"]


def test_jobs_at_work_count_until_their_last_task_ends() -> None:
    scheduler = Scheduler(Shared(Fcfs(), {}))
    scheduler.handle(Batch(0.0, (job("J1", tasks=2, tenant="a"), ExecutorJoined("e", "llm", 2))))
    scheduler.handle(Batch(1.0, (job("J2", tenant="a"), job("J3", tenant="b"))))

    done = TaskFinished(TaskRef("J1", "s", 0), 1, TaskResult(1.0))
    scheduler.handle(Batch(2.0, (done,)))
    assert list(scheduler.view.jobs["J3"].running) == [TaskRef("J3", "s", 0)]  # a still works on J1

    scheduler.handle(Batch(3.0, (JobCancelled("J1"), JobCancelled("J3"), job("J4", 3.0, tenant="b"))))
    assert [ref.job for ref in scheduler.view.executors["e"].running] == ["J2", "J4"]


@pytest.mark.parametrize("inner", [Youngest, Mixing])
def test_tenants_share_within_a_class_only(inner: type[Youngest]) -> None:
    jobs = [
        job("J1", 1.0, tenant="a", job_class=JobClass.BATCH),
        job("J2", 2.0, tenant="b", job_class=JobClass.BATCH),
        job("J3", 3.0, tenant="b", job_class=JobClass.INTERACTIVE),
        job("J4", 4.0, tenant="b", job_class=JobClass.INTERACTIVE),
    ]

    assert order(Shared(inner(), {}), 9.0, *jobs) == ["J4", "J3", "J1", "J2"]


def test_one_tenant_alone_has_the_order_of_the_policy() -> None:
    jobs = [job(f"J{n}", float(n)) for n in (1, 2, 3)]

    assert order(Shared(Youngest(), {"x": 3.0}), 9.0, *jobs) == ["J3", "J2", "J1"]


def test_a_policy_that_takes_over_counts_what_runs() -> None:
    scheduler = Scheduler(Fcfs())
    scheduler.handle(Batch(0.0, (job("J1", tenant="a"), ExecutorJoined("e", "llm", 1))))
    scheduler.handle(Batch(1.0, (job("J2", tenant="a"), job("J3", tenant="b"))))
    scheduler.use_policy(Shared(Fcfs(), {}))

    scheduler.handle(Batch(2.0, (ExecutorJoined("e", "llm", 2),)))

    assert "J3" in [ref.job for ref in scheduler.view.executors["e"].running]


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"a": 0.0}, "the weight of tenant 'a' is 0.0; it must be a positive number"),
        ({"a": True}, "the weight of tenant 'a' is True; it must be a positive number"),
        ("a", "tenants is 'a'; write tenant=weight,tenant=weight"),
    ],
)
def test_weights_are_positive_numbers(weights: Any, sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Shared(Fcfs(), weights)

    assert str(caught.value) == sentence


def test_bound_and_tenants_are_options_of_every_policy() -> None:
    policy = make_policy("fcfs", max_wait=10, tenants="a=2")

    assert isinstance(policy, Bounded)
    assert isinstance(policy.policy, Shared)
    assert not isinstance(make_policy("fcfs", tenants={}), Shared)


def test_the_clock_alone_makes_a_job_overdue() -> None:
    scheduler = Scheduler(Bounded(Youngest(), 10.0))
    scheduler.handle(Batch(0.0, (job("J1", 0.0), job("J2", 5.0), ExecutorJoined("e", "llm", 0))))
    scheduler.handle(Batch(12.0, (Wakeup(),)))

    commands = scheduler.handle(Batch(12.0, (ExecutorJoined("e", "llm", 1),)))

    assert [command.task.job for command in commands] == ["J1"]  # type: ignore[union-attr]

"""Deadlines in the order: what presses goes first, what is lost is let go, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest

from llmsched.errors import InvalidInput
from llmsched.model.application import Application
from llmsched.model.events import (
    Batch,
    Event,
    ExecutorJoined,
    JobClass,
    JobSubmitted,
    Reveal,
    StageExpanded,
    TaskFinished,
    TaskRef,
    TaskResult,
)
from llmsched.model.latency import LatencyCurve
from llmsched.policies import POLICIES, make_policy
from llmsched.policies.base import Policy
from llmsched.policies.deadlines import FEWEST, Punctual, latest_start
from llmsched.policies.fcfs import Fcfs
from llmsched.policies.tenants import Shared
from llmsched.profiler import Curves, Knowledge
from llmsched.scheduler import Scheduler
from llmsched.simulator.experiment import Choice, Comparison, Deadlines, Sizing
from llmsched.workloads import Workload

#: A second per token, whatever the batch; prefill takes no time.
CURVE = LatencyCurve("second", 1e9, ((1, 1.0),))
#: Ten tokens: 10 s of work, as declared.
TEN = Application.parse({"name": "ten", "stages": [{"name": "s", "kind": "llm", "expected": {"output_tokens": 10}}]})


def job(
    number: int, at: float = 0.0, due: float | None = None, job_class: JobClass = JobClass.STANDARD, tenant: str = ""
) -> JobSubmitted:
    reveals = (Reveal(TEN["s"], (0,)),)
    return JobSubmitted(f"J{number}", number, TEN, at, reveals, (), job_class, tenant, due=due)


def knowing() -> Knowledge:
    return Knowledge(curves=Curves(default=CURVE))


def punctual(margin: float = 1.0) -> Punctual:
    return Punctual(Fcfs(), margin, knowing())


def order(policy: Policy, now: float, *events: Event) -> list[str]:
    """Jobs in the order in which slots would be given, all of them at `now`."""
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, events))
    commands = scheduler.handle(Batch(now, (ExecutorJoined("e", "llm", 99),)))
    return [command.task.job for command in commands]  # type: ignore[union-attr]


def test_a_job_presses_from_the_moment_at_which_it_would_be_expected_late() -> None:
    # Ten seconds of work due at 100: (t + 10 - 100)+ is more than a tenth of 10 from t = 91 on.
    jobs = [job(1), job(2, due=100.0)]

    assert order(punctual(), 90.9, *jobs) == ["J1", "J2"]
    assert order(punctual(), 91.1, *jobs) == ["J2", "J1"]
    # With room for twice the work: (t + 20 - 100)+ > 2 from t = 82 on.
    assert order(punctual(2.0), 81.9, *jobs) == ["J1", "J2"]
    assert order(punctual(2.0), 82.1, *jobs) == ["J2", "J1"]


def test_of_those_that_press_the_earliest_deadline_goes_first() -> None:
    jobs = [job(1), job(2, due=99.0), job(3, due=98.0), job(4, due=500.0)]

    assert order(punctual(), 95.0, *jobs) == ["J3", "J2", "J1", "J4"]


def test_a_job_whose_deadline_has_passed_goes_in_the_policys_own_order() -> None:
    jobs = [job(1), job(2, due=50.0), job(3, due=70.0)]

    assert order(punctual(), 65.0, *jobs) == ["J3", "J1", "J2"]
    assert order(punctual(), 70.0, *jobs) == ["J1", "J2", "J3"]


def test_a_deadline_counts_within_its_class_only() -> None:
    jobs = [job(1, job_class=JobClass.INTERACTIVE), job(2), job(3, due=100.0)]

    assert order(punctual(), 95.0, *jobs) == ["J1", "J3", "J2"]


def test_a_deadline_counts_within_its_tenants_turn_only() -> None:
    jobs = [job(1, tenant="a"), job(2, tenant="b", due=100.0), job(3, tenant="b", due=99.0)]

    # The turns begin with a, whose job comes first; without them both of b's would.
    assert order(Shared(Punctual(Fcfs(), 1.0, knowing()), {"a": 1.0}), 95.0, *jobs)[:2] == ["J3", "J1"]


def test_without_deadlines_nothing_is_asked_and_nothing_changes() -> None:
    class Deaf(Knowledge):
        def outlook(self, *_: Any) -> Any:
            raise AssertionError("nobody has a deadline")

    jobs = [job(n, float(n)) for n in range(1, 6)]

    assert order(Punctual(Fcfs(), 1.0, Deaf()), 60.0, *jobs) == order(Fcfs(), 60.0, *jobs)


def test_what_is_lost_is_told_by_how_long_such_jobs_take() -> None:
    policy = punctual()
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, (ExecutorJoined("e", "llm", 1),)))
    at = 0.0
    for number in range(FEWEST):  # each takes 40 s for 10 s of work
        scheduler.handle(Batch(at, (job(number, at, due=1e6),)))
        at += 40.0
        ref = TaskRef(f"J{number}", "s", 0)
        done = TaskFinished(ref, 1, TaskResult(40.0, 0, 10))
        scheduler.handle(Batch(at, (done, StageExpanded(f"J{number}", "s", (), ()))))
    view = scheduler.view
    scheduler.handle(Batch(at, (job(90, at), job(91, at, due=at + 100.0))))

    # 10 s of work take 40 s: nine tenths of them before the deadline it presses, and 40 s before it is lost.
    assert policy.moments(view.jobs["J91"], view) == pytest.approx((at + 60.0, at + 60.0))


def test_a_job_that_left_leaves_nothing_behind() -> None:
    policy = punctual()
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, (job(1, due=50.0), ExecutorJoined("e", "llm", 1))))
    done = TaskFinished(TaskRef("J1", "s", 0), 1, TaskResult(10.0, 0, 10))
    scheduler.handle(Batch(10.0, (done, StageExpanded("J1", "s", (), ()))))

    kept = (policy._moments, policy._started, policy._entries, policy._ready["llm"])
    assert not any(kept)


def test_the_latest_start_solves_its_equation() -> None:
    rng = Random(3)
    for _ in range(200):
        m = rng.randint(1, 8)
        seconds = np.array([rng.choice([0.0, rng.expovariate(0.1)]) for _ in range(m)])
        weights = np.array([rng.random() + 1e-3 for _ in range(m)])
        weights /= weights.sum()
        x = latest_start(seconds, weights, 0.1)
        assert weights @ np.maximum(seconds - x, 0.0) == pytest.approx(0.1 * (weights @ seconds), abs=1e-9)


@pytest.mark.parametrize("margin", [0, -1.0, float("nan"), "soon", True])
def test_a_margin_is_a_positive_number(margin: Any) -> None:
    with pytest.raises(InvalidInput, match=r"deadlines is .* it must be a positive number"):
        make_policy("fcfs", deadlines=margin)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "3:0", "3:1.5", "3:", "nan"])
def test_deadlines_that_cannot_be_are_refused(text: str) -> None:
    if text == "3:":
        assert Deadlines.parse(text) == Deadlines(3.0)
    else:
        with pytest.raises(InvalidInput, match="deadlines are"):
            Deadlines.parse(text)


def test_in_a_simulation_heeding_deadlines_meets_more_of_them() -> None:
    from llmsched.catalogue import installed_applications
    from llmsched.model.latency import GENERIC_7B

    workload = Workload.load("chain")
    comparison = Comparison(
        workload,
        tuple(Choice.parse(p) for p in ("fcfs", "fcfs:deadlines=1.5")),
        (Sizing((8,), {"cpu": 4}, 2.2, None),),
        (0,),
        150,
        installed_applications(),
        GENERIC_7B,
        deadlines=Deadlines(4.0, 0.5),
    )
    plain, heeding = (comparison.run((0, k, 0), comparison.arrivals(0, 0)) for k in (0, 1))

    before, after = plain.punctuality(), heeding.punctuality()
    assert before["jobs"] == after["jobs"] == sum(deadline is not None for deadline in heeding.deadlines)
    assert (after["on_time"] or 0.0) > (before["on_time"] or 0.0) + 0.05
    assert "deadlines" in heeding.to_json()
    assert "deadlines" not in replace(heeding, deadlines=[]).to_json()


@pytest.mark.parametrize("name", [name for name, policy in POLICIES.items() if not policy.is_oracle])
def test_every_policy_takes_deadlines(name: str) -> None:
    jobs = [job(1, due=1e3), job(2), job(3, due=20.0)]
    policy = make_policy(name, deadlines=1.0, knowledge=knowing())

    assert sorted(order(policy, 15.0, *jobs)) == ["J1", "J2", "J3"]
    assert order(make_policy(name, deadlines=1.0, knowledge=knowing()), 15.0, *jobs)[0] == "J3"

"""Policies that go by predicted lengths: the orders of the specification (sections 8, 9 and 11), and their guards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llmsched.errors import InvalidInput
from llmsched.model.application import Application
from llmsched.model.events import (
    Batch,
    Dispatch,
    Event,
    ExecutorJoined,
    JobCancelled,
    JobClass,
    JobSubmitted,
    Reveal,
    TaskFailed,
    TaskRef,
)
from llmsched.model.job import Stage, Task
from llmsched.policies.base import Pick, Policy
from llmsched.policies.ltr import Ltr
from llmsched.policies.magnus import Hrrn, Magnus, wma
from llmsched.policies.ssjf import Ssjf
from llmsched.profiler import Curves, Knowledge
from llmsched.profiler.history import Array
from llmsched.profiler.validation import kendall_tau
from llmsched.scheduler import Backoff, Scheduler
from tests.unit.learned import ROUND

#: 10 ms a token alone.
KNOWLEDGE = Knowledge(curves=Curves(default=ROUND))


def app(name: str, kind: str = "llm", **more: Any) -> Application:
    return Application.parse({"name": name, "stages": [{"name": name, "kind": kind, "max_tasks": 9, **more}]})


class Told:
    """Predicts what it is told, by stage: a number, or one per task."""

    def __init__(self, **said: float | Sequence[float]) -> None:
        self._said = said

    def scores(self, tasks: Sequence[Task]) -> Array:
        said = self._said[tasks[0].stage.name]
        return np.array(said if isinstance(said, list | tuple) else [said] * len(tasks), dtype=float)

    tokens = scores

    def quantile(self, score: float) -> float:
        return (1.0 - score) / 10.0

    def spread(self, stage: Stage) -> float:
        return 0.5


class Waiting:
    """A scheduler without executors: jobs `name` of one stage of the same name, ready when they are submitted."""

    def __init__(self, policy: Policy) -> None:
        self.scheduler = Scheduler(policy, backoff=Backoff(first=1.0, most=1.0, spread=0.0))
        self._number = 0

    def submit(
        self,
        name: str,
        at: float,
        *,
        tasks: int = 1,
        prompt: int = 0,
        job_class: JobClass = JobClass.STANDARD,
        **more: Any,
    ) -> None:
        application = app(name, **more)
        reveal = Reveal(application[name], (prompt,) * tasks)
        self._number += 1
        job = JobSubmitted(name, self._number, application, at, (reveal,), job_class=job_class)
        self.handle(at, job)

    def handle(self, at: float, *events: Event) -> list[str]:
        commands = self.scheduler.handle(Batch(at, events))
        return [f"{c.task.stage}{c.task.index}" for c in commands if isinstance(c, Dispatch)]

    def picks(self, at: float, pool: str = "llm") -> list[Pick]:
        self.scheduler.handle(Batch(at, ()))
        self.scheduler.policy.begin(self.scheduler.view)
        return list(self.scheduler.policy.picks(pool, self.scheduler.view))

    def order(self, at: float, pool: str = "llm") -> str:
        return " ".join(pick.task.stage.name for pick in self.picks(at, pool))


def test_the_metric_of_the_specification() -> None:
    tau = kendall_tau(np.array([12.0, 11.0, 30.0, 30.0]), np.array([10.0, 20.0, 30.0, 40.0]))
    assert tau == pytest.approx(0.547723, abs=1e-6)


# ----------------------------------------------------------------------------------------------------------- ltr


def ranked(policy: Policy) -> Waiting:
    world = Waiting(policy)
    world.submit("q4", 0.0)
    for name in ("q1", "q2", "q3"):
        world.submit(name, 100.0)
    return world


SCORES = Told(q1=-1.2, q2=0.8, q3=0.1, q4=-3.0)


def test_ltr_starts_the_shortest_first_and_the_starved_before() -> None:
    world = ranked(Ltr(SCORES))

    assert world.order(119.0) == "q2 q3 q1 q4"
    assert world.order(120.0) == "q4 q2 q3 q1"
    picks = world.picks(120.0)
    # 1000 x the share of answers that looked shorter, as Told says: (1 - score) / 10
    assert [pick.priority for pick in picks] == [-1, 20, 90, 220]
    assert picks[0].why == {"score": -3.0, "promoted": True}
    assert picks[1].why == {"score": 0.8}


def test_ltr_promotes_by_score_among_the_starved_and_until_they_start() -> None:
    world = ranked(Ltr(SCORES, starve_after=10.0))
    assert world.order(200.0) == "q2 q3 q1 q4", "all are starved"

    assert world.handle(200.0, ExecutorJoined("e", "llm", 1)) == ["q20"]
    failed = TaskFailed(TaskRef("q2", "q2", 0), 1, "timeout")
    assert world.handle(201.0, failed) == ["q30"]
    world.handle(202.0, ExecutorJoined("e", "llm", 0))

    assert world.order(202.0) == "q1 q4 q2", "what waits anew is not promoted any more"
    assert world.order(212.0) == "q2 q1 q4"


def test_ltr_by_job_ranks_jobs_by_the_mean_of_their_ready_calls() -> None:
    told = Told(a=[3.0, -3.0], b=[1.0, 1.0])
    single = Waiting(Ltr(told))
    by_job = Waiting(Ltr(told, scope="job"))
    for world in (single, by_job):
        world.submit("a", 0.0, tasks=2)
        world.submit("b", 0.0, tasks=2)

    assert single.order(0.0) == "a b b a"
    assert by_job.order(0.0) == "b b a a"
    assert by_job.handle(1.0, ExecutorJoined("e", "llm", 3)) == ["b0", "b1", "a0"]
    assert by_job.picks(2.0)[0].why == {"score": -3.0}, "the mean of what is left"


def test_regular_tasks_go_in_order_of_arrival() -> None:
    for policy in (Ltr(SCORES), Ssjf(SCORES, KNOWLEDGE), Magnus(SCORES, KNOWLEDGE), Hrrn(SCORES, KNOWLEDGE)):
        world = Waiting(policy)
        for name, at in (("w", 0.0), ("v", 1.0)):
            world.submit(name, at, kind="regular")

        assert world.order(500.0, "cpu") == "w v"


@pytest.mark.parametrize("make", [Ltr, Ssjf, Magnus])
def test_classes_stay_apart_even_for_the_starved(make: Any) -> None:
    told = Told(q1=5.0, q2=5.0, tool=0.0)
    world = Waiting(make(told))
    world.submit("q1", 0.0, job_class=JobClass.BATCH)
    world.submit("q2", 1_000.0, job_class=JobClass.INTERACTIVE)
    world.submit("tool", 1_000.0, kind="regular", pool="llm")

    assert world.order(1_000.0) == "q2 tool q1"


# ---------------------------------------------------------------------------------------------------------- ssjf

#: Estimates of 9, 2 and 5 seconds.
SECONDS = Told(r1=900.0, r2=200.0, r3=500.0)


def waited(policy: Policy, seconds: float) -> str:
    """The order when r3 has waited so long and the others have not."""
    world = Waiting(policy)
    world.submit("r3", 0.0)
    world.submit("r1", seconds)
    world.submit("r2", seconds)
    return world.order(seconds)


def test_ssjf_plays_the_specification() -> None:
    assert waited(Ssjf(SECONDS, KNOWLEDGE), 130.0) == "r3 r2 r1"
    assert waited(Ssjf(SECONDS, KNOWLEDGE, guard="global"), 130.0) == "r3 r1 r2"
    assert waited(Ssjf(SECONDS, KNOWLEDGE), 30.0) == "r2 r3 r1"
    assert waited(Ssjf(SECONDS, KNOWLEDGE, guard="global"), 30.0) == "r2 r3 r1"


def test_ssjf_starves_after_ten_times_the_estimate_too() -> None:
    assert waited(Ssjf(SECONDS, KNOWLEDGE), 50.0) == "r2 r3 r1", "not more than 10 x 5 s"
    assert waited(Ssjf(SECONDS, KNOWLEDGE), 50.1) == "r3 r2 r1"
    assert waited(Ssjf(SECONDS, KNOWLEDGE, factor=20.0), 50.1) == "r2 r3 r1"
    assert waited(Ssjf(SECONDS, KNOWLEDGE, wait=40.0), 40.1) == "r3 r2 r1"


def test_ssjf_sends_predicted_tokens_as_priority() -> None:
    world = Waiting(Ssjf(SECONDS))  # by the usual curve: 10 ms a token, 8,000 prompt tokens a second
    world.submit("r3", 0.0)
    world.submit("r2", 130.0, prompt=8_000)

    assert [(p.priority, p.why) for p in world.picks(130.0)] == [
        (-1, {"estimate": 5.0, "promoted": True}),
        (200, {"estimate": 3.0}),
    ]


def test_ssjf_forgets_the_wait_of_a_job_that_left() -> None:
    policy = Ssjf(SECONDS, KNOWLEDGE)
    world = Waiting(policy)
    world.submit("r3", 0.0)
    world.handle(130.0, JobCancelled("r3"))

    assert world.order(131.0) == ""
    assert (len(policy._due), policy._dues, policy._promoted) == (0, {}, {})


# --------------------------------------------------------------------------------------------- magnus and hrrn


def test_wasted_memory_accesses_of_the_specification() -> None:
    # 50 x 10 + the sum of 110 + k for k = 51 … 60; the long one makes everybody read to the end
    assert wma([100, 110], [50, 60]) == 500 + sum(110 + k for k in range(51, 61)) == 2_155
    assert wma([100, 110, 100], [50, 60, 500]) == 173_975


def test_hrrn_goes_by_the_response_ratio() -> None:
    world = Waiting(Hrrn(Told(r1=500.0, r2=100.0, r3=400.0), KNOWLEDGE))
    for name, at in (("r1", 0.0), ("r2", 10.0), ("r3", 11.0)):
        world.submit(name, at)

    picks = world.picks(12.0)

    assert [pick.task.stage.name for pick in picks] == ["r1", "r2", "r3"]
    assert [pick.why for pick in picks] == [
        {"ratio": 2.4, "batch": 1},
        {"ratio": 2.0, "batch": 1},
        {"ratio": 0.25, "batch": 1},
    ]
    assert [pick.priority for pick in picks] == [round(1000 / 3.4), round(1000 / 3), 800]


def sizes(world: Waiting, at: float) -> list[tuple[str, int]]:
    return [(pick.task.stage.name, (pick.why or {})["batch"]) for pick in world.picks(at)]


def test_magnus_batches_calls_of_like_length() -> None:
    world = _with_slots(Magnus(Told(a=50.0, b=60.0, c=500.0), KNOWLEDGE), 8)
    for name, prompt in (("b", 110), ("a", 100), ("c", 100)):
        world.submit(name, 1.0, prompt=prompt)

    # a and b waste 2,155 together, c would waste 173,975; a is shorter than b, and their ratio is higher
    assert sizes(world, 5.0) == [("a", 2), ("b", 2), ("c", 1)]
    tight = _with_slots(Magnus(Told(a=50.0, b=60.0, c=500.0), KNOWLEDGE, phi=2_155), 8)
    for name, prompt in (("b", 110), ("a", 100)):
        tight.submit(name, 1.0, prompt=prompt)
    assert sizes(tight, 5.0) == [("a", 1), ("b", 1)], "phi itself is too much"


def _with_slots(policy: Policy, slots: int) -> Waiting:
    """A world whose engine is full with calls of another job."""
    told: Any = policy._predictions.model  # type: ignore[attr-defined]
    told._said["busy"] = [1.0] * slots
    world = Waiting(policy)
    world.submit("busy", 0.0, tasks=slots)
    assert len(world.handle(0.0, ExecutorJoined("e", "llm", slots))) == slots
    return world


def test_a_batch_is_no_larger_than_an_engine_and_takes_no_more_once_it_has_begun() -> None:
    world = _with_slots(Magnus(Told(d=[10.0] * 5, f=10.0), KNOWLEDGE), 3)
    world.submit("d", 0.0, tasks=5)
    assert sizes(world, 1.0) == [("d", 2)] * 2 + [("d", 3)] * 3, "the smaller one is served faster"

    world.handle(1.0, ExecutorJoined("e2", "llm", 1))  # a call of the first batch starts
    world.submit("f", 1.0)

    assert sizes(world, 1.0) == [("d", 1)] + [("d", 3)] * 3 + [("f", 1)]


def test_magnus_by_request_is_hrrn() -> None:
    world = _with_slots(Magnus(Told(d=[10.0] * 5), KNOWLEDGE, mode="request"), 3)
    world.submit("d", 0.0, tasks=5)

    assert sizes(world, 1.0) == [("d", 1)] * 5


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Ltr, {"scope": "stage"}),
        (Ltr, {"starve_after": 0}),
        (Ssjf, {"guard": "none"}),
        (Ssjf, {"wait": -1}),
        (Ssjf, {"factor": True}),
        (Magnus, {"mode": "both"}),
        (Magnus, {"phi": "x"}),
    ],
)
def test_a_bad_option_is_one_sentence(make: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=r"must be|unknown"):
        make(**options)

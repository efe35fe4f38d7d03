"""Carbyne: fair shares, schedules within them, and what jobs give up."""

from __future__ import annotations

import pickle
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsched.errors import InvalidInput
from llmsched.model.application import Application
from llmsched.model.events import (
    Batch,
    Dispatch,
    ExecutorJoined,
    JobClass,
    JobSubmitted,
    Reveal,
    StageExpanded,
    TaskFinished,
    TaskRef,
    TaskResult,
)
from llmsched.model.kinds import StageKind
from llmsched.model.recording import RecordedStage, Recording
from llmsched.model.spec import StageSpec
from llmsched.policies import make_policy
from llmsched.policies.base import View
from llmsched.policies.carbyne import _PLANNED, Carbyne, Held, Part, list_schedule
from llmsched.profiler import Knowledge, fit
from llmsched.scheduler import Scheduler
from llmsched.simulator import Setup
from llmsched.simulator import World as SimulatedWorld
from llmsched.workloads import Arrival
from tests.unit.figure_2 import application, seconds, stage
from tests.unit.learned import CURVES, REPAIR, ROUND, VOTE, llm, regular, repairs
from tests.unit.world import Luck, World, random_job

# ------------------------------------------------------------------------------------------- the specification's jobs

A = application("A", stage("a1"), stage("a2", kind="regular"), stage("a3", "a1", "a2"))
B = application("B", stage("b1", kind="regular"))
A_JOB = Recording("A", "a#1", (seconds("a1", 10), regular("a2", 2.0), seconds("a3", 1, "a1", "a2")))
B_JOB = Recording("B", "b#1", (regular("b1", 1.0),))
AB = {"A": A, "B": B}


def learned(**jobs: tuple[Application, Recording]) -> Knowledge:
    """Knows these jobs as the only ones there ever were."""
    return Knowledge([fit(a, [recording] * 20, curves=CURVES) for a, recording in jobs.values()], CURVES)


def ab() -> Knowledge:
    return learned(a=(A, A_JOB), b=(B, B_JOB))


def submitted(number: int, template: Application, *, job_class: JobClass = JobClass.STANDARD, **tasks: int) -> Any:
    reveals = tuple(Reveal(template[name], (0,) * n) for name, n in tasks.items())
    return JobSubmitted(f"J{number}", number, template, 0.0, reveals, job_class=job_class)


def finished(job: str, name: str, index: int = 0) -> TaskFinished:
    return TaskFinished(TaskRef(job, name, index), 1, TaskResult(1.0))


def order(policy: Carbyne, pool: str, view: View) -> list[str]:
    policy.begin(view)
    return [f"{p.task.job.id}.{p.task.stage.name}{p.task.index}" for p in policy.picks(pool, view)]


def waiting(policy: Carbyne, *events: Any, **slots: int) -> View:
    """A view in which these events have happened and nothing was started yet."""
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, (*(ExecutorJoined(f"{pool}-0", pool, 0) for pool in slots), *events)))
    for executor in scheduler.view.executors.values():
        executor.slots = slots[executor.pool]
    return scheduler.view


def two(policy: Carbyne) -> View:
    """Both jobs of the specification, on one slot of each pool."""
    return waiting(policy, submitted(1, A, a1=1, a2=1), submitted(2, B, b1=1), llm=1, cpu=1)


def test_a_job_gives_up_what_can_wait() -> None:
    policy = Carbyne(ab())
    view = two(policy)

    policy.begin(view)
    picks = {pool: [(p.task.stage.name, p.why) for p in policy.picks(pool, view)] for pool in ("llm", "cpu")}

    # T_A = 11: a3 at 10, a2 at 8, a1 at once; T_B = 1.
    assert picks == {
        "llm": [("a1", {"must": True, "slack": 0.0})],
        "cpu": [
            ("b1", {"must": True, "slack": 0.0}),
            ("a2", {"must": False, "slack": pytest.approx(8.0), "left": pytest.approx(13.0)}),
        ],
    }


@pytest.mark.parametrize(("policy", "ends"), [("carbyne", {"A": 11.0, "B": 1.0}), ("fcfs", {"A": 11.0, "B": 3.0})])
def test_who_waits_loses_nothing_by_it(policy: str, ends: dict[str, float]) -> None:
    arrivals = [Arrival(0.0, A_JOB), Arrival(0.0, B_JOB)]

    scheduler = Scheduler(make_policy(policy, knowledge=ab() if policy == "carbyne" else None))
    world = SimulatedWorld(scheduler, arrivals, AB, Setup(engines=(1,), workers={"cpu": 1}, curve=ROUND)).run()

    assert {f.application: round(f.finished_at, 3) for f in world.finished} == ends


def test_slack_melts_away_as_time_passes() -> None:
    policy = Carbyne(ab())
    view = two(policy)
    assert order(policy, "cpu", view) == ["J2.b10", "J1.a20"]

    view.now = 8.0

    assert order(policy, "cpu", view) == ["J1.a20", "J2.b10"], "both must, and A came first"


def test_delta_lets_a_task_go_some_time_before_it_must() -> None:
    policy = Carbyne(ab(), delta=8.0)

    assert order(policy, "cpu", two(policy)) == ["J1.a20", "J2.b10"]


def test_without_altruism_a_job_insists_on_its_share() -> None:
    policy = Carbyne(ab(), altruism=0.0)

    assert order(policy, "cpu", two(policy)) == ["J1.a20", "J2.b10"]


def test_some_jobs_are_altruistic_and_the_seed_says_which() -> None:
    jobs = [submitted(n, A, a1=1, a2=1) for n in range(12)]

    def insisting(seed: int) -> list[bool]:
        policy = Carbyne(ab(), altruism=0.5, seed=seed)
        view = waiting(policy, *jobs, llm=1, cpu=1)
        policy.begin(view)
        picks = {p.task.job.number: p.why for p in policy.picks("cpu", view)}
        return [bool((picks[n] or {})["must"]) for n in range(12)]

    assert insisting(1) == insisting(1) != insisting(2)
    assert 0 < sum(insisting(1)) < 12


# --------------------------------------------------------------------------------------------------- shares and order

FIVE = Recording("vote", "v#1", (llm("vote", 100, 100, 100, 100, 100),))


def test_a_share_is_what_dominant_resource_fairness_gives() -> None:
    """Two voters in 8 slots: 4 of each 5 calls must go. Of the same job, what it holds is taken off."""
    policy = Carbyne(learned(v=(VOTE, FIVE)))
    jobs = [submitted(n, VOTE, vote=5) for n in (1, 2)]
    view = waiting(policy, *jobs, llm=8)

    # Five equal calls in 4 lanes take 2 s: four can wait for a second, one has to start.
    assert order(policy, "llm", view)[:2] == ["J1.vote0", "J2.vote0"]

    selfish = Carbyne(learned(v=(VOTE, FIVE)), altruism=0.0)
    view = waiting(selfish, *jobs, llm=8)
    expected = [f"J{n}.vote{k}" for n in (1, 2) for k in range(4)]
    assert order(selfish, "llm", view) == [*expected, "J1.vote4", "J2.vote4"]


def test_held_slots_count_against_the_share() -> None:
    policy = Carbyne(learned(v=(VOTE, FIVE)), altruism=0.0)
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, (ExecutorJoined("e", "llm", 3), submitted(1, VOTE, vote=5))))
    scheduler.handle(Batch(0.5, (submitted(2, VOTE, vote=5),)))
    scheduler.view.executors["e"].slots = 8  # 4 each: J1, which holds 3, may insist on one more

    expected = [f"J2.vote{k}" for k in range(4)] + ["J1.vote3"]

    assert order(policy, "llm", scheduler.view) == [*expected, "J1.vote4", "J2.vote4"]


def test_a_job_above_its_share_waits_for_left_overs() -> None:
    policy = Carbyne(learned(v=(VOTE, FIVE)))
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, (ExecutorJoined("e", "llm", 4), submitted(1, VOTE, vote=5))))
    scheduler.handle(Batch(0.5, (submitted(2, VOTE, vote=5),)))  # two slots each

    assert order(policy, "llm", scheduler.view) == ["J2.vote0", "J1.vote4", *(f"J2.vote{k}" for k in range(1, 5))]


def test_left_overs_go_to_the_job_with_the_least_left() -> None:
    long = application("long", stage("x"), stage("y", kind="regular"), stage("z", "x"))
    short = application("short", stage("p"), stage("q", kind="regular"))
    knowledge = learned(
        long=(long, Recording("long", "l", (llm("x", 900), regular("y", 1.0), llm("z", 100, after=["x"])))),
        short=(short, Recording("short", "s", (llm("p", 500), regular("q", 1.0)))),
    )
    policy = Carbyne(knowledge)
    view = waiting(policy, submitted(1, long, x=1, y=1), submitted(2, short, p=1, q=1), llm=2, cpu=2)

    assert order(policy, "cpu", view) == ["J2.q0", "J1.y0"], "neither must: 6 s are left of J2, 11 s of J1"
    assert order(policy, "llm", view) == ["J1.x0", "J2.p0"], "both must"


def test_within_a_job_the_longer_path_goes_first() -> None:
    fork = application("fork", stage("s"), stage("l"), stage("t", "l"))
    recording = Recording("fork", "f", (llm("s", 100), llm("l", 100), llm("t", 900, after=["l"])))
    policy = Carbyne(learned(f=(fork, recording)))

    # One slot: l, then s and t, in all 11 s; nothing can wait but s.
    assert order(policy, "llm", waiting(policy, submitted(1, fork, s=1, l=1), llm=1)) == ["J1.l0", "J1.s0"]


def test_classes_are_kept_apart_before_shares_and_slack() -> None:
    policy = Carbyne(ab())
    jobs = [submitted(1, B, job_class=JobClass.BATCH, b1=1), submitted(2, A, job_class=JobClass.STANDARD, a1=1, a2=1)]

    assert order(policy, "cpu", waiting(policy, *jobs, llm=1, cpu=1)) == ["J2.a20", "J1.b10"]


def test_a_plan_counts_as_one_task_until_it_is_known_and_then_as_what_it_is() -> None:
    template = application(
        "P",
        stage("plan"),
        stage("side", kind="regular"),
        stage("do", "plan", kind="dynamic", planner="plan", candidates=["tool"]),
        stage("join", "do", "side"),
    )
    inner = [regular(f"tool_{k}", 3.0, after=["plan"], tool="tool", parent="do") for k in range(2)]
    do = RecordedStage("do", StageKind.DYNAMIC, ("plan",), ())
    recording = Recording("P", "p", (llm("plan", 100), regular("side", 1.0), do, *inner, llm("join", 100)))
    policy = Carbyne(learned(p=(template, recording)))
    scheduler = Scheduler(policy)
    executors = (ExecutorJoined("e", "llm", 1), ExecutorJoined("w", "cpu", 0))
    scheduler.handle(Batch(0.0, (*executors, submitted(1, template, plan=1, side=1))))

    def slacks() -> dict[str, float]:
        scheduler.view.executors["w"].slots = 1
        policy.begin(scheduler.view)
        why = {p.task.stage.name: p.why or {} for p in policy.picks("cpu", scheduler.view)}
        scheduler.view.executors["w"].slots = 0
        return {name: round(known["slack"], 3) for name, known in why.items()}

    # On the only worker: 1 s of side work while the plan is made, then 6 s of tools as one task, then 1 s to join.
    assert slacks() == {"side": 0.0}

    plan = Reveal(template["do"]), Reveal(tool("tool_0"), (0,))
    scheduler.handle(Batch(1.0, (finished("J1", "plan"), StageExpanded("J1", "plan", plan))))

    # One tool of 3 s and 1 s of side work in 4 s: seen from the end the longer one is placed first, so it can wait.
    assert slacks() == {"side": 0.0, "tool_0": 1.0}


def tool(name: str) -> StageSpec:
    return StageSpec(name, StageKind.REGULAR, ("plan",), "cpu", parent="do", candidate="tool")


# ------------------------------------------------------------------------------------------------ the list schedule


def test_a_lane_that_closes_takes_only_what_fits() -> None:
    """Two bundles of 3 s; the first lane closes at 1, the second never: they follow each other."""
    starts, end = list_schedule([[Part("p", 2, 3.0)]], [[]], [[]], [3.0], {"p": [1.0, float("inf")]})

    assert (starts, end) == ([[0.0, 3.0]], 6.0)


def test_a_held_slot_is_free_when_its_task_ends_and_children_wait_for_that_task() -> None:
    held = [Held(2.0, 0, "p", True)]

    starts, end = list_schedule([[], [Part("p", 1, 3.0)]], [[], [0]], [[1], []], [5.0, 3.0], {"p": []}, held)

    assert (starts, end) == ([[], [2.0]], 5.0)


@given(st.integers(0, 2**32))
def test_a_list_schedule_is_one(seed: int) -> None:
    """Parents first, never more than the lanes there are, and no lane idle while something could start."""
    rng = Random(seed)
    n = rng.randint(1, 8)
    parts = [Part(rng.choice("pq"), rng.randint(1, 3), rng.choice((1.0, 2.5))) for _ in range(n)]
    before = [[p for p in range(k) if rng.random() < 0.3] for k in range(n)]
    after = [[k for k in range(n) if p in before[k]] for p in range(n)]
    lanes = {"p": [float("inf")] * rng.randint(1, 3), "q": [float("inf")] * rng.randint(1, 3)}

    starts, end = list_schedule([[part] for part in parts], before, after, [rng.random() for _ in parts], lanes)

    bars = [(start, start + part.seconds, part.pool, k) for k, part in enumerate(parts) for start in starts[k]]
    assert [len(own) for own in starts] == [part.bundles for part in parts]
    for moment, *_ in bars:
        for pool, own in lanes.items():
            assert sum(begin <= moment < over for begin, over, p, _ in bars if p == pool) <= len(own)
    for begin, _, pool, k in bars:
        allowed = max((over for _, over, _, parent in bars if parent in before[k]), default=0.0)
        busy = sum(b < begin <= over for b, over, p, _ in bars if p == pool)
        assert begin == allowed or (begin > allowed and busy == len(lanes[pool])), "it starts as soon as it can"
    assert end == max(over for _, over, *_ in bars)


# ---------------------------------------------------------------------------------------------------- what it promises


def test_a_decision_plans_a_bounded_number_of_jobs_and_orders_all() -> None:
    policy = Carbyne(ab())
    view = waiting(policy, *(submitted(n, A, a1=1, a2=1) for n in range(3 * _PLANNED)), llm=1, cpu=1)

    planned = []
    for _ in range(4):
        assert len(order(policy, "llm", view)) == 3 * _PLANNED
        planned.append(len(policy._plans))

    assert planned == [_PLANNED, 2 * _PLANNED, 3 * _PLANNED, 3 * _PLANNED]


def test_thousands_of_tasks_are_planned_in_bundles() -> None:
    template = Application.parse(
        {"name": "wide", "stages": [{"name": "map", "kind": "llm", "tasks": 1000, "max_tasks": 1000}]}
    )
    policy = Carbyne(Knowledge(curves=CURVES))
    view = waiting(policy, submitted(1, template, map=1000), llm=4)

    assert order(policy, "llm", view) == [f"J1.map{k}" for k in range(1000)]


def test_new_profiles_make_new_plans() -> None:
    knowledge = Knowledge(curves=CURVES)
    policy = Carbyne(knowledge)
    view = two(policy)
    assert order(policy, "cpu", view) == ["J1.a20", "J2.b10"], "nothing known, nothing can wait"

    for template, recording in ((A, A_JOB), (B, B_JOB)):
        knowledge.put(fit(template, [recording] * 20, curves=CURVES))

    assert order(policy, "cpu", view) == ["J2.b10", "J1.a20"]


def test_it_remembers_nothing_of_jobs_that_left() -> None:
    rng = Random(3)
    jobs = [(*random_job(rng), rng.uniform(0, 5)) for _ in range(9)]
    world = World(jobs, policy="carbyne", luck=Luck(failing=0.1, losing=0.1, cancelling=0.2), seed=3)
    world.run()

    assert len(pickle.dumps(world.scheduler.policy)) < 2_000


def test_it_finishes_learned_jobs_under_load() -> None:
    knowledge = Knowledge([fit(REPAIR, repairs(60), curves=CURVES)], CURVES)
    arrivals = [Arrival(0.3 * k, job) for k, job in enumerate(repairs(30, seed=5))]
    scheduler = Scheduler(make_policy("carbyne", knowledge=knowledge))

    world = SimulatedWorld(scheduler, arrivals, {"repair": REPAIR}, Setup(engines=(2,), curve=ROUND)).run()

    assert len(world.finished) == 30


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"delta": -1.0}, "delta is -1.0; it must be a number of seconds, 0 or more"),
        ({"delta": float("inf")}, "delta is inf; it must be a number of seconds, 0 or more"),
        ({"altruism": 1.5}, "altruism is 1.5; it must be from 0 to 1"),
        ({"altruism": True}, "altruism is True; it must be from 0 to 1"),
    ],
)
def test_a_bad_option_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_policy("carbyne", **options)

    assert str(caught.value) == sentence


def test_a_dispatch_says_why() -> None:
    scheduler = Scheduler(Carbyne(ab()))
    executors = (ExecutorJoined("e", "llm", 1), ExecutorJoined("w", "cpu", 1))

    commands = scheduler.handle(Batch(0.0, (*executors, submitted(1, A, a1=1, a2=1), submitted(2, B, b1=1))))

    why = [(c.task.stage, (c.why or {})["must"]) for c in commands if isinstance(c, Dispatch)]
    assert why == [("a1", True), ("b1", True)]

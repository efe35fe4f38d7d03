"""Orders that need no durations: equal shares of running tasks, influence on the DAG, and the queue of stages."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from llmsched.errors import InvalidInput, UnknownName
from llmsched.model.application import Application
from llmsched.model.events import (
    Batch,
    Dispatch,
    Event,
    ExecutorJoined,
    ExecutorLost,
    JobCancelled,
    JobClass,
    JobSubmitted,
    Reveal,
    StageExpanded,
    TaskFinished,
    TaskRef,
    TaskResult,
)
from llmsched.model.job import Job, Stage, TaskState
from llmsched.model.kinds import StageKind
from llmsched.model.spec import StageSpec
from llmsched.policies import make_policy as make
from llmsched.policies.argus import Argus, Rank, depths, downstream
from llmsched.policies.base import Policy, View
from llmsched.policies.fair import Fair
from llmsched.policies.fcfs import Fcfs
from llmsched.profiler import Knowledge, fit
from llmsched.scheduler import Scheduler
from tests.unit.learned import CURVES, PLANNED, planned
from tests.unit.test_policies import application, busy, decide, stage, submitted


def wide(name: str) -> Application:
    """One stage of up to 9 tasks, named after its application."""
    return application(name, stage(name))


A, B, C = wide("A"), wide("B"), wide("C")


def ended(job: str, stage: str, *tasks: int, attempt: int = 1) -> list[TaskFinished]:
    return [TaskFinished(TaskRef(job, stage, k), attempt, TaskResult(1.0)) for k in tasks]


def with_running(policy: Policy, *jobs: tuple[JobSubmitted, int], more: Iterable[Event] = ()) -> Scheduler:
    """Every job runs so many of its tasks; then all slots are taken away, so that the rest waits."""
    scheduler = Scheduler(policy)
    slots = 0
    for job, running in jobs:
        slots += running
        scheduler.handle(Batch(0.0, (ExecutorJoined("e", "llm", slots), job)))
        scheduler.handle(Batch(0.0, (ExecutorJoined("e", "llm", 0),)))
    scheduler.handle(Batch(0.0, tuple(more)))
    return scheduler


# ------------------------------------------------------------------------------------------------------ fair


#: Specification 3: running A3 B1 C0, pending A2 B2 C3, in which it expects `C0 B0 C1 B1 C2 A0 A1`. It numbers the
#: pending tasks only: here A0 to A2 and B0 run.
THREE = (submitted(1, A, 0.0, A=5), 3), (submitted(2, B, 1.0, B=3), 1), (submitted(3, C, 2.0, C=3), 0)
IN_TURN = ["C0", "B1", "C1", "B2", "C2", "A3", "A4"]


def test_fair_gives_the_next_slot_to_the_job_that_runs_least() -> None:
    assert decide(with_running(Fair(), *THREE), "llm") == IN_TURN


def test_fair_takes_over_from_a_policy_that_started_other_tasks() -> None:
    scheduler = with_running(Fair(), *THREE)
    scheduler.use_policy(Fair())

    assert decide(scheduler, "llm") == IN_TURN


def test_fair_counts_its_own_picks_before_they_run() -> None:
    scheduler = Scheduler(Fair())
    jobs = [submitted(n, app, float(n), **{app.name: 4}) for n, app in enumerate((A, B))]

    commands = scheduler.handle(Batch(0.0, (*jobs, ExecutorJoined("e", "llm", 4))))

    assert [c.task.stage for c in commands if isinstance(c, Dispatch)] == ["A", "B", "A", "B"]


def test_fair_follows_tasks_that_end_and_executors_that_are_lost() -> None:
    scheduler = Scheduler(Fair())
    first = submitted(1, A, 0.0, A=4)
    scheduler.handle(Batch(0.0, (ExecutorJoined("e", "llm", 2), ExecutorJoined("f", "llm", 2), first)))
    drained = ExecutorJoined("e", "llm", 0), ExecutorJoined("f", "llm", 0)
    scheduler.handle(Batch(1.0, (*drained, submitted(2, B, 1.0, B=2), submitted(3, A, 2.0, A=1))))
    assert decide(scheduler, "llm") == ["B0", "A0", "B1"], "J2 and J3 take turns"

    # Tasks alternate between e and f. Two end, and with f the other two are lost: J1 runs nothing, and is the oldest.
    scheduler.handle(Batch(2.0, (*ended("J1", "A", 0, 2), ExecutorLost("f", "gone"))))

    assert decide(scheduler, "llm") == ["A1", "B0", "A0", "A3", "B1"]


def both_pools(count: Any) -> list[str]:
    """J1 runs two tasks on workers, J2 one on the engines; a third of each waits for the engines."""
    two = application("two", stage("x"), stage("y", kind="regular"))
    scheduler = with_running(Fair(count=count), (submitted(2, B, 1.0, B=2), 1))
    scheduler.handle(Batch(1.0, (ExecutorJoined("w", "cpu", 2), submitted(1, two, 0.0, x=1, y=2))))
    return decide(scheduler, "llm")


def test_fair_counts_the_tasks_of_the_pool_or_of_all_pools() -> None:
    assert both_pools("pool") == ["x0", "B1"], "0 and 1 in this pool"
    assert both_pools("combined") == ["B1", "x0"], "2 and 1 in all"


def test_fair_goes_by_running_tasks_per_weight() -> None:
    scheduler = Scheduler(Fair(weights="A=2"))
    scheduler.handle(Batch(0.0, (submitted(1, B, 0.0, B=4), submitted(2, A, 1.0, A=4))))

    # running / weight: B 0, A 0, A 1/2, B 1, A 2/2, A 3/2, B 2, B 3
    assert decide(scheduler, "llm") == ["B0", "A0", "A1", "B1", "A2", "A3", "B2", "B3"]


def test_jobs_below_their_minimum_share_go_first_by_how_far_below_they_are() -> None:
    scheduler = Scheduler(Fair(min_share=2, weights={"A": 100.0}))
    scheduler.handle(Batch(0.0, (submitted(1, B, 0.0, B=3), submitted(2, A, 1.0, A=4))))

    # 0/2 0/2 1/2 1/2, and only then by weight: A 2/100, A 3/100, B 2
    assert decide(scheduler, "llm") == ["B0", "A0", "B1", "A1", "A2", "A3", "B2"]


def test_a_partition_caps_every_job_and_then_gives_the_rest_away() -> None:
    scheduler = with_running(Fcfs(), (submitted(1, A, 0.0, A=5), 2), (submitted(2, B, 1.0, B=4), 0))
    scheduler.use_policy(Fair(share="partition"))
    # cap = ceil(5 slots / 2 jobs) = 3: A may have one more, B three; then A's 2 and B's 1 that are left.
    scheduler.view.executors["e"].slots = 5

    assert decide(scheduler, "llm") == ["A2", "B0", "B1", "B2", "A3", "A4", "B3"]


def test_in_a_partition_the_job_that_freed_a_slot_is_asked_first() -> None:
    jobs = (submitted(1, A, 0.0, A=3), 1), (submitted(2, B, 1.0, B=3), 1)
    scheduler = with_running(Fair(share="partition"), *jobs)
    assert decide(scheduler, "llm") == ["A1", "A2", "B1", "B2"], "no slots, no cap: all of it is rest"

    scheduler.handle(Batch(1.0, tuple(ended("J2", "B", 0))))
    scheduler.view.executors["e"].slots = 2  # cap 1: A has it already

    assert decide(scheduler, "llm") == ["B1", "B2", "A1", "A2"]
    commands = scheduler.handle(Batch(2.0, (ExecutorJoined("e", "llm", 2),)))
    assert [c.task.stage for c in commands if isinstance(c, Dispatch)] == ["B"]


def test_fair_keeps_classes_apart_whatever_they_run() -> None:
    for share in ("comparator", "partition"):
        scheduler = Scheduler(make("fair", share=share))
        urgent = replace(submitted(2, B, 1.0, B=3), job_class=JobClass.INTERACTIVE)
        scheduler.handle(Batch(0.0, (submitted(1, A, 0.0, A=1), urgent, ExecutorJoined("e", "llm", 1))))

        assert decide(scheduler, "llm") == ["B1", "B2", "A0"]


def test_fair_takes_the_stages_of_a_job_in_topological_order() -> None:
    three = application("three", stage("p"), stage("q"), stage("r"))
    scheduler = with_running(Fair(), (submitted(1, three, p=1, q=1, r=1), 2), more=[ExecutorLost("e", "gone")])

    assert decide(scheduler, "llm") == ["p0", "q0", "r0"]


class CountedFair(Fair):
    """Counts how often it works out where a job stands."""

    def __init__(self) -> None:
        super().__init__()
        self.places = 0

    def _rank(self, job: Any, running: int) -> tuple[int, float]:
        self.places += 1
        return super()._rank(job, running)


def test_a_decision_of_fair_looks_at_few_of_many_jobs() -> None:
    policy = CountedFair()
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, tuple(submitted(n, A, float(n), A=2) for n in range(5_000))))
    policy.places = 0

    scheduler.handle(Batch(1.0, (ExecutorJoined("e", "llm", 10),)))

    assert policy.places <= 20, "one for each pick, and one for each start"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"count": "all"}, "unknown value of count 'all'; known: pool, combined"),
        ({"share": "partitions"}, "unknown value of share 'partitions'; did you mean 'partition'? known: "),
        ({"min_share": -1}, "min_share is -1; it must be a whole number from 0 up"),
        ({"weights": "chat"}, "weights is 'chat'; write application=weight,application=weight"),
        ({"weights": 3}, "weights is 3; write application=weight,application=weight"),
        ({"weights": {"chat": 0}}, "the weight of application 'chat' is 0; it must be a positive number"),
    ],
)
def test_a_bad_option_of_fair_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make("fair", **options)

    assert str(caught.value).startswith(sentence)
    assert caught.value.field == next(iter(options))


# ------------------------------------------------------------------------------------------------------ fcfs


def test_fcfs_by_stage_goes_by_the_moment_the_stage_became_ready() -> None:
    two = application("two", stage("a"), stage("b", "a"))
    scheduler = Scheduler(Fcfs(by="stage"))
    scheduler.handle(Batch(0.0, (submitted(1, two, 0.0, a=1), ExecutorJoined("e", "llm", 1))))
    scheduler.handle(Batch(1.0, (submitted(2, A, 1.0, A=1),)))

    b = Reveal(two["b"], (0,))
    done = StageExpanded("J1", "a", (b,))
    scheduler.handle(Batch(5.0, (ExecutorJoined("e", "llm", 0), *ended("J1", "a", 0), done)))

    assert decide(scheduler, "llm") == ["A0", "b0"]


def test_fcfs_knows_two_queues() -> None:
    with pytest.raises(UnknownName) as caught:
        make("fcfs", by="stages")
    assert str(caught.value) == "unknown value of by 'stages'; did you mean 'stage'? known: job, stage"


# ------------------------------------------------------------------------------------------------------ argus

DIAMOND = application("diamond", stage("s0"), stage("s1", "s0"), stage("s2", "s0"), stage("s3", "s1", "s2"))
CHAIN = application("chain", stage("c0"), *(stage(f"c{k}", f"c{k - 1}") for k in range(1, 5)))


#: plan 1 s, two searches of 2 s, join 1 s.
LEARNED = Knowledge([fit(PLANNED, [planned(f"q{k}#1", 100, 2) for k in range(20)], curves=CURVES)], CURVES)


def ranks(policy: Argus, template: Application) -> list[float]:
    """What each stage of a template counts for, before anything ran."""
    scheduler = Scheduler(policy)
    first = template.stages[0].name
    scheduler.handle(Batch(0.0, (submitted(1, template, **{first: 1}),)))
    (job,) = scheduler.view.jobs.values()
    return [policy.rank(s)[0] for s in job.stages.values()]


def at_stage(scheduler: Scheduler, job: str, template: Application, names: Sequence[str]) -> None:
    """These stages of a job are completed, as after a restart; each reveals the next."""
    stages = [s.name for s in template.stages]
    for name in names:
        following = template[stages[stages.index(name) + 1]]
        scheduler.handle(
            Batch(0.0, (StageExpanded(job, name, (Reveal(following, (0,)),), results=(TaskResult(1.0),)),))
        )


def test_influence_grows_with_depth_and_fan_out() -> None:
    assert ranks(Argus(), DIAMOND) == [4, 2, 2, 1]
    assert ranks(Argus(), CHAIN) == [5, 4, 3, 2, 1]


def test_argus_orders_by_influence_and_then_by_remaining_tasks_across_all_jobs() -> None:
    """Specification 5: s0 of A and c1 of B have influence 4 and 3 tasks against 1; c4 of C has 1."""
    jobs = submitted(1, DIAMOND, 0.0, s0=3), submitted(2, CHAIN, 1.0, c0=1), submitted(3, CHAIN, 2.0, c0=1)

    def order(**options: Any) -> list[str]:
        scheduler = Scheduler(make("argus", **options))
        scheduler.handle(Batch(0.0, jobs))
        at_stage(scheduler, "J2", CHAIN, ["c0"])
        at_stage(scheduler, "J3", CHAIN, ["c0", "c1", "c2", "c3"])
        return decide(scheduler, "llm")

    assert order() == ["c10", "s00", "s01", "s02", "c40"]
    assert order(tasks="desc") == ["s00", "s01", "s02", "c10", "c40"]
    # depths to the sink: c1 3, s0 2, c4 0
    assert order(mode="lexicographic", tasks="desc") == ["c10", "s00", "s01", "s02", "c40"]


def test_lexicographic_argus_compares_depth_and_then_children() -> None:
    graph = {s.name: s.after for s in DIAMOND.stages}

    assert depths(graph) == {"s0": (2, 2), "s1": (1, 1), "s2": (1, 1), "s3": (0, 0)}


def test_argus_counts_the_seconds_of_distinct_descendants() -> None:
    graph = {s.name: s.after for s in DIAMOND.stages}

    # s3 counts once for s0, although two ways lead there
    assert downstream(graph, {"s0": 1.0, "s1": 2.0, "s2": 4.0, "s3": 8.0}) == {
        "s0": (15,),
        "s1": (10,),
        "s2": (12,),
        "s3": (8,),
    }


def test_argus_by_profile_sums_the_mean_work_downstream() -> None:
    assert ranks(Argus(LEARNED, mode="profile"), PLANNED) == [pytest.approx(s, abs=1e-3) for s in (6, 5, 1)]


PLAN = application(
    "plan",
    stage("plan"),
    stage("tools", "plan", kind="dynamic", planner="plan", candidates=["s"]),
    stage("join", "tools"),
)


def plan_of(job: str, template: Application, **after: str) -> StageExpanded:
    """The plan is made, as after a restart: stages on workers, each after those named."""
    specs = [StageSpec(n, StageKind.REGULAR, tuple(a.split()), "cpu", parent="tools") for n, a in after.items()]
    reveals = Reveal(template["tools"]), *(Reveal(replace(s, candidate="search"), (0,)) for s in specs)
    return StageExpanded(job, "plan", reveals, results=(TaskResult(1.0),))


def ranks_of(policy: Argus, job: Job) -> dict[str, Rank]:
    return {s.name: policy.rank(s) for s in job.stages.values() if s.kind is not StageKind.DYNAMIC and not s.is_over}


def test_a_plan_changes_the_influence_in_its_own_job_only() -> None:
    policy = Argus()
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, tuple(submitted(n, PLAN, plan=1) for n in (1, 2))))
    first, second = scheduler.view.jobs.values()
    assert ranks_of(policy, first) == ranks_of(policy, second) == {"plan": (3,), "join": (1,)}

    # plan -> s_0 and s_1 side by side -> s_2 -> join
    scheduler.handle(Batch(1.0, (plan_of("J1", PLAN, s_0="plan", s_1="plan", s_2="s_0 s_1"),)))

    assert ranks_of(policy, first) == {"s_0": (3,), "s_1": (3,), "s_2": (2,), "join": (1,)}
    assert policy.rank(first.stages["plan"]) == (5,), "3 and two children"
    assert ranks_of(policy, second) == {"plan": (3,), "join": (1,)}


def test_the_last_stages_of_a_plan_are_what_the_next_stage_waits_for() -> None:
    policy = Argus()
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, (submitted(1, PLAN, plan=1),)))
    scheduler.handle(Batch(1.0, (plan_of("J1", PLAN, s_0="plan", s_1="s_0", t_0="plan"),)))

    (job,) = scheduler.view.jobs.values()
    assert ranks_of(policy, job) == {"s_0": (3,), "s_1": (2,), "t_0": (2,), "join": (1,)}
    assert decide(scheduler, "cpu") == ["s_00", "t_00"]


def test_argus_by_profile_prices_the_tasks_of_a_plan() -> None:
    policy = Argus(LEARNED, mode="profile")
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, (submitted(1, PLANNED, plan=1),)))
    scheduler.handle(Batch(1.0, (plan_of("J1", PLANNED, s_0="plan", s_1="s_0", s_2="s_1"),)))

    # a search is 2 s: three in a row, and 1 s to join what they found
    (job,) = scheduler.view.jobs.values()
    assert [policy.rank(job.stages[s])[0] for s in ("s_0", "s_1", "s_2", "join")] == [
        pytest.approx(seconds, abs=1e-3) for seconds in (7, 5, 3, 1)
    ]


def test_argus_may_forget_what_is_over_or_skipped() -> None:
    """A loop that ended early: what will not run makes nothing more urgent, if asked to look."""

    def influence_of_a(**options: Any) -> Rank:
        policy = Argus(**options)
        scheduler = Scheduler(policy)
        scheduler.handle(Batch(0.0, (submitted(1, SHORTENED, x=1, a=1),)))
        scheduler.handle(Batch(1.0, (StageExpanded("J1", "x", (), ("b", "c"), (TaskResult(1.0),)),)))
        (job,) = scheduler.view.jobs.values()
        return policy.rank(job.stages["a"])

    # a -> b -> c -> d, and d waits for a as well
    assert influence_of_a() == (5,)
    assert influence_of_a(restrict="unfinished") == (2,)


SHORTENED = application(
    "shortened", stage("x"), stage("a"), stage("b", "a", "x"), stage("c", "b"), stage("d", "c", "a")
)


def test_remaining_tasks_are_those_not_done() -> None:
    """Of A, one of three tasks is done and one runs; of B both wait: two remain of each, and A came first."""
    three, two = (submitted(1, A, 0.0, A=3), 2), (submitted(2, B, 1.0, B=2), 0)
    scheduler = with_running(Argus(), three, two)
    assert decide(scheduler, "llm") == ["B0", "B1", "A2"]

    scheduler.handle(Batch(1.0, tuple(ended("J1", "A", 0))))

    assert decide(scheduler, "llm") == ["A2", "B0", "B1"]


def test_a_lost_executor_leaves_as_many_tasks_as_before() -> None:
    scheduler = with_running(Argus(), (submitted(1, A, 0.0, A=3), 2), (submitted(2, B, 1.0, B=2), 0))

    scheduler.handle(Batch(1.0, (ExecutorLost("e", "gone"),)))

    assert decide(scheduler, "llm") == ["B0", "B1", "A0", "A1", "A2"]


class CountedArgus(Argus):
    """Counts how often it is asked for a key."""

    keys = 0

    def key(self, stage: Stage, view: View) -> tuple[float, ...]:
        self.keys += 1
        return super().key(stage, view)


def test_a_decision_of_argus_sorts_in_again_only_what_changed() -> None:
    policy = CountedArgus()
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, tuple(submitted(n, A, float(n), A=2) for n in range(5_000))))
    scheduler.handle(Batch(1.0, (ExecutorJoined("e", "llm", 10),)))
    policy.keys = 0

    scheduler.handle(Batch(2.0, tuple(ended("J3", "A", 0))))

    assert policy.keys == 0, "J3 has both tasks started, and nothing that waits"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "lexicographical"}, "unknown value of mode 'lexicographical'; did you mean 'lexicographic'? known: "),
        ({"tasks": "up"}, "unknown value of tasks 'up'; known: asc, desc"),
        ({"restrict": "open"}, "unknown value of restrict 'open'; known: template, unfinished"),
    ],
)
def test_a_bad_option_of_argus_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnknownName) as caught:
        make("argus", **options)

    assert str(caught.value).startswith(sentence)
    assert caught.value.field == next(iter(options))


# -------------------------------------------------------------------------------------------- what all promise

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("fair", {"count": "combined"}),
    ("fair", {"min_share": 2, "weights": "chain=3"}),
    ("fair", {"share": "partition"}),
    ("fair", {"share": "partition", "count": "combined"}),
    ("argus", {"mode": "lexicographic", "tasks": "desc"}),
    ("argus", {"mode": "profile"}),
    ("argus", {"restrict": "unfinished"}),
    ("argus", {"restrict": "unfinished", "mode": "profile"}),
    ("fcfs", {"by": "stage"}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("seed", range(8))
def test_every_variant_names_every_ready_task_once_and_forgets_jobs_that_left(
    name: str, options: dict[str, Any], seed: int
) -> None:
    world = busy("fcfs", seed)
    policy = make(name, **options)
    world.scheduler.use_policy(policy)
    while world.advance():
        view = world.scheduler.view
        policy.begin(view)
        for pool, stages in view.ready.items():
            picks = [pick.task for pick in policy.picks(pool, view)]
            ready = [s.tasks[k].ref for s in stages.values() if s.tasks for k in s.ready]
            assert sorted(t.ref for t in picks) == sorted(ready)
            assert all(t.state is TaskState.READY for t in picks)
            classes = [t.job.job_class for t in picks]
            assert classes == sorted(classes)

    assert all(job.outcome for job in world.jobs.values())
    assert b"job-" not in pickle.dumps(policy)


def test_a_job_that_left_in_mid_run_leaves_nothing() -> None:
    policy = Fair(share="partition")
    scheduler = with_running(policy, (submitted(1, A, 0.0, A=5), 3))

    scheduler.handle(Batch(1.0, (*ended("J1", "A", 0), JobCancelled("J1"))))

    assert len(pickle.dumps(policy)) < 1_000
    scheduler.handle(Batch(2.0, (submitted(2, B, B=2), ExecutorJoined("e", "llm", 1))))
    assert decide(scheduler, "llm") == ["B1"]

"""Orders by what jobs have had or were promised: attained service, what was begun, virtual finish, and chance."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest

from llmsched.errors import InvalidInput
from llmsched.model.application import Application
from llmsched.model.events import (
    Batch,
    Dispatch,
    Event,
    ExecutorJoined,
    ExecutorLost,
    JobCancelled,
    JobClass,
    Reveal,
    StageExpanded,
    TaskFinished,
    TaskRef,
    TaskResult,
)
from llmsched.model.job import Stage, TaskState
from llmsched.policies import make_policy as make
from llmsched.policies.attained import Atlas, Las
from llmsched.policies.base import Policy, View
from llmsched.policies.shuffled import Shuffled
from llmsched.policies.started import FinishStarted
from llmsched.policies.vtfq import Vtfq
from llmsched.profiler import Knowledge
from llmsched.scheduler import Scheduler
from tests.unit.learned import CURVES
from tests.unit.test_policies import application, busy, decide, means, stage, submitted

OFF = ExecutorJoined("e", "llm", 0)


def known() -> Knowledge:
    """10 ms per token alone, 20 ms for two at once; prompts cost nothing."""
    return Knowledge(curves=CURVES)


def slots(n: int) -> ExecutorJoined:
    return ExecutorJoined("e", "llm", n)


def done(job: str, stage: str, seconds: float, task: int = 0) -> TaskFinished:
    """A call that took so many seconds of reference work."""
    return TaskFinished(TaskRef(job, stage, task), 1, TaskResult(9.0, 0, round(100 * seconds)))


def restored(job: str, template: Application, name: str, *following: str, seconds: tuple[float, ...]) -> StageExpanded:
    """A stage that was completed before a restart, with what follows it (one task each)."""
    reveals = tuple(Reveal(template[f], (0,)) for f in following)
    return StageExpanded(job, name, reveals, results=tuple(TaskResult(9.0, 0, round(100 * s)) for s in seconds))


def jobs_in_order(scheduler: Scheduler, pool: str = "llm") -> list[str]:
    scheduler.policy.begin(scheduler.view)
    return [pick.task.job.id for pick in scheduler.policy.picks(pool, scheduler.view)]


TWO = application("two", stage("a"), stage("b", "a"))


def after_a(policy: Policy, *seconds: float) -> Scheduler:
    """A job of TWO per number: its first stage had so many seconds of service (0: did not run), and more waits."""
    scheduler = Scheduler(policy)
    for number, had in enumerate(seconds, 1):
        events: list[Event] = [submitted(number, TWO, float(number), a=1)]
        if had:
            events.append(restored(f"J{number}", TWO, "a", "b", seconds=(had,)))
        scheduler.handle(Batch(0.0, tuple(events)))
    return scheduler


# ------------------------------------------------------------------------------------------------- las and atlas


@pytest.mark.parametrize("policy", [Las, Atlas])
def test_jobs_with_least_service_go_first_by_levels(policy: type[Las]) -> None:
    """Specification 15: attained 0.5, 3, 5, 0 s with q0 = 1 -> levels 0, 1, 2, 0 -> order by (level, arrival)."""
    scheduler = after_a(policy(known()), 0.5, 3.0, 5.0, 0.0)

    assert jobs_in_order(scheduler) == ["J1", "J4", "J2", "J3"]
    levels = [(pick.why or {})["level"] for pick in scheduler.policy.picks("llm", scheduler.view)]
    assert levels == [0, 0, 1, 2]


def test_levels_end_at_the_last_one() -> None:
    las = Las(levels=3, q0=0.5)

    # 0.5 x 2^k begins level k; level 2 is the last
    assert [las.level(a) for a in (0.0, 0.49, 0.99, 1.0, 1.99, 2.0, 1e9)] == [0, 0, 0, 1, 1, 2, 2]
    assert Las().level(1e9) == 7


def test_running_tasks_count_their_elapsed_part_at_the_speed_of_their_batch() -> None:
    policy = Las(known())
    scheduler = Scheduler(policy)
    wide = application("wide", stage("w"))
    scheduler.handle(Batch(0.0, (slots(2), submitted(1, wide, 0.0, w=3))))
    scheduler.handle(Batch(0.0, (OFF, submitted(2, TWO, 5.0, a=1))))

    # Two tasks share the executor at half speed, so after t seconds the job has had 2 x t/2 = t: 2 s begin level 1.
    scheduler.handle(Batch(1.9, (OFF,)))
    assert jobs_in_order(scheduler) == ["J1", "J2"]
    scheduler.handle(Batch(2.0, (OFF,)))
    assert jobs_in_order(scheduler) == ["J2", "J1"]


def test_a_lost_attempt_counts_for_nothing() -> None:
    scheduler = Scheduler(Las(known()))
    scheduler.handle(Batch(0.0, (slots(1), submitted(1, TWO, 0.0, a=2))))
    scheduler.handle(Batch(1.0, (OFF, submitted(2, TWO, 1.0, a=1))))
    scheduler.handle(Batch(10.0, (OFF,)))
    assert jobs_in_order(scheduler) == ["J2", "J1"], "10 s of service: level 3"

    scheduler.handle(Batch(11.0, (ExecutorLost("e", "gone"),)))

    assert jobs_in_order(scheduler) == ["J1", "J1", "J2"]


def test_service_is_that_of_llm_tasks_and_orders_all_pools() -> None:
    mixed = application("mixed", stage("a"), stage("c", kind="regular"))
    scheduler = Scheduler(Las(known()))
    scheduler.handle(Batch(0.0, (slots(1), ExecutorJoined("w", "cpu", 1), submitted(1, mixed, 0.0, a=1, c=2))))
    scheduler.handle(Batch(50.0, (ExecutorJoined("w", "cpu", 0), submitted(2, mixed, 1.0, a=1, c=1))))
    assert decide(scheduler, "cpu") == ["c0", "c1"], "50 s of a call: level 5"
    assert jobs_in_order(scheduler, "cpu") == ["J2", "J1"]

    scheduler.handle(Batch(50.0, (done("J1", "a", 1.5), OFF)))

    assert jobs_in_order(scheduler, "cpu") == ["J1", "J2"], (
        "its tokens were 1.5 s of work, and 50 s on a worker are none"
    )


def test_who_waited_for_too_long_goes_to_the_first_level_until_its_next_dispatch() -> None:
    scheduler = after_a(Las(known(), promote_after=60.0), 5.0)
    wide = application("wide", stage("w"))
    scheduler.handle(Batch(50.0, (submitted(2, wide, 50.0, w=1),)))
    scheduler.handle(Batch(60.0, ()))
    assert jobs_in_order(scheduler) == ["J2", "J1"], "60 s are not more than 60 s"

    scheduler.handle(Batch(60.5, ()))
    assert jobs_in_order(scheduler) == ["J1", "J2"]

    # b runs, and is lost at once: the job waits again, from now on
    scheduler.handle(Batch(61.0, (slots(1),)))
    scheduler.handle(Batch(61.0, (ExecutorLost("e", "gone"),)))
    assert jobs_in_order(scheduler) == ["J2", "J1"]
    scheduler.handle(Batch(121.5, ()))
    assert jobs_in_order(scheduler) == ["J1", "J2"]


def test_a_job_that_runs_is_not_one_that_waits() -> None:
    """A stage that becomes ready after a call of 100 s has not waited for 100 s."""
    scheduler = after_a(Las(known()), 0.0)
    scheduler.handle(Batch(0.0, (slots(1),)))
    b = StageExpanded("J1", "a", (Reveal(TWO["b"], (0,)),))
    scheduler.handle(Batch(100.0, (OFF, done("J1", "a", 5.0), b, submitted(2, TWO, 99.0, a=1))))

    assert jobs_in_order(scheduler) == ["J2", "J1"]


def test_atlas_counts_the_longest_chain_and_las_the_sum() -> None:
    """split -> three parallel calls of `fan` -> join; J1 had 1 + (2, 2, 2) s: 3 s along a chain, 7 s in all."""
    fork = application("fork", stage("split"), stage("fan", "split"), stage("join", "fan"))
    fan = StageExpanded("J1", "split", (Reveal(fork["fan"], (0, 0, 0)),), results=(TaskResult(9.0, 0, 100),))
    story = submitted(1, fork, 0.0, split=1), fan, restored("J1", fork, "fan", "join", seconds=(2, 2, 2))

    def level(policy: Las) -> int:
        scheduler = Scheduler(policy)
        scheduler.handle(Batch(0.0, story))
        policy.begin(scheduler.view)
        (pick,) = policy.picks("llm", scheduler.view)
        return int((pick.why or {})["level"])

    assert level(Las(known())) == 2  # floor(log2 7)
    assert level(Atlas(known())) == 1  # floor(log2 3)


def test_chains_pass_through_plans_tools_and_skipped_stages() -> None:
    template = application(
        "long",
        stage("plan"),
        stage("tools", "plan", kind="dynamic", planner="plan", candidates=["s"]),
        stage("check", "tools", kind="regular"),
        stage("skipped", "check"),
        stage("last", "skipped"),
    )
    inner = replace(template["plan"], name="s_0", after=("plan",), parent="tools", candidate="s")
    policy = Atlas(known())
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, (submitted(1, template, plan=1),)))
    plan = Reveal(template["tools"]), Reveal(inner, (0,))
    scheduler.handle(Batch(0.0, (StageExpanded("J1", "plan", plan, results=(TaskResult(9.0, 0, 200),)),)))
    scheduler.handle(Batch(0.0, (restored("J1", template, "s_0", "check", seconds=(3.0,)),)))
    last = Reveal(template["last"], (0, 0))
    over = StageExpanded("J1", "check", (last,), ("skipped",), (TaskResult(50.0),))
    scheduler.handle(Batch(0.0, (over, slots(1))))
    (job,) = scheduler.view.jobs.values()
    assert policy.finished(job) == pytest.approx(5.0)  # plan 2 s, s_0 3 s

    scheduler.handle(Batch(1.0, (OFF, done("J1", "last", 3.0))))

    assert jobs_in_order(scheduler) == ["J1"]
    (pick,) = policy.picks("llm", scheduler.view)
    assert pick.why == {"level": 3}, "2 + 3 + 3 s"
    fresh = Atlas(known())
    scheduler.use_policy(fresh)
    assert fresh.finished(job) == pytest.approx(8.0), "a policy that takes over finds the same"


def test_a_running_call_extends_its_own_chain_only() -> None:
    """J1 runs a second call beside a finished one of 3 s: after 2 s the longest chain is still 3 s, the sum 5 s."""

    def levels(policy: Las) -> int:
        scheduler = Scheduler(policy)
        pair = application("pair", stage("p"))
        scheduler.handle(Batch(0.0, (slots(1), submitted(1, pair, 0.0, p=3))))
        scheduler.handle(Batch(1.0, (done("J1", "p", 3.0),)))
        scheduler.handle(Batch(3.0, (OFF,)))
        policy.begin(scheduler.view)
        (pick,) = policy.picks("llm", scheduler.view)
        return int((pick.why or {})["level"])

    assert levels(Las(known())) == 2
    assert levels(Atlas(known())) == 1


class CountedLas(Las):
    """Counts the keys and levels it works out."""

    looks = 0

    def key(self, stage: Stage, view: View) -> int:
        self.looks += 1
        return super().key(stage, view)

    def level(self, attained: float) -> int:
        self.looks += 1
        return super().level(attained)


def test_a_decision_of_las_looks_at_what_runs_and_not_at_what_waits() -> None:
    policy = CountedLas(known())
    wide = application("wide", stage("w"))
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, (*(submitted(n, wide, float(n), w=2) for n in range(5_000)), slots(10))))
    policy.looks = 0

    scheduler.handle(Batch(1.0, (done("J3", "w", 1.0), *(done(f"J{n}", "w", 1.0) for n in (4, 5)))))

    assert policy.looks <= 20, "seven that run and three that ended"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"q0": 0}, "q0 is 0; it must be a positive number of seconds"),
        ({"promote_after": "soon"}, "promote_after is 'soon'; it must be a positive number of seconds"),
        ({"levels": 0}, "levels is 0; it must be a whole number from 1 up"),
        ({"levels": 2.5}, "levels is 2.5; it must be a whole number from 1 up"),
    ],
)
@pytest.mark.parametrize("name", ["las", "atlas"])
def test_a_bad_option_of_las_is_one_sentence(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make(name, **options)

    assert str(caught.value) == sentence
    assert caught.value.field == next(iter(options))


# ------------------------------------------------------------------------------------------------ finish-started


def test_begun_jobs_are_finished_before_others_are_begun() -> None:
    scheduler = Scheduler(FinishStarted())
    scheduler.handle(Batch(0.0, (slots(1), submitted(2, TWO, 5.0, a=2))))
    scheduler.handle(Batch(1.0, (OFF, submitted(1, TWO, 0.0, a=1))))
    assert jobs_in_order(scheduler) == ["J2", "J1"], "J2 runs"

    scheduler.handle(Batch(2.0, (done("J2", "a", 1.0),)))
    assert jobs_in_order(scheduler) == ["J2", "J1"], "J2 has run"


def test_a_job_that_lost_its_only_attempt_was_not_begun() -> None:
    scheduler = Scheduler(FinishStarted())
    scheduler.handle(Batch(0.0, (slots(1), submitted(2, TWO, 5.0, a=2))))
    scheduler.handle(Batch(1.0, (OFF, submitted(1, TWO, 0.0, a=1))))

    scheduler.handle(Batch(2.0, (ExecutorLost("e", "gone"),)))

    assert jobs_in_order(scheduler) == ["J1", "J2", "J2"]


def test_a_restored_job_was_begun() -> None:
    assert jobs_in_order(after_a(FinishStarted(), 0.0, 1.0)) == ["J2", "J1"]


# ----------------------------------------------------------------------------------------------------------- vtfq


def costing(name: str, seconds: float) -> Application:
    return application(name, stage("s", expected=means(seconds)))


LONG, SHORT = costing("long", 20.0), costing("short", 5.0)


def finishes(scheduler: Scheduler) -> dict[str, Any]:
    picks = scheduler.policy.picks("llm", scheduler.view)
    return {pick.task.job.id: pytest.approx((pick.why or {})["virtual_finish"]) for pick in picks}


def test_jobs_of_no_tenant_finish_in_the_order_of_fair_sharing() -> None:
    """One slot: V = t while J1 (20 s) is alone, F = 20. J2 (5 s) comes at 4: F = 9. With two of them V is 9 at 14,
    when J3 (20 s) comes: F = 29. With three it is 16 at 35, when J4 (5 s) comes: F = 21. J2 passes J1, J4 does not."""
    scheduler = Scheduler(Vtfq(known()))
    scheduler.handle(Batch(0.0, (ExecutorJoined("w", "cpu", 1), submitted(1, LONG, 0.0, s=1))))
    scheduler.handle(Batch(4.0, (submitted(2, SHORT, 4.0, s=1),)))
    assert finishes(scheduler) == {"J2": 9.0, "J1": 20.0}

    scheduler.handle(Batch(14.0, (submitted(3, LONG, 14.0, s=1),)))
    scheduler.handle(Batch(35.0, (submitted(4, SHORT, 35.0, s=1),)))

    assert list(finishes(scheduler).items()) == [("J2", 9.0), ("J1", 20.0), ("J4", 21.0), ("J3", 29.0)]


def test_jobs_of_a_tenant_go_one_after_the_other_by_its_weight() -> None:
    """All at V = 0: a (weight 2) has 20/2 = 10, then + 5/2 = 12.5; b has 5, then 10."""
    scheduler = Scheduler(Vtfq(known(), weights="a=2"))
    jobs = [("a", LONG), ("a", SHORT), ("b", SHORT), ("b", SHORT)]
    events = [replace(submitted(n, app, s=1), tenant=tenant) for n, (tenant, app) in enumerate(jobs, 1)]
    scheduler.handle(Batch(0.0, tuple(events)))

    assert list(finishes(scheduler).items()) == [("J3", 5.0), ("J1", 10.0), ("J4", 10.0), ("J2", 12.5)]


def test_virtual_time_goes_by_the_weights_of_tenants_that_have_jobs() -> None:
    """Two slots. Tenants a (weight 3) and b (1) have jobs: V grows 2/4 a second; when a has none left, 2/1."""
    scheduler = Scheduler(Vtfq(known(), weights={"a": 3.0}))
    workers = ExecutorJoined("w", "cpu", 2)
    both = replace(submitted(1, SHORT, s=1), tenant="a"), replace(submitted(2, SHORT, s=1), tenant="b")
    scheduler.handle(Batch(0.0, (workers, *both)))
    scheduler.handle(Batch(8.0, (JobCancelled("J1"),)))  # V = 4

    scheduler.handle(Batch(10.0, (replace(submitted(3, SHORT, s=1), tenant="c"),)))  # V = 8

    assert finishes(scheduler) == {"J2": 5.0, "J3": 13.0}


def test_a_job_keeps_its_virtual_finish() -> None:
    scheduler = after_a(Vtfq(known()), 0.0)
    before = finishes(scheduler)

    scheduler.handle(Batch(5.0, (restored("J1", TWO, "a", "b", seconds=(5.0,)),)))

    assert finishes(scheduler) == before


def test_virtual_time_begins_anew_when_nobody_has_work() -> None:
    scheduler = Scheduler(Vtfq(known()))
    scheduler.handle(Batch(0.0, (ExecutorJoined("w", "cpu", 1), replace(submitted(1, LONG, s=1), tenant="a"))))
    scheduler.handle(Batch(3.0, (JobCancelled("J1"),)))

    scheduler.handle(Batch(9.0, (replace(submitted(2, SHORT, s=1), tenant="a"),)))

    assert finishes(scheduler) == {"J2": 5.0}


def test_tenants_that_fell_behind_virtual_time_are_forgotten() -> None:
    policy = Vtfq(known())
    scheduler = Scheduler(policy)
    stays = submitted(9_999, costing("endless", 1e6), s=1)
    scheduler.handle(Batch(0.0, (ExecutorJoined("w", "cpu", 100), stays)))
    sizes = []
    for n in range(600):
        job = replace(submitted(n, SHORT, s=1), tenant=f"tenant-{n}")
        scheduler.handle(Batch(float(n), (job,)))
        scheduler.handle(Batch(n + 0.5, (JobCancelled(f"J{n}"),)))
        sizes.append(len(pickle.dumps(policy)))

    assert max(sizes) - min(sizes) < 200


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ("gold", "weights is 'gold'; write tenant=weight,tenant=weight"),
        ("gold=0", "the weight of tenant 'gold' is 0.0; it must be a positive number"),
        ({"gold": "2"}, "the weight of tenant 'gold' is '2'; it must be a positive number"),
    ],
)
def test_a_bad_weight_is_one_sentence(weights: Any, sentence: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make("vtfq", weights=weights)

    assert str(caught.value) == sentence
    assert caught.value.field == "weights"


# --------------------------------------------------------------------------------------------------------- random


def test_random_draws_for_every_task_and_the_seed_decides() -> None:
    wide = application("wide", stage("w"))
    orders = []
    for seed in (0, 0, 1):
        scheduler = Scheduler(Shuffled(seed))
        scheduler.handle(Batch(0.0, tuple(submitted(n, wide, float(n), w=4) for n in (1, 2, 3))))
        scheduler.policy.begin(scheduler.view)
        orders.append([pick.task.ref for pick in scheduler.policy.picks("llm", scheduler.view)])

    assert orders[0] == orders[1] != orders[2]
    assert [ref.job for ref in orders[0]] != sorted(ref.job for ref in orders[0]), "tasks of a job are apart"


def test_random_numbers_are_uniform() -> None:
    wide = application("wide", stage("w"))
    scheduler = Scheduler(Shuffled())
    scheduler.handle(Batch(0.0, tuple(submitted(n, wide, w=9) for n in range(200))))
    draws = [(pick.why or {})["draw"] for pick in scheduler.policy.picks("llm", scheduler.view)]

    assert len(set(draws)) == 1_800
    # 1/sqrt(12 x 1,800) is the deviation of the mean: four of them
    assert abs(sum(draws) / 1_800 - 0.5) < 4 * (12 * 1_800) ** -0.5


def test_a_task_that_waits_again_draws_again() -> None:
    scheduler = Scheduler(Shuffled())
    scheduler.handle(Batch(0.0, (slots(1), submitted(1, TWO, a=1))))
    scheduler.handle(Batch(0.0, (ExecutorLost("e", "gone"),)))
    (again,) = scheduler.policy.picks("llm", scheduler.view)

    fresh = Scheduler(Shuffled())
    fresh.handle(Batch(0.0, (submitted(1, TWO, a=1),)))
    (first,) = fresh.policy.picks("llm", fresh.view)

    assert again.task.ref == first.task.ref
    assert again.why != first.why


def test_a_bad_seed_is_one_sentence() -> None:
    with pytest.raises(InvalidInput) as caught:
        make("random", seed=1.5)

    assert str(caught.value) == "seed is 1.5; it must be a whole number from 0 up"


# ------------------------------------------------------------------------------------------------ what all promise


@pytest.mark.parametrize("name", ["las", "atlas", "vtfq", "finish-started", "random"])
def test_classes_stand_above_the_order(name: str) -> None:
    scheduler = Scheduler(make(name))
    late = replace(submitted(2, TWO, 9.0, a=1), job_class=JobClass.INTERACTIVE)
    scheduler.handle(Batch(0.0, (slots(1), submitted(1, TWO, 0.0, a=2))))

    commands = scheduler.handle(Batch(200.0, (late, slots(3))))

    assert [c.task.job for c in commands if isinstance(c, Dispatch)] == ["J2", "J1"]


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("las", {}),
    ("atlas", {}),
    ("las", {"q0": 0.1, "promote_after": 2.0}),
    ("atlas", {"q0": 0.1, "promote_after": 2.0, "levels": 3}),
    ("las", {"promote_after": float("inf")}),
    ("vtfq", {}),
    ("finish-started", {}),
    ("random", {"seed": 3}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("seed", range(8))
def test_every_variant_takes_over_and_forgets_jobs_that_left(name: str, options: dict[str, Any], seed: int) -> None:
    world = busy("fcfs", seed)
    policy = make(name, **options)
    world.scheduler.use_policy(policy)
    while world.advance():
        view = world.scheduler.view
        policy.begin(view)
        for pool, stages in view.ready.items():
            picks = [pick.task for pick in policy.picks(pool, view)]
            assert sorted(t.ref for t in picks) == sorted(
                s.tasks[k].ref for s in stages.values() if s.tasks for k in s.ready
            )
            assert all(t.state is TaskState.READY for t in picks)

    assert all(job.outcome for job in world.jobs.values())
    assert b"job-" not in pickle.dumps(policy)
    assert len(pickle.dumps(policy)) < 2_500


@pytest.mark.parametrize("name", ["finish-started", "las", "atlas"])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_kept_up_to_date_is_what_a_fresh_policy_would_find(name: str, seed: int) -> None:
    """Service and what was begun are states of the jobs, so a policy that takes over orders as one that watched."""
    options: dict[str, Any] = {} if name == "finish-started" else {"promote_after": float("inf")}
    world = busy("fcfs", seed)
    policy = make(name, **options)
    world.scheduler.use_policy(policy)
    for _ in range(15):
        world.advance()
    fresh = make(name, **options)
    world.scheduler.use_policy(fresh)
    view = world.scheduler.view
    policy.begin(view)
    fresh.begin(view)

    for pool in view.ready:
        assert [p.task.ref for p in policy.picks(pool, view)] == [p.task.ref for p in fresh.picks(pool, view)]

"""The order each policy gives; what every row of `POLICIES` promises is in `test_policy_checks.py`."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest

from llmsched.errors import InvalidInput, UnknownName
from llmsched.model.application import Application
from llmsched.model.events import (
    Batch,
    Command,
    Dispatch,
    Event,
    ExecutorJoined,
    FinishJob,
    JobCancelled,
    JobSubmitted,
    Reveal,
    StageExpanded,
    TaskFinished,
    TaskRef,
    TaskResult,
)
from llmsched.model.job import Stage
from llmsched.model.recording import Recording
from llmsched.model.unfolding import RecordedUnfolding
from llmsched.policies import POLICIES
from llmsched.policies import make_policy as make
from llmsched.policies.base import KeyPolicy, Policy, View
from llmsched.policies.fcfs import Fcfs
from llmsched.policies.gittins import gittins_rank
from llmsched.policies.sjf import Sjf
from llmsched.profiler import Knowledge, Truth, fit
from llmsched.scheduler import Scheduler
from llmsched.simulator import Setup
from llmsched.simulator import World as SimulatedWorld
from llmsched.simulator.world import job_name
from llmsched.workloads import Arrival
from tests.unit.learned import CURVES, REPAIR, ROUND, llm, regular, repair, repairs
from tests.unit.world import Luck, World, random_job


def application(name: str, *stages: dict[str, Any]) -> Application:
    return Application.parse({"name": name, "stages": list(stages)})


def stage(name: str, *after: str, kind: str = "llm", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "after": list(after), "max_tasks": 9, **more}


def means(seconds: float) -> dict[str, float]:
    """Declares so many seconds of LLM work, at 10 ms per token."""
    return {"output_tokens": seconds * 100}


def submitted(number: int, template: Application, arrival: float = 0.0, **tasks: int) -> JobSubmitted:
    """Job J<number> of a template, with these stages revealed."""
    reveals = tuple(Reveal(template[name], (0,) * n) for name, n in tasks.items())
    return JobSubmitted(f"J{number}", number, template, arrival, reveals)


def decide(scheduler: Scheduler, pool: str) -> list[str]:
    """What the policy would start in a pool if it had slots enough, as `b1` for task 1 of stage b."""
    scheduler.policy.begin(scheduler.view)
    return [f"{p.task.stage.name}{p.task.index}" for p in scheduler.policy.picks(pool, scheduler.view)]


def watching(policy: Policy, *events: Event) -> Scheduler:
    """A scheduler without executors, so that everything waits."""
    scheduler = Scheduler(policy)
    scheduler.handle(Batch(0.0, events))
    return scheduler


def busy(name: str, seed: int) -> World:
    """A world in the middle of its story, with more work than slots."""
    rng = Random(seed)
    jobs = [(*random_job(rng), rng.choice((0.0, 0.0, 1.0, 5.0))) for _ in range(rng.randint(0, 12))]
    luck = Luck(failing=0.1, losing=0.1, resizing=0.1, cancelling=0.1, tick=rng.choice((0.0, 0.5)))
    world = World(jobs, policy=name, luck=luck, seed=seed)
    for _ in range(rng.randint(0, 25)):
        world.advance()
    return world


# ------------------------------------------------------------------------------------------------------ fcfs


def test_fcfs_orders_by_the_arrival_of_the_job() -> None:
    first = application("first", stage("a"))
    second = application("second", stage("b"), stage("c", kind="regular"))

    scheduler = watching(Fcfs(), submitted(2, second, 1.0, b=2, c=1), submitted(1, first, 0.0, a=1))

    assert decide(scheduler, "llm") == ["a0", "b0", "b1"]
    assert decide(scheduler, "cpu") == ["c0"]


def test_fcfs_goes_by_the_job_and_not_by_the_moment_its_stage_became_ready() -> None:
    two = application("two", stage("a"), stage("b", "a"))
    one = application("one", stage("x"))
    scheduler = watching(
        Fcfs(), submitted(1, two, 0.0, a=1), ExecutorJoined("e", "llm", 1), submitted(2, one, 1.0, x=1)
    )

    b = Reveal(two["b"], (0,))
    scheduler.handle(Batch(5.0, (ExecutorJoined("e", "llm", 0), finished("J1", "a"), StageExpanded("J1", "a", (b,)))))

    assert decide(scheduler, "llm") == ["b0", "x0"]


# ------------------------------------------------------------------------------------------------------- sjf

# Figure 2 of the paper: both jobs arrive at 0. Job 1 (task automation, 15 s on average) really takes TA-1 2 s and a
# tool 1 s; job 2 (code generation, 9 s on average) really takes CG-1 2 s and CG-2 3 s, and CG-3 is skipped.
TA = application(
    "TA",
    stage("TA1", expected=means(4.5)),
    stage("TA2", "TA1", kind="dynamic", planner="TA1", candidates=["tool"], expected={"duration": 10.5}),
)
CG = application(
    "CG",
    stage("CG1", expected=means(3)),
    stage("CG2", "CG1", expected=means(4)),
    stage("CG3", "CG2", expected=means(2)),
)
TOOL = Reveal(TA["TA2"]), Reveal(application("x", stage("tool", kind="regular"))["tool"], (0,))


def finished(job: str, stage: str, seconds: float = 1.0, attempt: int = 1) -> TaskFinished:
    return TaskFinished(TaskRef(job, stage, 0), attempt, TaskResult(seconds))


def test_sjf_orders_by_the_mean_work_of_the_application() -> None:
    scheduler = watching(Sjf(), submitted(1, TA, TA1=1), submitted(2, CG, CG1=1))

    assert decide(scheduler, "llm") == ["CG10", "TA10"]


def test_sjf_plays_figure_2_as_the_paper_says() -> None:
    scheduler = Scheduler(Sjf())
    ends: dict[str, float] = {}

    def at(now: float, *events: Event) -> list[str]:
        commands: list[Command] = scheduler.handle(Batch(now, events))
        ends.update({c.job: now for c in commands if isinstance(c, FinishJob)})
        return [c.task.stage for c in commands if isinstance(c, Dispatch)]

    executors = (ExecutorJoined("e", "llm", 1), ExecutorJoined("w", "cpu", 1))
    assert at(0, *executors, submitted(1, TA, TA1=1), submitted(2, CG, CG1=1)) == ["CG1"]
    assert at(2, finished("J2", "CG1"), StageExpanded("J2", "CG1", (Reveal(CG["CG2"], (0,)),))) == ["CG2"]
    assert at(5, finished("J2", "CG2"), StageExpanded("J2", "CG2", (), ("CG3",))) == ["TA1"]
    assert at(7, finished("J1", "TA1"), StageExpanded("J1", "TA1", TOOL)) == ["tool"]
    assert at(8, finished("J1", "tool"), StageExpanded("J1", "tool")) == []

    assert ends == {"J2": 5, "J1": 8}  # on average 6.5 s


def test_sjf_never_updates_its_estimate_while_a_job_runs() -> None:
    scheduler = watching(Sjf(), ExecutorJoined("e", "llm", 1), submitted(2, CG, CG1=1))
    long = application("long", stage("x", expected=means(8.5)))  # less than 9, more than what is left of CG

    cg2 = StageExpanded("J2", "CG1", (Reveal(CG["CG2"], (0,)),))
    drained = ExecutorJoined("e", "llm", 0)
    scheduler.handle(Batch(3.0, (drained, submitted(3, long, 2.0, x=1), finished("J2", "CG1"), cg2)))

    assert decide(scheduler, "llm") == ["x0", "CG20"]


def test_sjf_prefers_a_fitted_mean_to_the_declared_one() -> None:
    scheduler = watching(Sjf(means={"CG": 20.0}), submitted(1, TA, TA1=1), submitted(2, CG, CG1=1))

    assert decide(scheduler, "llm") == ["TA10", "CG10"]


def test_sjf_is_fcfs_within_an_application() -> None:
    jobs = [submitted(n, CG, arrival, CG1=n) for n, arrival in ((1, 5.0), (2, 3.0))]

    assert decide(watching(Sjf(), *jobs), "llm") == ["CG10", "CG11", "CG10"]


def test_sjf_learns_the_mean_of_an_application_that_declares_nothing() -> None:
    slow = application("slow", stage("s", kind="regular", pool="llm"), stage("t", kind="regular", pool="llm"))
    known = application("known", stage("k", expected=means(5)))
    policy = Sjf()
    scheduler = watching(policy, ExecutorJoined("e", "llm", 9), *(submitted(n, slow, s=1, t=1) for n in (1, 2, 3)))
    assert policy.mean_work(slow) == 0

    # J1 took 4 + 4 s, J2 was cancelled after 100 s of work, which says nothing; J3 took 2 + 2 s
    tasks = [("J1", "s", 4.0), ("J1", "t", 4.0), ("J2", "s", 100.0), ("J3", "s", 2.0), ("J3", "t", 2.0)]
    for job, name, seconds in tasks:
        scheduler.handle(Batch(1.0, (finished(job, name, seconds), StageExpanded(job, name))))
    scheduler.handle(Batch(2.0, (JobCancelled("J2"), ExecutorJoined("e", "llm", 0))))

    assert policy.mean_work(slow) == 6.0
    scheduler.handle(Batch(3.0, (submitted(4, slow, s=1), submitted(5, known, k=1))))
    assert decide(scheduler, "llm") == ["k0", "s0"]


def test_sjf_turns_tokens_into_reference_work_and_not_into_the_time_they_took() -> None:
    bare = application("bare", stage("a"))
    policy = Sjf()
    scheduler = watching(policy, ExecutorJoined("e", "llm", 1), submitted(1, bare, a=1))

    result = TaskResult(duration=60.0, prompt_tokens=800, output_tokens=50)
    scheduler.handle(Batch(60.0, (TaskFinished(TaskRef("J1", "a", 0), 1, result), StageExpanded("J1", "a"))))

    assert policy.mean_work(bare) == pytest.approx(0.6)  # 800 / 8,000 + 50 x 0.01


# ----------------------------------------------------------------------------------------------- key policies


class FewestDone(KeyPolicy):
    """Jobs with the fewest stages over first: a key that changes when the job does."""

    def key(self, stage: Stage, view: View) -> int:
        return sum(s.is_over for s in stage.job.stages.values())


def test_a_key_is_asked_again_when_its_job_changed() -> None:
    free = application("free", stage("a"), stage("b"), stage("c", kind="regular"))
    jobs = [submitted(n, free, a=n, b=n, c=n) for n in (1, 2)]
    scheduler = watching(FewestDone(), *jobs, ExecutorJoined("w", "cpu", 1))
    assert decide(scheduler, "llm") == ["a0", "b0", "a0", "a1", "b0", "b1"]

    scheduler.handle(Batch(1.0, (finished("J1", "c"), StageExpanded("J1", "c"))))

    assert decide(scheduler, "llm") == ["a0", "a1", "b0", "b1", "a0", "b0"]


class MostOver(KeyPolicy):
    """Jobs of which many stages are over first; counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def key(self, stage: Stage, view: View) -> int:
        self.asked.append(stage.name)
        return -sum(s.is_over for s in stage.job.stages.values())


def test_a_key_is_asked_once_where_one_stage_became_ready_and_nothing_else_changed() -> None:
    policy = MostOver()
    scheduler = watching(policy, submitted(1, application("one", stage("a"), stage("b", "a")), a=1))

    assert decide(scheduler, "llm") == ["a0"]
    assert policy.asked == ["a"]


def test_a_key_is_asked_again_where_a_plan_turned_out_empty_beside_its_stage() -> None:
    tools = stage("tools", "plan", kind="dynamic", planner="plan", candidates=[{"name": "search", "kind": "regular"}])
    template = application("planning", stage("plan"), stage("a", "plan"), tools)
    policy = MostOver()
    scheduler = watching(policy, submitted(1, template, plan=1))

    reveals = Reveal(template["a"], (0,)), Reveal(template["tools"], ())
    scheduler.handle(Batch(1.0, (StageExpanded("J1", "plan", reveals, (), (TaskResult(1.0),)),)))

    assert [entry.why for entry in policy.picks("llm", scheduler.view)] == [{"key": -2}]  # plan and tools


# ------------------------------------------------------------------------------------------------ the registry


def test_unknown_names_and_options_name_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        make("fcsf")
    known = ", ".join(POLICIES)
    assert str(caught.value) == f"unknown policy 'fcsf'; did you mean 'fcfs'? known: {known}"

    with pytest.raises(UnknownName) as caught:
        make("sjf", mean={})
    assert str(caught.value) == (
        "unknown option of policy 'sjf' 'mean'; did you mean 'means'? known: means, curve, max_wait, tenants, deadlines"
    )


def test_an_oracle_is_refused_where_nobody_knows_the_future() -> None:
    with pytest.raises(InvalidInput) as caught:
        make("oracle-pool")

    assert str(caught.value) == "policy 'oracle-pool' needs to know the future, which only `llmsched simulate` has"


def test_options_reach_the_policy() -> None:
    policy = make("sjf", means={"CG": 3.0})

    assert isinstance(policy, Sjf)
    assert policy.mean_work(CG) == 3.0


# -------------------------------------------------------------------------------- orders by what is believed to be left


def alone(recording: Recording) -> Arrival:
    return Arrival(0.0, recording)


def two_jobs() -> list[Arrival]:
    """Specification 15: A has 1 s of LLM work and then 20 s on a worker, B has 6 s of LLM work."""
    a = Recording("a", "a", (llm("think", 100), regular("act", 20.0, after=["think"])))
    return [alone(a), alone(Recording("b", "b", (llm("think", 600),)))]


TWO = {
    "a": application("a", stage("think"), stage("act", "think", kind="regular")),
    "b": application("b", stage("think")),
}


@pytest.mark.parametrize(
    ("name", "options", "ends"),
    [
        ("srpt", {}, {"a": 21.0, "b": 7.0}),
        ("srpt", {"scope": "total"}, {"a": 27.0, "b": 6.0}),
        ("gittins", {}, {"a": 21.0, "b": 7.0}),
        ("gittins", {"scope": "total"}, {"a": 27.0, "b": 6.0}),
        ("srtf-prior", {}, {"a": 27.0, "b": 6.0}),
        ("llmsched-pool", {}, {"a": 21.0, "b": 7.0}),
        ("llmsched-wo-uncertainty", {}, {"a": 27.0, "b": 6.0}),
        ("oracle-pool", {}, {"a": 21.0, "b": 7.0}),
        ("oracle-srtf", {}, {"a": 27.0, "b": 6.0}),
        ("oracle-ready", {}, {"a": 21.0, "b": 7.0}),
    ],
)
def test_work_in_the_own_pool_and_work_in_all_pools_are_different_orders(
    name: str, options: dict[str, Any], ends: dict[str, float]
) -> None:
    arrivals = two_jobs()
    profiles = [fit(TWO[a.recording.application], [a.recording] * 20, curves=CURVES) for a in arrivals]
    truth = Truth({job_name(k): a.recording for k, a in enumerate(arrivals)}, CURVES)
    policy = make(name, knowledge=Knowledge(profiles, CURVES), truth=truth, **options)

    world = SimulatedWorld(Scheduler(policy), arrivals, TWO, Setup(engines=(1,), curve=ROUND)).run()

    assert {f.application: round(f.finished_at, 3) for f in world.finished} == ends


def test_estimates_follow_what_a_job_shows() -> None:
    """Two jobs of one application: the one whose draft turned out long has a long fix before it."""
    knowledge = Knowledge([fit(REPAIR, repairs(200), curves=CURVES)], CURVES)
    policy = make("srpt", knowledge=knowledge, estimator="history")
    scheduler = Scheduler(policy)
    for number, draft in enumerate((290, 110)):
        recording = repair(f"j{number}", draft, draft, prompt=200)
        unfolding = RecordedUnfolding(REPAIR, recording)
        events: list[Event] = [JobSubmitted(f"J{number}", number, REPAIR, 0.0, *unfolding.begin())]
        for name, tokens in (("draft", draft), ("check", 0)):
            unfolded = unfolding.complete(name)
            events.append(StageExpanded(f"J{number}", name, *unfolded, results=(TaskResult(1.0, 200, tokens),)))
        scheduler.handle(Batch(0.0, tuple(events)))

    policy.begin(scheduler.view)
    assert [pick.task.job.id for pick in policy.picks("llm", scheduler.view)] == ["J1", "J0"]


def test_a_new_profile_sorts_everything_again() -> None:
    knowledge = Knowledge(curves=CURVES)
    policy = make("llmsched-pool", knowledge=knowledge)
    scheduler = Scheduler(policy)
    for number, prompt in enumerate((290, 110)):
        unfolding = RecordedUnfolding(REPAIR, repair(f"j{number}", 1, prompt=prompt))
        scheduler.handle(Batch(0.0, (JobSubmitted(f"J{number}", number, REPAIR, 0.0, *unfolding.begin()),)))
    assert decide(scheduler, "llm") == ["draft0", "draft0"]
    assert [p.task.job.id for p in policy.picks("llm", scheduler.view)] == ["J0", "J1"], "nothing known: arrival"

    knowledge.put(fit(REPAIR, repairs(200), curves=CURVES))

    policy.begin(scheduler.view)
    picks = list(policy.picks("llm", scheduler.view))
    assert [p.task.job.id for p in picks] == ["J1", "J0"]
    assert picks[0].why is not None
    assert picks[0].why["estimate"] < (picks[1].why or {})["estimate"]


def test_the_gittins_rank_is_the_least_investment_per_job_that_gets_done() -> None:
    """Specification 1.9: job 1 and job 2 of the paper's figure 2, and one in between."""
    twos = [5.0] * 3 + [7.0] * 2 + [9.0] * 6 + [11.0] * 2 + [13.0] * 3

    assert gittins_rank(np.array([3.0, 3, 27, 27])) == 6.0
    assert gittins_rank(np.array(twos)) == 9.0
    assert gittins_rank(np.array([5.0, 8, 10, 13])) == 9.0
    assert gittins_rank(np.array([3.0, 27.0]), np.array([0.5, 0.5])) == 6.0


@pytest.mark.parametrize("options", [{"scope": "llm"}, {"cross": 2.0}])
def test_a_bad_option_of_srpt_is_one_sentence(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="must be"):
        make("srpt", **options)


def test_an_unknown_estimator_is_told() -> None:
    with pytest.raises(UnknownName, match="unknown estimator 'bayes'; did you mean 'bayesnet'"):
        make("srpt", estimator="bayes")

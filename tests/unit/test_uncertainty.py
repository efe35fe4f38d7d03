"""Intervals of what is left and R(X): hand-made histories, the specification's numbers, and pyAgrum's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest

from llmsched.model.application import Application
from llmsched.model.events import TaskResult
from llmsched.model.job import Job, Stage, TaskState
from llmsched.model.kinds import StageKind
from llmsched.model.recording import RecordedStage, Recording
from llmsched.profiler.averages import Averages
from llmsched.profiler.cases import Tables
from llmsched.profiler.history import Curves
from llmsched.profiler.network import pyagrum  # imported there without its warnings
from llmsched.profiler.reading import Reading
from llmsched.profiler.sight import DeclaredSeer, Reduction, Sight, values
from llmsched.profiler.stages import learn_stages
from llmsched.profiler.uncertainty import Uncertainty, estimator_for
from llmsched.profiler.walk import walk
from tests.unit.figure_2 import (
    CG,
    FIVE,
    TA,
    application,
    cg_history,
    coding,
    five,
    seconds,
    segmenting,
    stage,
    ta_history,
    translating,
)
from tests.unit.learned import CURVES, history, job_at, llm, regular

gum: Any = pyagrum

XYZ = application("XYZ", stage("X"), stage("Y", "X"), stage("Z", "Y"))


def chain_history() -> list[Recording]:
    """X in {2, 4} evenly, Y like X in 3 of 4 cases, Z like Y in 3 of 4."""
    turn = {2: (2, 2, 2, 4), 4: (4, 4, 4, 2)}
    cases = [(x, y, z) for x in (2, 4) for y in turn[x] for z in turn[y]] * 5
    return [
        Recording("XYZ", f"q{k}#1", (seconds("X", x), seconds("Y", y, "X"), seconds("Z", z, "Y")))
        for k, (x, y, z) in enumerate(cases)
    ]


def sees(app: Application, recordings: Iterable[Recording], *, curves: Curves = CURVES, **reading: Any) -> Uncertainty:
    """With point bins and exact shares: smoothing is off unless the reading says otherwise."""
    tables = Tables(history(app, recordings), curves)
    own = Reading(**{"smoothing": 0.0, **reading})
    return Uncertainty(app, estimator_for(tables, learn_stages(tables), own), own)


def sees_marginals(app: Application, recordings: Iterable[Recording], **reading: Any) -> Uncertainty:
    """Without a network: the profile has none."""
    own = Reading(**reading)
    return Uncertainty(app, estimator_for(Tables(history(app, recordings), CURVES), None, own), own)


def reduction(seer: Uncertainty, job: Job, name: str) -> float:
    """R in bit seconds at batches of one."""
    return value(seer.reduction(job, job.stages[name], seer.see(job)), [1.0] * 2 * len(seer.tables.pools))


def value(reduction: Reduction, factors: Sequence[float], *, per_second: bool = False) -> float:
    return float(values([reduction], factors, per_second=per_second)[0])


def left(sight: Sight) -> list[float]:
    """est_rd and the interval at batches of one, nothing running."""
    return [round(float(x), 9) for x in sight.parts.sum(axis=2).clip(0.0).sum(axis=0)]


# ---------------------------------------------------------------------------------------------------- Figure 2


def test_task_automation_of_figure_2() -> None:
    seer = sees_marginals(TA, ta_history())
    job = job_at(TA, translating(), 0)

    # 4.5 + 10.5 s; [2 + 1, 7 + 20]; (translate, segment, detect, segment -> detect: 4 bits) x (20 - 1) s
    assert left(seer.see(job)) == [15.0, 3.0, 27.0]
    assert reduction(seer, job, "TA1") == pytest.approx(76.0, abs=1e-9)


def test_a_plan_that_is_known_costs_what_its_candidates_do() -> None:
    seer = sees_marginals(TA, ta_history())

    assert left(seer.see(job_at(TA, translating(), 1))) == [1.0, 1.0, 1.0]
    assert left(seer.see(job_at(TA, segmenting(), 1))) == [20.0, 20.0, 20.0]
    assert reduction(seer, job_at(TA, segmenting(), 1), "segment_1") == 0.0


def test_the_network_does_not_count_a_plan_twice() -> None:
    """The network knows that a long TA1 means a long plan; the dynamic term says it already."""
    seer = sees(TA, ta_history(), roots=False)
    assert seer.network.arcs

    assert reduction(seer, job_at(TA, translating(), 0), "TA1") == pytest.approx(76.0, abs=1e-9)


def test_code_generation_of_figure_2() -> None:
    seer = sees(CG, cg_history())
    job = job_at(CG, coding("q", 2, 3), 0)

    assert left(seer.see(job)) == [9.0, 5.0, 13.0]
    # I = 1 - H(1/4) = 0.188722 bits, Range(CG2) = 5 - 3
    assert reduction(seer, job, "CG1") == pytest.approx(0.377444, abs=1e-6)


def test_a_finished_stage_is_evidence() -> None:
    seer = sees(CG, cg_history())

    # .75 x 3 + .25 x 5 = 3.5 and CG3, 2 on average
    assert left(seer.see(job_at(CG, coding("q", 2, 3), 1))) == [5.5, 3.0, 9.0]
    # CG2 tells nothing about CG3
    assert reduction(seer, job_at(CG, coding("q", 2, 3), 1), "CG2") == 0.0


def test_stages_at_the_end_of_a_chain_add_range_and_no_information() -> None:
    seer = sees(XYZ, chain_history())
    job = job_at(XYZ, chain_history()[0], 0)

    assert seer.network.parents == ((), (0,), (1,))
    assert reduction(seer, job, "X") == pytest.approx(0.188722 * (2 + 2), abs=1e-5)
    assert reduction(sees(XYZ, chain_history(), corr="arc"), job, "X") == pytest.approx(0.188722 * 2, abs=1e-5)


# ------------------------------------------------------------------------------------------------ against pyAgrum


def by_pyagrum(seer: Uncertainty, job: Job, name: str) -> float:
    """R(X) as Eq. 5 and 6 print it, over the whole joint posterior of pyAgrum."""
    net = seer.network
    theirs = gum.BayesNet()
    for own, card in zip(net.names, net.cards, strict=True):
        theirs.add(gum.LabelizedVariable(own, own, card))
    for parent, child in net.arcs:
        theirs.addArc(net.names[parent], net.names[child])
    for v, own in enumerate(net.names):
        axes = [net.names.index(n) for n in reversed(theirs.cpt(own).names)]
        family = [*net.parents[v], v]
        theirs.cpt(own).fillWith(net.cpts[v].transpose([family.index(u) for u in axes]).ravel().tolist())
    sight = seer.see(job)
    x = net.names.index(name)
    below, found = {x}, True
    while found:
        more = {child for parent, child in net.arcs if parent in below}
        found, below = not more <= below, below | more
    ys = sorted(y for y in below - {x} if not job.stages[net.names[y]].is_over)
    if not ys:
        return 0.0
    engine = gum.LazyPropagation(theirs)
    targets = {net.names[v] for v in (*ys, x)}
    engine.addJointTarget(targets)
    evidence: dict[str, Any] = {net.names[v]: state for v, state in sight.known.items()}
    for v, lowest in sight.at_least.items():
        evidence[net.names[v]] = [float(state >= lowest) for state in range(net.cards[v])]
    engine.setEvidence(evidence)
    posterior = engine.jointPosterior(targets)
    axes = [list(reversed(posterior.names)).index(net.names[v]) for v in (*ys, x)]
    p = np.array(posterior.toarray()).transpose(axes).reshape(-1, net.cards[x])
    independent = np.multiply.outer(p.sum(1), p.sum(0))
    bits = float((p[p > 0] * np.log2(p[p > 0] / independent[p > 0])).sum())
    total = 0.0
    for y in ys:
        row = seer.spans.row_of[net.names[y]]
        marginal = np.array(posterior.sumIn([net.names[y]]).toarray())
        there = np.flatnonzero(marginal >= seer.reading.theta)
        states = seer.stages.states(seer.tables.history)[:, y]
        work = seer.spans.work[:, row].sum(axis=1)
        if seer.stages.variables[y].role == "regular":
            total += work[work > 0].mean() * (len(there) == 2)
        else:
            total += work[states == there[-1]].max() - work[states == there[0]].min()
    return bits * total


@pytest.mark.parametrize("seed", range(6))
def test_reductions_are_those_of_pyagrum(seed: int) -> None:
    rng = Random(seed)
    recordings = [five(rng, f"q{k}#1") for k in range(120)]
    seer = sees(FIVE, recordings, smoothing=0.1, range="theta")
    assert len(seer.network.arcs) >= 3

    asked = told = 0
    for recording in recordings[:12]:
        for job in walk(FIVE, recording, recording.job_id):
            for name, own in job.stages.items():
                if own.tasks is not None and not own.is_over:
                    r = reduction(seer, job, name)
                    assert r == pytest.approx(by_pyagrum(seer, job, name), abs=1e-9)
                    asked, told = asked + 1, told + (r > 0.01)
    assert asked > 40
    assert told > 10


# ---------------------------------------------------------------------------------------------- what E and Y are


def start(job: Job, name: str, done: int = 0, tokens: int = 0) -> Stage:
    """Dispatches one task of a stage, or has `done` of them finished with so many tokens each."""
    own = job.stages[name]
    assert own.tasks is not None
    if not done:
        own.tasks[0].become(TaskState.RUNNING)
        job.running[own.tasks[0].ref] = own.tasks[0]
    for task in own.tasks[:done]:
        task.become(TaskState.DONE)
        task.result = TaskResult(tokens * 0.02, 0, tokens)
        own.done_tasks += 1
    return own


PAIR = application("pair", stage("a"), stage("b"))


def pairs(tasks: int = 1) -> list[Recording]:
    """Two parallel stages that are as long as each other, in 3 of 4 cases."""
    cases = [(2, 2), (2, 2), (2, 2), (2, 4), (4, 4), (4, 4), (4, 4), (4, 2)] * 8
    return [
        Recording("pair", f"q{k}#1", (seconds("a", a, tasks=tasks), seconds("b", b))) for k, (a, b) in enumerate(cases)
    ]


def test_a_stage_that_is_scheduled_needs_no_information() -> None:
    seer, later = sees(PAIR, pairs()), sees(PAIR, pairs(), informs="unfinished")
    job = job_at(PAIR, pairs()[0], 0)
    assert reduction(seer, job, "a") == pytest.approx(0.377444, abs=1e-5)

    start(job, "b")

    assert reduction(seer, job, "a") == 0.0
    assert reduction(later, job, "a") == pytest.approx(0.377444, abs=1e-5)


def test_information_may_flow_against_arcs_if_asked() -> None:
    job = job_at(PAIR, pairs()[0], 0)

    assert reduction(sees(PAIR, pairs()), job, "b") == 0.0
    assert reduction(sees(PAIR, pairs(), corr="dependent"), job, "b") == pytest.approx(0.377444, abs=1e-5)


def test_a_sample_of_a_stage_stands_for_all_of_it() -> None:
    """Two of four tasks are done, 1 s each: the stage will be 4 s in all, and b is as long with 3/4."""
    recording = Recording("pair", "q", (seconds("a", 4, tasks=4), seconds("b", 4)))
    job = job_at(PAIR, recording, 0)
    assert left(sees(PAIR, pairs()).see(job)) == [6.0, 4.0, 8.0]
    start(job, "a", done=2, tokens=100)

    # a: 4 - 2 s; b: .25 x 2 + .75 x 4
    assert left(sees(PAIR, pairs(), r=0.5).see(job)) == [5.5, 4.0, 6.0]
    # not a sample yet; but a stage with 2 s behind it is the longer one in any case
    assert left(sees(PAIR, pairs(), r=0.6).see(job)) == [5.5, 4.0, 6.0]
    # neither: 3 - 2 s and 3 s, 2 - 2 and 2 s, 4 - 2 and 4 s
    assert left(sees(PAIR, pairs(), sampled=False).see(job)) == [4.0, 2.0, 6.0]


def test_states_that_a_running_stage_has_outlived_are_ruled_out() -> None:
    recording = pairs()[0]
    job = job_at(PAIR, recording, 0)
    start(job, "a")
    seer, blind = sees(PAIR, pairs(), evidence="censored"), sees(PAIR, pairs())
    sight = seer.see(job)
    assert left(sight) == [6.0, 4.0, 8.0]

    assert not seer.is_outlived(job, sight, {"a": 1.99})
    assert seer.is_outlived(job, sight, {"a": 2.0})
    assert left(seer.see(job, {"a": 2.0})) == [4 + 3.5, 6.0, 8.0]
    assert left(blind.see(job, {"a": 2.0})) == [6.0, 4.0, 8.0]
    assert not seer.is_outlived(job, seer.see(job, {"a": 2.0}), {"a": 99.0})


def test_wall_time_counts_as_measured_if_asked() -> None:
    """CG1 took 2 s alone, but 4 s in its batch: taken word by word, it was the long one."""
    job = job_at(CG, coding("q", 2, 3), 1)
    assert job.stages["CG1"].tasks is not None
    job.stages["CG1"].tasks[0].result = TaskResult(4.0, 0, 200)

    assert left(sees(CG, cg_history()).see(job))[0] == 3.5 + 2
    assert left(sees(CG, cg_history(), measure="wall").see(job))[0] == 4.5 + 2


OPTIONAL = application("optional", stage("a"), stage("b", "a", kind="regular"), stage("c", "b"))


def optional(n: int = 64) -> list[Recording]:
    """a takes 2 s; b (1 or 3 s) and c (4 s) run in every other job."""
    jobs = []
    for k in range(n):
        more = [regular("b", 1.0 + k % 4, after=["a"]), seconds("c", 4, "b")] if k % 2 == 0 else []
        jobs.append(Recording("optional", f"q{k}#1", (seconds("a", 2), *more)))
    return jobs


def test_being_ready_is_evidence_that_a_stage_runs() -> None:
    job = job_at(OPTIONAL, optional()[0], 1)

    # b 2 s on average, c 4 s, both certain; or each with probability 1/2
    assert left(sees(OPTIONAL, optional()).see(job)) == [6.0, 6.0, 6.0]
    assert left(sees(OPTIONAL, optional(), executed=False, structure="independent").see(job)) == [3.0, 0.0, 6.0]


def test_the_interval_of_a_job_may_be_of_all_it_takes() -> None:
    job = job_at(CG, coding("q", 2, 3), 1)

    assert left(sees(CG, cg_history(), interval="total").see(job)) == [5.5, 2 + 3, 2 + 9]


def test_intervals_hold_what_they_are_asked_to() -> None:
    """CG1 takes 1 s in 1 of 100 jobs, 2 s in 39, 3 s in 59, and 9 s in 1."""
    cases = [1] + [2] * 39 + [3] * 59 + [9]
    jobs = [Recording("CG", f"q{k}#1", (seconds("CG1", s),)) for k, s in enumerate(cases * 5)]
    job = job_at(CG, jobs[0], 0)

    def interval(**reading: Any) -> list[float]:
        return left(sees(CG, jobs, structure="independent", k_max=99, **reading).see(job))[1:]

    assert interval() == [2.0, 3.0]
    assert interval(interval="remaining", theta=0.005) == [1.0, 9.0]
    assert interval(interval="remaining", theta=0.4) == [3.0, 3.0]
    assert interval(interval="iqr") == [2.0, 3.0]


# ------------------------------------------------------------------------------------------------ ranges, options


def test_ranges() -> None:
    job = job_at(CG, coding("q", 2, 3), 0)

    def bits(**reading: Any) -> float:
        """R(CG1) over I = 0.188722: the range of CG2, which is 3 s or 5 s."""
        return round(reduction(sees(CG, cg_history(), **reading), job, "CG1") / 0.188722, 4)

    assert bits() == bits(range="theta") == bits(range="prior") == 2.0
    assert bits(range="std") == 1.0


def test_prior_ranges_do_not_shrink() -> None:
    recordings = chain_history()
    job = job_at(XYZ, recordings[0], 1)  # X took 2 s: P(Y = 2) = 3/4

    assert reduction(sees(XYZ, recordings, range="theta", theta=0.4), job, "Y") == 0.0
    assert reduction(sees(XYZ, recordings, range="prior"), job, "Y") > 0.1


def test_a_regular_stage_ranges_over_its_mean_or_its_history() -> None:
    job = job_at(OPTIONAL, optional()[0], 0)

    # b: 0 or 1 to 3 s, mean 2; c: 0 or 4 s
    assert left(sees(OPTIONAL, optional()).see(job)) == [2 + 1 + 2, 2.0, 2 + 2 + 4]
    assert left(sees(OPTIONAL, optional(), range_regular="extremes").see(job)) == [5.0, 2.0, 2 + 3 + 4]


def test_a_bin_stands_for_its_mean_or_its_middle() -> None:
    jobs = [Recording("CG", f"q{k}#1", (seconds("CG1", s),)) for k, s in enumerate([1, 1, 1, 5] * 5)]
    job = job_at(CG, jobs[0], 0)

    assert left(sees(CG, jobs, structure="independent", k_max=1).see(job))[0] == 2.0
    assert left(sees(CG, jobs, structure="independent", k_max=1, rep="midpoint").see(job))[0] == 3.0


def test_the_dynamic_term() -> None:
    jobs = [*ta_history(), *(translating(f"c{k}#1", first=2) for k in range(20))]
    job = job_at(TA, translating(), 0)

    def r(**reading: Any) -> float:
        return reduction(sees_marginals(TA, jobs, **reading), job, "TA1")

    # translate 3/4, segment, detect and the edge 1/4: each H(1/4) = 0.811278 bits; plans take 1 to 20 s
    assert r() == pytest.approx(4 * 0.811278 * 19, abs=1e-4)
    assert r(dyn_weight=0.5) == pytest.approx(r() / 2)
    # jobs about text all have the same plan
    assert r(plan_entropy="variant") == 0.0


def test_a_few_extreme_plans_can_be_left_out_of_the_range() -> None:
    jobs = [*(translating(f"a{k}#1") for k in range(50)), segmenting()]

    # one TA1 of 7 s is too rare for a bin of its own
    assert left(sees_marginals(TA, jobs).see(job_at(TA, jobs[0], 0)))[2] == 7 + 20
    assert left(sees_marginals(TA, jobs, range_dynamic="q05_q95").see(job_at(TA, jobs[0], 0)))[2] == 7 + 1


def test_what_tells_about_a_planner_may_have_its_share() -> None:
    """`ask` is as long as `plan`, which decides between two plans."""
    app = application(
        "asked",
        stage("ask"),
        stage("plan", "ask"),
        stage("tools", "plan", kind="dynamic", planner="plan", candidates=["s", "l"]),
    )
    jobs = []
    for k in range(64):
        name, long = ("l", 5.0) if k % 2 else ("s", 1.0)
        tool = regular(f"{name}_1", long, after=["plan"], tool=name, parent="tools")
        plan = RecordedStage("tools", StageKind.DYNAMIC, ("plan",), ())
        stages = (seconds("ask", 1 + k % 2), seconds("plan", 1 + k % 2, "ask"), plan, tool)
        jobs.append(Recording("asked", f"q{k}#1", stages))
    job = job_at(app, jobs[0], 0)

    # 1 bit x (Range(plan) = 1 s, and Range(tools) = 4 s if there is a path to it) for what the network tells
    told = reduction(sees(app, jobs), job, "ask")
    assert told == pytest.approx(1.0) or told == pytest.approx(5.0)
    # the whole of H(tools) = 2 bits x 4 s, because `ask` tells all about `plan`
    assert reduction(sees(app, jobs, dynamic_term="ancestors"), job, "ask") == pytest.approx(told + 8.0)


def test_structure_that_a_stage_reveals_may_count() -> None:
    job = job_at(OPTIONAL, optional()[0], 0)

    assert reduction(sees(OPTIONAL, optional()), job, "a") == 0.0
    # 1 bit x 2 s: whether b, 2 s on average, runs
    assert reduction(sees(OPTIONAL, optional(), structural=True), job, "a") == pytest.approx(2.0)


def test_information_about_several_stages_can_be_added_up() -> None:
    """Y and Z both repeat X: together they tell 1 bit, one by one 2."""
    app = application("twins", stage("X"), stage("Y", "X"), stage("Z", "X"))
    jobs = [
        Recording("twins", f"q{k}#1", (seconds("X", s), seconds("Y", s, "X"), seconds("Z", s, "X")))
        for k, s in enumerate([2, 4] * 32)
    ]
    job = job_at(app, jobs[0], 0)

    assert reduction(sees(app, jobs), job, "X") == pytest.approx(1 * (2 + 2))
    assert reduction(sees(app, jobs, mi="montecarlo"), job, "X") == pytest.approx(1 * (2 + 2))
    assert reduction(sees(app, jobs, mi="pairwise_sum"), job, "X") == pytest.approx(2 * (2 + 2))


# ----------------------------------------------------------------------------------------------------- calibration


def test_seconds_are_calibrated_on_reading() -> None:
    """Decoding doubles in a batch of two, prefill of 1 s does not, unless it is asked to."""
    app = application("one", stage("a"), stage("b", "a"))
    curves = Curves({"llm": CURVES["llm"].__class__("slow", 100.0, ((1, 0.01), (2, 0.02)))})
    cases = [(200, 100), (200, 100), (200, 100), (200, 300), (400, 300), (400, 300), (400, 300), (400, 100)] * 8
    jobs = [
        Recording("one", f"q{k}#1", (llm("a", a, prompt=100), llm("b", b, prompt=100, after=["a"])))
        for k, (a, b) in enumerate(cases)
    ]
    job = job_at(app, jobs[0], 0)

    def at(factor: float, **reading: Any) -> tuple[float, float]:
        seer = sees(app, jobs, curves=curves, **reading)
        sight = seer.see(job)
        r = value(seer.reduction(job, job.stages["a"], sight), [1.0, factor])
        return round(float((sight.parts[:, 0] @ [1.0, factor]).sum()), 6), round(r / 0.188722, 3)

    # 1 + 1 s of prefill, 3 + 2 s of decoding; b ranges over 2 s
    assert at(1.0) == (7.0, 2.0)
    assert at(2.0) == (12.0, 4.0)
    assert at(2.0, prefill="scaled") == (14.0, 4.0)
    assert at(2.0, calibrated_ranges=False) == (12.0, 2.0)


def test_a_reduction_per_second_of_the_stage() -> None:
    r = Reduction((0.0, 6.0), (1.0, 2.0))

    assert (value(r, [1.0, 1.0]), value(r, [1.0, 2.0])) == (6.0, 12.0)
    assert value(r, [1.0, 1.0], per_second=True) == 2.0
    assert value(Reduction((1.0, -2.0), (0.0, 0.0)), [1.0, 1.0], per_second=True) == 0.0
    assert value(Reduction((), ()), []) == 0.0


# ------------------------------------------------------------------------------- nothing learned, averages only


def test_declared_means_leave_nothing_open() -> None:
    app = application("new", stage("a", expected={"output_tokens": 300}), stage("b", "a", kind="regular"))
    job = job_at(app, Recording("new", "q", (seconds("a", 1), regular("b", 1.0, after=["a"]))), 0)
    seer = DeclaredSeer(app, CURVES)

    assert left(seer.see(job)) == [3.0, 3.0, 3.0]
    assert value(seer.reduction(job, job.stages["a"], seer.see(job)), [1.0] * 4) == 0.0


def averages(constant: bool = False) -> Averages:
    reading = Reading(smoothing=0.0)
    estimator = estimator_for(Tables(history(CG, cg_history()), CURVES), None, reading)
    return Averages(CG, estimator, reading, constant=constant)


def test_averages_take_off_what_is_done_down_to_a_floor() -> None:
    fresh, later = job_at(CG, coding("q", 2, 3), 0), job_at(CG, coding("q", 8, 3), 1)

    assert left(averages().see(fresh)) == [9.0, 5.0, 13.0]
    assert left(averages().see(later)) == [1.0, 0.0, 5.0]
    assert left(averages(constant=True).see(later)) == [9.0, 5.0, 13.0]
    # a tenth of what CG2 and CG3 take on average
    assert averages().see(later).floor == pytest.approx([0.0, 0.6])


def test_averages_weigh_stages_by_the_static_prior() -> None:
    """X is over and has told all it could about Y. That Y tells about Z is still true; how much is not updated."""
    reading = Reading(smoothing=0.0)
    seer = Averages(XYZ, estimator_for(Tables(history(XYZ, chain_history()), CURVES), None, reading), reading)
    job = job_at(XYZ, chain_history()[0], 1)

    # a priori Y is 2 or 4 evenly; given X = 2 it is 2 with 3/4, and less is open
    assert reduction(seer, job, "Y") == pytest.approx(0.188722 * 2, abs=1e-5)
    assert reduction(sees(XYZ, chain_history()), job, "Y") < 0.188722 * 2 - 0.01


# -------------------------------------------------------------------------------------------------------- learning


def test_the_network_is_learned_as_asked() -> None:
    jobs = chain_history()

    assert sees(XYZ, jobs, structure="independent").network.arcs == ()
    assert sees(XYZ, jobs, structure="template").network.arcs == ((0, 1), (1, 2))
    assert sees(XYZ, jobs, k_max=1).network.cards == (2, 2, 2)
    # few jobs are enough for AIC to see what BIC does not
    assert len(sees(XYZ, jobs[:32], score="bic").network.arcs) < len(sees(XYZ, jobs[:32]).network.arcs)


def test_the_network_of_the_profile_serves_unless_another_is_asked_for() -> None:
    tables = Tables(history(XYZ, chain_history()), CURVES)
    own = estimator_for(tables, None, Reading(structure="template")).stages

    assert estimator_for(tables, own, Reading()).stages is own
    assert estimator_for(tables, own, Reading(smoothing=0.2)).stages is not own


def test_an_interval_shrinks_while_a_job_tells_about_itself() -> None:
    rng = Random(3)
    recordings = [five(rng, f"q{k}#1") for k in range(200)]
    seer = sees(FIVE, recordings, smoothing=0.1)

    widths = [
        [hi - lo for _, lo, hi in (left(seer.see(job)) for job in walk(FIVE, r, r.job_id))] for r in recordings[:20]
    ]

    assert all(later <= earlier + 1e-9 for own in widths for earlier, later in pairwise(own)), widths
    assert any(own[-1] < own[0] for own in widths)

"""Comparisons: statistics against numbers by hand, machines for a load, what is learned from, and that runs repeat."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from llmsched import plots
from llmsched.catalogue import installed_applications
from llmsched.errors import InvalidInput, UnknownName
from llmsched.model.kinds import StageKind
from llmsched.model.latency import GENERIC_7B, LatencyCurve
from llmsched.model.recording import RecordedStage, RecordedTask, Recording
from llmsched.policies import POLICIES
from llmsched.profiler import Knowledge
from llmsched.simulator import experiment
from llmsched.simulator.experiment import (
    Choice,
    Comparison,
    SimulatedRun,
    Sizing,
    Work,
    compare,
    fixed,
    is_held_out,
    parse_policies,
    prepare,
    size,
    to_json,
)
from llmsched.simulator.statistics import Run, best_oracle, change, interval, samples_of, share, summary
from llmsched.workloads import Workload, write_trace

APPLICATIONS = installed_applications()


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


# ---------------------------------------------------------------------------------------------------- statistics


def test_the_interval_of_two_samples_is_what_can_be_counted() -> None:
    # four equally likely resamples of (0, 1): means 0, 1/2, 1/2, 1; so 2.5 % lies at 0 and 97.5 % at 1
    assert interval(array(0.0, 1.0)) == [0.0, 1.0]
    assert interval(array(3.0)) is None
    assert interval(array()) is None


def test_the_interval_of_many_samples_is_that_of_their_mean() -> None:
    samples = np.random.default_rng(1).normal(10.0, 2.0, 400)
    low, high = interval(samples) or [0.0, 0.0]
    half = 1.96 * samples.std() / 20
    # 1,000 resamples put a percentile within 0.1 standard errors or so
    assert (low, high) == pytest.approx((samples.mean() - half, samples.mean() + half), abs=0.25 * half)


def test_a_change_is_paired() -> None:
    # seeds differ tenfold, yet each one is exactly 20 % faster
    base = array(10.0, 100.0, 30.0)
    assert change(base * 0.8, base) == {"change_pct": pytest.approx(-20.0), "ci95": pytest.approx([-20.0, -20.0])}
    assert change(array(5.0), array(4.0)) is None
    assert change(array(1.0, np.nan, 2.0), array(2.0, 7.0, 4.0)) == change(array(1.0, 2.0), array(2.0, 4.0))


def test_a_share_is_of_the_gain_of_the_means() -> None:
    fcfs, mine, oracle = array(10.0, 30.0), array(8.0, 18.0), array(5.0, 15.0)
    # gains 7 of 10 on average; resamples: 2/5, 12/15 and their mean 7/10
    assert share(fcfs, mine, oracle) == {"share_pct": pytest.approx(70.0), "ci95": pytest.approx([40.0, 80.0])}


def test_a_share_without_a_gain_is_none() -> None:
    assert share(array(5.0, 5.0), array(4.0, 4.0), array(5.0, 5.0)) is None
    # a gain on average that some resamples do not have: a number without an interval
    assert share(array(10.0, 5.0), array(9.0, 5.0), array(5.0, 6.0)) == {"share_pct": pytest.approx(25.0), "ci95": None}
    assert share(array(2.0), array(1.5), array(1.0)) == {"share_pct": 50.0, "ci95": None}


def test_the_better_oracle_counts() -> None:
    samples = {"fcfs": array(9.0, 9.0), "oracle-srtf": array(3.0, 5.0), "oracle-pool": array(4.0, 3.0)}
    assert best_oracle(samples) == "oracle-pool"
    assert best_oracle({"sjf": array(1.0)} | {k: v for k, v in samples.items() if k != "fcfs"}) is None
    assert best_oracle({"fcfs": array(1.0), "sjf": array(1.0)}) is None
    assert [entry.get("clairvoyant_share", {}).get("share_pct") for entry in summary(samples)] == pytest.approx(
        [0.0, 5.0 / 5.5 * 100, 100.0]
    )


def test_the_share_of_what_can_be_known() -> None:
    samples = {"fcfs": array(9.0, 9.0), "sjf": array(7.0, 7.0), "oracle-ready": array(5.0, 5.0)}
    assert summary(samples)[1]["ceiling_share"] == {"share_pct": 50.0, "ci95": [50.0, 50.0]}
    assert "clairvoyant_share" not in summary(samples)[1]


def a_run(policy: str, seed: int, *times: float | None, load: float | None = 1.0) -> SimulatedRun:
    return SimulatedRun(policy, seed, [("a", t) for t in times], load=load)


def test_samples_are_seeds_or_else_jobs() -> None:
    runs = [a_run("p", 2, 5.0, 7.0), a_run("p", 1, 1.0, None), a_run("q", 1, 2.0, 2.0), a_run("q", 2, None, None)]
    samples = samples_of(runs)
    assert samples["p"].tolist() == [1.0, 6.0]
    np.testing.assert_array_equal(samples["q"], array(2.0, np.nan))
    np.testing.assert_array_equal(samples_of([a_run("p", 1, 1.0, None, 3.0)])["p"], array(1.0, np.nan, 3.0))


def test_what_is_resampled_does_not_depend_on_what_else_was_compared() -> None:
    rng = np.random.default_rng(0)
    samples = {name: rng.exponential(1.0, 20) for name in "abc"}
    alone = summary({"a": samples["a"], "b": samples["b"]})
    together = summary(samples)
    assert together[0]["ci95"] == alone[0]["ci95"]
    assert together[0]["vs"]["b"] == alone[0]["vs"]["b"]


def test_many_jobs_are_resampled_in_pieces() -> None:
    jobs = np.random.default_rng(2).exponential(1.0, 20_000)
    low, high = interval(jobs) or [0.0, 0.0]
    assert high - low == pytest.approx(2 * 1.96 * jobs.std() / 20_000**0.5, rel=0.15)


def test_a_run_says_what_the_contract_wants() -> None:
    run = Run("fcfs", 4, [("a", 1.0), ("b", 3.0), ("a", None)], makespan=9.0, utilisation={"llm": 0.5})
    assert run.to_json() == {
        "policy": "fcfs",
        "seed": 4,
        "jobs": 3,
        "failed": 1,
        "mean_jct": 2.0,
        "p50_jct": 2.0,
        "p95_jct": pytest.approx(2.9),
        "p99_jct": pytest.approx(2.98),
        "mean_request": None,
        "mean_slowdown": None,
        "max_slowdown": None,
        "jain": None,
        "makespan": 9.0,
        "decisions": 0,
        "decision_ms": {"mean": None, "p50": None, "p99": None},
        "utilisation": {"llm": 0.5},
        "apps": {"a": {"jobs": 1, "mean_jct": 1.0}, "b": {"jobs": 1, "mean_jct": 3.0}},
    }


def test_the_document_of_one_load_is_the_contract() -> None:
    document = to_json({"load": 1.0}, [a_run("p", 0, 1.0), a_run("p", 1, 3.0), a_run("q", 0, 2.0), a_run("q", 1, 4.0)])
    assert document.keys() == {"settings", "runs", "summary"}
    assert [entry.keys() for entry in document["summary"]] == [{"policy", "mean_jct", "ci95", "vs"}] * 2
    assert document["summary"][0]["mean_jct"] == 2.0
    assert document["summary"][0]["vs"]["q"]["change_pct"] == pytest.approx(-100 / 3)
    assert "load" not in document["runs"][0]
    assert orjson.dumps(document)


def test_the_document_of_several_loads_says_which() -> None:
    runs = [a_run(p, s, float(k + 1), load=k) for k in (0.85, 1.2) for p in "pq" for s in (0, 1)]
    document = to_json({"load": [0.85, 1.2]}, runs)
    assert [(e["policy"], e["load"]) for e in document["summary"]] == [("p", 0.85), ("q", 0.85), ("p", 1.2), ("q", 1.2)]
    assert [run["load"] for run in document["runs"]] == [0.85] * 4 + [1.2] * 4
    assert document["summary"][2]["mean_jct"] == pytest.approx(2.2)


# --------------------------------------------------------------------------------------------- machines for a load


def work(llm: float, **regular: float) -> Work:
    return Work(llm, "llm", regular)


def test_one_engine_of_as_many_slots_as_the_load_needs() -> None:
    # rate 0.9, W = 7.0, load 1: B = 6.3 (1 + 0.03 (B - 1)) has the solution 6.111 / 0.811 = 7.5, and of the two whole
    # numbers beside it, 8 = round(6.3 × 1.21 = 7.6) is a fixed point, as 7 = round(6.3 × 1.18 = 7.4) is: the smaller
    sizing = size(work(7.0, cpu=2.9), 0.9, 1.0, GENERIC_7B)
    assert sizing.engines == (7,)
    assert sizing.rate == pytest.approx(7 / (7.0 * 1.18))
    assert sizing.workers == {"cpu": 3}  # 0.847 × 2.9 / 0.85 = 2.9


@pytest.mark.parametrize("load", [0.7, 0.85, 1.0, 1.2])
@pytest.mark.parametrize("seconds", [0.3, 2.4, 7.0, 30.0, 66.0, 200.0])
def test_the_offered_load_is_exact(load: float, seconds: float) -> None:
    sizing = size(work(seconds, cpu=2.0), 0.9, load, GENERIC_7B)
    slots = sizing.engines[0]
    assert sizing.rate is not None
    assert sizing.rate * seconds * (1 + 0.03 * (slots - 1)) / sum(sizing.engines) == pytest.approx(load)
    assert sizing.workers["cpu"] == max(1, -(-sizing.rate * 2.0 // (0.85 * load)))
    if sizing.engines != (slots,):
        assert set(sizing.engines) == {16}
    elif slots > 2:
        assert round(0.9 * seconds * (1 + 0.03 * (slots - 1)) / load) == slots


def test_a_load_beyond_64_slots_gets_engines_of_16() -> None:
    # rate 0.9, W = 66: 59.4 × 1.45 / 16 = 5.4 engines
    sizing = size(work(66.0), 0.9, 1.0, GENERIC_7B)
    assert sizing.engines == (16,) * 5
    assert sizing.rate == pytest.approx(5 * 16 / (66.0 * 1.45))
    assert str(sizing) == "5 engines of 16 slots, no workers, 0.836 jobs/s, offered load 1"


def test_a_flat_curve_needs_no_fixed_point() -> None:
    flat = LatencyCurve("flat", 8000.0, ((1, 0.01),))
    assert size(work(70.0), 0.9, 1.0, flat).engines == (63,)
    assert size(work(72.0), 0.9, 1.0, flat).engines == (16,) * 4


def test_a_tiny_load_still_gets_two_slots() -> None:
    sizing = size(work(0.1), 0.9, 1.0, GENERIC_7B)
    assert sizing.engines == (2,)
    assert sizing.rate == pytest.approx(2 / (0.1 * 1.03))


def test_given_machines_say_what_they_are_offered() -> None:
    sizing = fixed(work(7.0, cpu=1.0, gpu=1.0), 0.9, GENERIC_7B, engines=2, slots=8, workers=3)
    assert sizing == Sizing((8, 8), {"cpu": 3, "gpu": 3}, 0.9, pytest.approx(0.9 * 7.0 * 1.21 / 16))
    recorded = fixed(work(7.0, cpu=1.0), None, GENERIC_7B)
    assert recorded.load is None
    assert "recorded arrivals" in str(recorded)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((work(7.0), 0.9, 0.0), "load is 0"),
        ((work(7.0), 0.0, 1.0), "rate is 0"),
        ((work(0.0), 0.9, 1.0), "no LLM work"),
    ],
)
def test_impossible_loads_are_refused(arguments: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        size(*arguments, GENERIC_7B)


def test_the_work_of_a_job_is_the_mean_over_applications() -> None:
    workload = Workload.load("chain")
    found = Work.of(workload, APPLICATIONS, GENERIC_7B)
    expected = workload.reference_seconds(GENERIC_7B)
    assert found.llm == pytest.approx(expected["llm"])
    assert found.regular == pytest.approx({"cpu": expected["regular"]})


def test_an_application_that_is_not_installed_is_named() -> None:
    with pytest.raises(UnknownName, match="unknown application 'chat'"):
        Work.of(Workload("chat", ("chat",), {"chat": []}), APPLICATIONS, GENERIC_7B)


# ------------------------------------------------------------------------------------------------------ policies


def test_policies_take_options() -> None:
    assert parse_policies("fcfs, sjf") == (Choice("fcfs", "fcfs"), Choice("sjf", "sjf"))


def test_values_are_read_as_what_they_look_like() -> None:
    read = [experiment._value(text) for text in ("3", "0.5", "true", "False", "1e-3", "q05_q95")]
    assert read == [3, 0.5, True, False, 0.001, "q05_q95"]
    assert [type(value) for value in read] == [int, float, bool, bool, float, str]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("fcsf", "unknown policy 'fcsf'; did you mean 'fcfs'?"),
        ("fcfs,,sjf", "unknown policy ''"),
        ("fcfs,sjf,fcfs", "policy 'fcfs' is listed twice"),
        ("sjf:mean=1", "unknown option of policy 'sjf' 'mean'"),
        ("sjf:means", "'means' is no option; write option=value"),
        ("fcfs:knowledge=1", "unknown option of policy 'fcfs' 'knowledge'"),
    ],
)
def test_policies_that_do_not_exist_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(InvalidInput) as error:
        parse_policies(text)
    assert sentence in str(error.value)


def test_a_bad_value_of_an_option_is_one_sentence() -> None:
    broken = Choice("sjf:means=3", "sjf", {"means": 3})
    with pytest.raises(InvalidInput, match=r"^policy 'sjf:means=3' cannot be made: "):
        a_comparison(policies=(broken,)).check()


# -------------------------------------------------------------------------------------------- what is learned from


def recording(application: str, id: str, *, tokens: int = 50) -> Recording:
    return Recording(application, id, (RecordedStage("s", StageKind.LLM, (), (RecordedTask(10, tokens),)),))


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """200 queries of each of two applications, three runs of each query."""
    for name in ("code_generation", "web_search"):
        jobs = [recording(name, f"q{k}#{run}") for k in range(200) for run in range(3)]
        write_trace(tmp_path / f"{name}.jsonl.gz", jobs)
    return tmp_path


def test_queries_are_split_and_never_on_both_sides(traces: Path) -> None:
    source = prepare("chain", traces, None)
    assert source.workload.traces is not None
    for name in ("code_generation", "web_search"):
        run = {job.job_id.split("#")[0] for job in source.workload.traces[name]}
        learned = {job.job_id.split("#")[0] for job in source.training[name]}
        assert not run & learned
        assert len(run) + len(learned) == 200
        assert len(run) == pytest.approx(60, abs=4 * (200 * 0.3 * 0.7) ** 0.5)  # four standard deviations
        assert len(source.workload.traces[name]) == 3 * len(run)
    assert source.overlap == 0


def test_the_split_is_this_one() -> None:
    """Written down, so that nobody changes it by accident: published figures depend on it."""
    assert [k for k in range(20) if is_held_out("web_search", f"q{k}#1")] == [2, 15, 17, 19]
    assert is_held_out("web_search", "q1#7") == is_held_out("web_search", "q1#8")


def test_with_a_training_folder_every_job_runs(traces: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_trace(other / "web_search.jsonl", [recording("web_search", f"q{k}#9") for k in range(190, 240)])
    source = prepare("web_search", traces, other)
    assert source.workload.traces is not None
    assert len(source.workload.traces["web_search"]) == 600
    assert len(source.training["web_search"]) == 50
    assert source.overlap == pytest.approx(10 / 200)


def test_generated_jobs_are_learned_from_other_generated_jobs() -> None:
    source = prepare("web_search", None, None)
    assert source.workload.traces is None
    assert len(source.training["web_search"]) == 1000
    run = [arrival.recording for arrival in source.workload.arrivals(50, 1.0, 0)]
    assert not any(job in source.training["web_search"] for job in run)
    assert prepare("web_search", None, None).training == source.training
    assert prepare("web_search", None, None, learns=False).training == {}


def test_too_few_queries_to_hold_any_out_are_refused(tmp_path: Path) -> None:
    write_trace(tmp_path / "web_search.jsonl", [recording("web_search", "q1#1")])
    with pytest.raises(InvalidInput, match="none of the 1 traced jobs of 'web_search' falls into the part"):
        prepare("web_search", tmp_path, None)


# ---------------------------------------------------------------------------------------------------------- runs


def a_comparison(**changes: Any) -> Comparison:
    sizings = (Sizing((3,), {"cpu": 2}, 0.9, 1.0), Sizing((2,), {"cpu": 2}, 0.9, 1.2))
    defaults: Mapping[str, Any] = {
        "workload": Workload.load("planning"),
        "policies": parse_policies("fcfs,sjf"),
        "sizings": sizings,
        "seeds": (3, 4),
        "jobs": 12,
        "applications": APPLICATIONS,
        "curve": GENERIC_7B,
    }
    return Comparison(**(defaults | changes))


def figures(runs: list[SimulatedRun]) -> list[Any]:
    """Everything but what a clock measured."""
    return [(r.policy, r.load, r.seed, r.jobs, r.makespan, r.decisions, r.utilisation) for r in runs]


def test_every_policy_gets_the_same_jobs_at_the_same_moments() -> None:
    runs = compare(a_comparison(gantt=12), parallel=1)
    assert [(r.load, r.policy, r.seed) for r in runs] == [
        (load, policy, seed) for load in (1.0, 1.2) for policy in ("fcfs", "sjf") for seed in (3, 4)
    ]
    assert [a for a, _ in runs[0].jobs] == [a for a, _ in runs[2].jobs]
    assert [arrived for arrived, _ in runs[0].lives] == [arrived for arrived, _ in runs[2].lives]
    assert runs[0].spans
    assert not runs[1].spans  # the first seed is shown


def test_the_first_policy_compared_does_not_change_the_second() -> None:
    alone = compare(a_comparison(policies=parse_policies("sjf")), parallel=1)
    both = compare(a_comparison(), parallel=1)
    assert figures(alone) == figures([run for run in both if run.policy == "sjf"])


def test_progress_counts_jobs() -> None:
    told: list[int] = []
    compare(a_comparison(), parallel=1, progress=told.append)
    assert told == list(range(1, 2 * 2 * 2 * 12 + 1))


def test_losses_are_the_same_for_every_policy_and_other_for_every_seed() -> None:
    comparison = a_comparison(losses=True)
    sizing = comparison.sizings[0]
    assert comparison.setup(sizing, 3, 100.0) == comparison.setup(sizing, 3, 100.0)
    assert comparison.setup(sizing, 3, 100.0).losses != comparison.setup(sizing, 4, 100.0).losses
    gaps = [loss.at for loss in experiment._losses(0, 1, 1e6)]
    assert len(gaps) == pytest.approx(1e6 / 330, rel=0.1)


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    few = {a: jobs[:40] for a, jobs in prepare("web_search", None, None).training.items()}
    return experiment.learn(few, APPLICATIONS, GENERIC_7B)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_runs(name: str, knowledge: Knowledge) -> None:
    comparison = a_comparison(
        workload=Workload.load("web_search"),
        policies=(Choice.parse(name),),
        knowledge=knowledge,
        sizings=a_comparison().sizings[:1],
        seeds=(0,),
    )
    first, again = compare(comparison, parallel=1), compare(comparison, parallel=1)
    assert figures(first) == figures(again)
    assert first[0].to_json()["failed"] == 0


# ------------------------------------------------------------------------------------------------------ pictures


def test_pictures_of_every_kind(tmp_path: Path) -> None:
    runs = compare(a_comparison(gantt=5), parallel=1)
    document = to_json({"workload": "planning", "jobs": 12, "seeds": 2}, runs)
    paths = plots.draw(document, runs, tmp_path / "new")
    assert [path.name for path in paths] == ["jct.png", "completion_times.png", "load.png", "gantt.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_pictures_of_jobs_that_all_failed(tmp_path: Path) -> None:
    runs = [a_run("fcfs", 0, None), a_run("sjf", 0, 2.0)]
    document = to_json({"workload": "planning", "jobs": 1, "seeds": 1}, runs)
    assert [path.name for path in plots.draw(document, runs, tmp_path)] == ["jct.png", "completion_times.png"]


def test_colours_are_as_many_as_policies() -> None:
    names = [f"p{k}" for k in range(12)]
    assert len(set(plots.colours([*names, "oracle-srtf", "oracle-pool"]).values())) == 14
    assert len(plots.colours([f"p{k}" for k in range(30)])) == 30

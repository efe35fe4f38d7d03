"""Recorded jobs under other policies: what is kept, what is decided anew, and at what speed."""

from __future__ import annotations

import pytest

from llmsched.catalogue import installed_applications
from llmsched.cli.whatif import duration
from llmsched.errors import InvalidInput
from llmsched.model.application import Application
from llmsched.model.events import JobClass
from llmsched.model.kinds import StageKind
from llmsched.model.latency import LatencyCurve
from llmsched.model.recording import RecordedStage, RecordedTask, Recording
from llmsched.profiler import Knowledge
from llmsched.simulator.experiment import Choice, parse_policies
from llmsched.simulator.whatif import Machines, Past, answer, calibrated, run, scaled
from llmsched.workloads import Arrival, build_workload

#: A token takes 10 ms however many are decoded beside it.
FLAT = LatencyCurve("flat", 1e9, ((1, 0.01),))
ONE = Application.parse({"name": "one", "stages": [{"name": "say", "kind": "llm"}]})


def job(tokens: int) -> Recording:
    return Recording("one", f"{tokens}#1", (RecordedStage("say", StageKind.LLM, (), (RecordedTask(0, tokens),)),))


def past(*arrivals: Arrival, llm_seconds: float | None = None) -> Past:
    return Past(arrivals, tuple(1.0 for _ in arrivals), {"one": ONE}, Knowledge(), llm_seconds)


def test_jobs_arrive_when_they_did_and_only_their_order_is_new() -> None:
    """One slot; a long job runs, then a long and a short one wait: 10 s + 10 s + 1 s, or the short one first."""
    jobs = past(Arrival(0.0, job(1000)), Arrival(1.0, job(1000)), Arrival(2.0, job(100)))
    machines = Machines((1,), {}, FLAT)
    times = {name: run(jobs, machines, Choice.parse(name))[0].completion_times for name in ("fcfs", "oracle-pool")}

    assert times["fcfs"] == pytest.approx([10.0, 19.0, 19.0])
    assert times["oracle-pool"] == pytest.approx([10.0, 20.0, 9.0])


def test_classes_are_what_they_were() -> None:
    jobs = past(
        Arrival(0.0, job(100)), Arrival(0.1, job(100), JobClass.BATCH), Arrival(0.2, job(100), JobClass.INTERACTIVE)
    )
    times, _ = run(jobs, Machines((1,), {}, FLAT), Choice.parse("fcfs"))

    assert times.completion_times == pytest.approx([1.0, 2.9, 1.8])


def test_the_bound_of_the_service_holds_for_every_policy() -> None:
    """The long job would wait for ever longer behind short ones; after 3 s it goes first."""
    jobs = past(Arrival(0.0, job(100)), Arrival(0.1, job(300)), *(Arrival(0.2 + k, job(100)) for k in range(6)))
    bound = Machines((1,), {}, FLAT, options={"max_wait": 3.0, "tenants": {}})
    free, _ = run(jobs, Machines((1,), {}, FLAT), Choice.parse("oracle-pool"))
    held, _ = run(jobs, bound, Choice.parse("oracle-pool"))

    assert free.completion_times[1] > held.completion_times[1]


def test_engines_are_as_fast_as_calls_were_recorded_to_be() -> None:
    """100 tokens took 3 s each, which is three times what the curve says."""
    jobs = past(*(Arrival(5.0 * k, job(100)) for k in range(20)), llm_seconds=3.0)
    machines, said = calibrated(jobs, Machines((4,), {}, FLAT), Choice.parse("fcfs"))

    assert machines.curve.decode(1) == pytest.approx(0.03, rel=0.03)
    assert "3.00 times as long" in said
    assert scaled(FLAT, 2.0).reference(0, 100) == pytest.approx(2.0)


def test_nobody_measured_calls_so_the_curve_is_taken_as_it_is() -> None:
    machines = Machines((4,), {}, FLAT)

    assert calibrated(past(Arrival(0.0, job(10))), machines, Choice.parse("fcfs"))[0] is machines


def test_the_answer_tells_what_was_what_would_have_been_and_what_is_assumed() -> None:
    arrivals = build_workload("chain", jobs=40, rate=3.0, seed=1)
    jobs = Past(tuple(arrivals), (5.0,) * 40, installed_applications(), Knowledge(), 0.5, ("a note",))
    told: list[int] = []
    document = answer(jobs, Machines((4,), {"cpu": 2}, FLAT), parse_policies("fcfs,sjf"), progress=told.append)

    assert [run["policy"] for run in document["runs"]] == ["fcfs", "sjf"]
    assert document["recorded"]["mean_jct"] == 5.0
    assert {"fcfs"} == set(document["summary"][1]["vs"])
    assert set(document["lines"]) == {"recorded", "fcfs", "sjf"}
    assert document["lines"]["sjf"][-1][1] == 1.0
    assert document["settings"]["jobs"] == 40
    assert document["assumptions"][0] == "machines: 1 engine of 4 slots, 2 cpu workers, there all the time"
    assert document["assumptions"][-1] == "a note"
    assert told == list(range(1, 81))


def test_nothing_to_simulate_is_said_with_the_way_out() -> None:
    with pytest.raises(InvalidInput, match="ask for a longer one"):
        answer(past(), Machines((1,), {}, FLAT), parse_policies("fcfs"))


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "0h", "1w"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--last"):
        duration(text)

"""Workloads: which jobs arrive when."""

from collections import Counter
from pathlib import Path

import pytest

from llmsched.errors import InvalidInput, InvalidRecording, UnknownName
from llmsched.model.kinds import StageKind
from llmsched.model.latency import GENERIC_7B
from llmsched.model.recording import RecordedStage, RecordedTask, Recording
from llmsched.workloads import APPLICATIONS, WORKLOADS, Arrival, Workload, build_workload, write_trace


def job(application: str, number: int) -> Recording:
    stage = RecordedStage("ask", StageKind.LLM, (), (RecordedTask(80, 100 * number),))
    return Recording(application, f"{application}-{number}#a", (stage,))


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """Three jobs each of two applications, one of them nobody published."""
    for application in ("web_search", "own"):
        write_trace(tmp_path / f"{application}.jsonl.gz", [job(application, n) for n in (1, 2, 3)])
    return tmp_path


def ids(arrivals: list[Arrival], application: str | None = None) -> list[str]:
    jobs = [arrival.recording for arrival in arrivals]
    return [j.job_id for j in jobs if application in (None, j.application)]


def test_the_published_workloads() -> None:
    assert WORKLOADS["mixed"] == APPLICATIONS
    assert WORKLOADS["mixed-nodoc"] == tuple(a for a in APPLICATIONS if a != "document_merging")
    assert {name: len(apps) for name, apps in WORKLOADS.items()} == {
        "mixed": 6,
        "predefined": 2,
        "chain": 2,
        "planning": 2,
        "mixed-nodoc": 5,
    }


def test_the_same_seed_gives_the_same_workload() -> None:
    first = build_workload("mixed", jobs=30, rate=0.9, seed=4)
    assert build_workload("mixed", jobs=30, rate=0.9, seed=4) == first
    assert build_workload("mixed", jobs=30, rate=0.9, seed=5) != first


def test_another_rate_moves_the_arrivals_and_keeps_the_jobs() -> None:
    slow = build_workload("mixed", jobs=30, rate=0.5, seed=4)
    fast = build_workload("mixed", jobs=30, rate=2.0, seed=4)
    assert [a.recording for a in slow] == [a.recording for a in fast]
    assert [a.at / 4 for a in slow] == pytest.approx([a.at for a in fast])


def test_another_process_keeps_the_jobs() -> None:
    smooth = build_workload("chain", jobs=20, rate=1.0, seed=4)
    bursty = build_workload("chain", jobs=20, rate=1.0, seed=4, arrivals="gamma:6")
    assert ids(smooth) == ids(bursty)
    assert [a.at for a in smooth] != [a.at for a in bursty]


def test_more_jobs_continue_the_same_workload() -> None:
    assert build_workload("mixed", 40, 0.9, 1)[:25] == build_workload("mixed", 25, 0.9, 1)


def test_an_application_has_the_same_jobs_in_every_workload() -> None:
    alone = ids(build_workload("web_search", jobs=50, rate=1.0, seed=2))
    mixed = ids(build_workload("mixed", jobs=50, rate=1.0, seed=2), "web_search")
    assert mixed == alone[: len(mixed)]


def test_applications_are_drawn_uniformly() -> None:
    counts = Counter(a.recording.application for a in build_workload("planning", jobs=1000, rate=1.0, seed=1))
    # Binomial, n = 1000, p = 1/2: sigma 15.8, here within four of them.
    assert set(counts) == set(WORKLOADS["planning"])
    assert abs(counts["llm_compiler"] - 500) < 64


def test_a_comma_list_names_applications_and_workloads_once_each() -> None:
    assert Workload.load("web_search, llm_compiler").applications == ("web_search", "llm_compiler")
    assert Workload.load("planning,llm_compiler").applications == ("task_automation", "llm_compiler")


@pytest.mark.parametrize("name", ["mixd", "", "web_search,", "web_search,nothing"])
def test_an_unknown_workload_names_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownName, match=r"unknown workload or application .*known: mixed, predefined, chain"):
        build_workload(name, jobs=1, rate=1.0, seed=0)


def test_traces_are_used_up_before_a_job_comes_again(traces: Path) -> None:
    arrivals = build_workload("own", jobs=7, rate=1.0, seed=3, traces=traces)
    drawn = ids(arrivals)
    assert sorted(drawn[:3]) == sorted(drawn[3:6]) == ["own-1#a", "own-2#a", "own-3#a"]
    assert drawn[6] in drawn[:3]


def test_traces_are_read_once_for_many_seeds(traces: Path) -> None:
    workload = Workload.load("web_search,own", traces)
    for path in traces.iterdir():
        path.unlink()
    orders = {tuple(ids(workload.arrivals(6, 1.0, seed))) for seed in range(5)}
    assert len(orders) == 5


def test_a_workload_needs_a_trace_of_each_application(traces: Path) -> None:
    with pytest.raises(UnknownName, match=r"no trace of 'code_generation' in .*; it has traces of: own, web_search"):
        build_workload("chain", jobs=1, rate=1.0, seed=0, traces=traces)
    with pytest.raises(UnknownName, match="unknown workload or application 'llm_compiler'"):
        build_workload("llm_compiler", jobs=1, rate=1.0, seed=0, traces=traces)
    (traces / "own.jsonl.gz").write_bytes(b"")
    with pytest.raises(InvalidRecording, match=r"own\.jsonl\.gz is empty"):
        build_workload("own", jobs=1, rate=1.0, seed=0, traces=traces)


def test_recorded_arrivals_keep_their_own_rate_or_take_another(traces: Path) -> None:
    times = [10.0, 10.0, 14.0]
    own = build_workload("own", 3, None, 0, traces, arrivals=times)
    assert [a.at for a in own] == [0.0, 0.0, 4.0]
    taken = build_workload("own", 3, 2.0, 0, traces, arrivals=times)
    assert [a.at for a in taken] == [0.0, 0.0, 1.0]


def test_mean_reference_work_is_that_of_the_traces(traces: Path) -> None:
    # 80 prompt tokens are 0.01 s; 100, 200 and 300 output tokens are 2 s in the mean.
    work = Workload.load("own,web_search", traces).reference_seconds(GENERIC_7B)
    assert work == pytest.approx({"llm": 2.01, "regular": 0.0})


def test_mean_reference_work_of_the_generator_is_near_that_of_its_jobs() -> None:
    workload = Workload.load("chain")
    jobs = [a.recording.reference_seconds(GENERIC_7B)["llm"] for a in workload.arrivals(1000, 1.0, seed=9)]
    # The standard deviation of a job is about its mean: 1000 of either leave 4.5 % of noise (one sigma).
    assert workload.reference_seconds(GENERIC_7B)["llm"] == pytest.approx(sum(jobs) / 1000, rel=0.15)


@pytest.mark.parametrize("seed", [1.5, "x", None])
def test_a_seed_is_a_whole_number(seed: object) -> None:
    with pytest.raises(InvalidInput, match="it must be a whole number"):
        build_workload("chain", 1, 1.0, seed)  # type: ignore[arg-type]


def test_no_jobs_are_no_arrivals() -> None:
    assert build_workload("mixed", jobs=0, rate=1.0, seed=0) == []

"""The testbed: what it makes of jobs and times, and what its page says of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llmsched.model.kinds import StageKind
from llmsched.model.latency import GENERIC_7B, LatencyCurve
from llmsched.model.recording import RecordedStage, RecordedTask, Recording
from llmsched.simulator.experiment import Work

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("bed", "results", "page", "engine")


@pytest.fixture
def testbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules by name, as they find each other when one is run as a script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "testbed"))
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in (*MODULES, "marks"):
        del sys.modules[name]


def a_run(times: list[float | None], simulated: list[float | None]) -> dict[str, Any]:
    return {
        "times": times,
        "simulated": simulated,
        "with_overhead": simulated,
        "decisions": 10,
        "decision_ms": {"mean": 0.25, "p50": 0.2, "p99": 1.5},
        "makespan": 30.0,
        "busy": {"llm": 0.5},
        "send_lag_ms": {"p50": 1.0, "max": 4.0},
        "call_ms": 3.0,
        "overhead": 0.0065,
        "loop_lag_p99_ms": 5.0,
        "at": "2026-01-01 00:00",
        "load_before": 0.5,
    }


def a_bed(testbed: dict[str, ModuleType], engine: str = "emulated", load: float = 1.0, **runs: Any) -> Any:
    results = testbed["results"]
    about = {
        "jobs": 3,
        "machines": "1 engine of 4 slots",
        "speed": 2.0,
    }
    return results.Found(results.Key(engine, "chain", load), about, runs)


def test_errors_are_per_job_and_of_the_mean(testbed: dict[str, ModuleType]) -> None:
    measured, simulated = np.array([1.0, 2.0, 4.0, np.nan]), np.array([1.1, 2.0, 3.0, 9.0])

    # jobs are off by 10, 0 and 25 %: mean 11.67, median 10, 95th percentile 10 + 0.9 × 15; means 6.1/3 and 7/3
    assert testbed["results"].error(measured, simulated) == (0.8714, 11.67, 10.0, 23.5)


def test_reduction_is_positive_where_the_policy_is_faster(testbed: dict[str, ModuleType]) -> None:
    found = a_bed(testbed, fcfs=a_run([4.0, 8.0, 12.0], [0, 0, 0]), sjf=a_run([3.0, 6.0, 9.0], [0, 0, 0]))

    assert found.reduction("sjf", "fcfs") == pytest.approx((25.0, 25.0, 25.0))
    assert found.reduction("fcfs", "sjf")[0] == pytest.approx(-100 / 3)


def test_policies_that_change_places_are_found_and_whether_that_is_beyond_doubt(
    testbed: dict[str, ModuleType],
) -> None:
    found = a_bed(
        testbed,
        fcfs=a_run([4.0, 8.0, 12.0], [4.0, 8.0, 12.0]),
        sjf=a_run([3.0, 6.0, 9.0], [5.0, 9.0, 13.0]),
        las=a_run([1.0, 8.0, 16.0], [3.9, 8.0, 12.0]),
    )

    assert found.order() == ["sjf", "fcfs", "las"]
    assert found.order("simulated") == ["las", "fcfs", "sjf"]
    assert found.flips() == [("sjf", "fcfs", True), ("sjf", "las", False), ("fcfs", "las", False)]


def test_overhead_is_that_of_a_call_and_a_decision_in_seconds_of_the_jobs(testbed: dict[str, ModuleType]) -> None:
    slow = a_run([1.0], [1.0]) | {"call_ms": 5.0, "decision_ms": {"mean": 1.0}}
    found = a_bed(testbed, fcfs=a_run([1.0], [1.0]), las=slow)

    # calls 3 and 5 ms longer, mean 4; decisions of 0.25 and 1 ms; two emulated seconds a second
    assert [testbed["results"].overhead(found, policy) for policy in ("fcfs", "las")] == [0.0085, 0.01]


def test_results_are_read_as_they_were_written(testbed: dict[str, ModuleType], tmp_path: Path) -> None:
    results = testbed["results"]
    found = a_bed(testbed, fcfs=a_run([1.0, None], [1.5, 2.0]))

    results.write({found.key: found}, tmp_path / "new" / "testbed.json")

    assert results.read(tmp_path / "new" / "testbed.json") == {found.key: found}
    assert results.read(tmp_path / "none.json") == {}


def test_goals_that_are_missed_are_named(testbed: dict[str, ModuleType]) -> None:
    page = testbed["page"]
    good = a_bed(testbed, load=0.7, fcfs=a_run([10.0, 20.0], [10.2, 20.2]))
    bad = a_bed(testbed, load=0.7, fcfs=a_run([10.0, 20.0], [12.0, 22.0]))
    chaotic = a_bed(testbed, load=1.0, fcfs=a_run([10.0, 20.0], [15.0, 15.0]))

    assert page.missed(good) == []
    assert page.missed(bad) == ["mean of `fcfs` off by +13.3 % (goal 3 %)", "MAPE of `fcfs` is 15.0 % (goal 10 %)"]
    assert page.missed(chaotic) == []  # above load 0.7 the MAPE has no goal


def test_page_goes_between_its_marks(testbed: dict[str, ModuleType], tmp_path: Path) -> None:
    page = testbed["page"]
    runs = {p: a_run([10.0, 20.0, 33.0], [10.1, 20.1, 33.1]) for p in ("fcfs", "sjf", "fair", "llmsched-pool")}
    runs["llmsched"] = a_run([5.0, 10.0, 20.0], [5.0, 10.0, 20.0])
    found = a_bed(testbed, **runs)
    path = tmp_path / "testbed.md"
    path.write_text(f"# Before\n{page.BEGIN}\nstale\n{page.marks.END}\nafter\n")

    page.write({"date": "today", "commit": "abc", "machine": "one"}, {found.key: found}, path)

    text = path.read_text()
    assert text.startswith(f"# Before\n{page.BEGIN}\n\ntoday, commit abc; one.")
    assert text.endswith(f"{page.marks.END}\nafter\n")
    assert "stale" not in text
    # 35 s of 63 s; the paper's range stands beside it
    assert "| chain | 35 to 45 % | 44 to 44 % | 45 to 45 % | 0 to 0 % | 0 to 0 % |" in text
    assert "| `fcfs` | 0.25 / 1.5 (paper 0.06) |" in text
    with pytest.raises(ValueError, match="lacks"):
        page.write({"date": "today", "commit": "abc", "machine": "one"}, {found.key: found}, BENCHMARKS / "README.md")


def test_smaller_jobs_keep_their_shape(testbed: dict[str, ModuleType]) -> None:
    job = Recording(
        "chain",
        "one",
        (
            RecordedStage("a", StageKind.LLM, (), (RecordedTask(1000, 30), RecordedTask(1, 1))),
            RecordedStage("b", StageKind.REGULAR, ("a",), (RecordedTask(duration=3.0),)),
        ),
    )
    small = testbed["bed"].Scale(prompt=4, output=2, tool=3).of(job)

    assert [stage.tasks for stage in small.stages] == [
        (RecordedTask(250, 15), RecordedTask(1, 1)),
        (RecordedTask(duration=1.0),),
    ]
    assert testbed["bed"].Scale().of(job) is job


def test_one_engine_is_offered_the_load_exactly(testbed: dict[str, ModuleType]) -> None:
    sizing = testbed["bed"].one_engine(Work(2.0, "llm", {"cpu": 3.0}), 0.7, GENERIC_7B, 11)

    # l(11) / l(1) = 1.3, so that a job needs 2.6 s of a slot; 11 slots at 0.7 give 7.7 s a second
    assert sizing.rate == pytest.approx(7.7 / 2.6)
    assert (sizing.engines, sizing.load) == ((11,), 0.7)
    assert sizing.workers == {"cpu": 15}  # 2.96 × 3 s a second, at 0.85 × 0.7 of their time


def test_between_two_calibrations_lies_their_mean(testbed: dict[str, ModuleType]) -> None:
    before = LatencyCurve("a", 1000.0, ((1, 0.010), (4, 0.020)))
    after = LatencyCurve("a", 3000.0, ((1, 0.020), (4, 0.040)))
    curve = testbed["engine"].between(before, after)
    assert curve.points == ((1, pytest.approx(0.015)), (4, pytest.approx(0.030)))
    assert curve.prefill_tokens_per_s == pytest.approx(1500.0)

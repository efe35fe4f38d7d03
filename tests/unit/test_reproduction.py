"""What the scripts of the reproduction compute and write, without the runs they take minutes for."""

from __future__ import annotations

import doctest
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llmsched.model.kinds import StageKind
from llmsched.model.recording import RecordedStage, RecordedTask, Recording
from llmsched.simulator.experiment import Work

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("document", "simulations", "shapes", "figure_1", "figure_5", "figure_7", "figure_9", "figure_10", "settings")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    """The modules by name, as they find each other when one is run as a script."""
    before = list(sys.path)
    sys.path[:0] = [str(BENCHMARKS / "reproduction"), str(BENCHMARKS)]
    try:
        yield {name: importlib.import_module(name) for name in (*MODULES, "estimators")}
    finally:
        sys.path[:] = before


def found(scripts: dict[str, Any], cell: Any) -> Any:
    """A cell whose runs are made up: a policy's mean is 10 more than that of the one before, a seed's 1 more."""
    made = scripts["simulations"].Found(
        cell, {"engines": 2, "slots": 16, "workers": {"cpu": 3}, "rate": 0.9, "load": 0.85}
    )
    for k, policy in enumerate(cell.policies):
        for seed in range(cell.seeds):
            made.runs[policy, seed] = [10.0 * (k + 1) + seed, 50.0, 0.5, 0.8, 0.6]
    return made


def job(*seconds: float) -> Recording:
    """A chain of regular stages of so many seconds."""
    names = [f"s{k}" for k in range(len(seconds))]
    stages = tuple(
        RecordedStage(name, StageKind.REGULAR, tuple(names[:k][-1:]), (RecordedTask(duration=seconds[k]),))
        for k, name in enumerate(names)
    )
    return Recording("a", f"q{seconds}#1", stages)


def options(scripts: dict[str, Any], tmp_path: Path) -> Any:
    return scripts["document"].options("doc", ["--out", str(tmp_path), "--seeds", "2"])


def test_the_examples_in_docstrings_hold(scripts: dict[str, Any]) -> None:
    for module in scripts.values():
        assert isinstance(module, ModuleType)
        assert doctest.testmod(module).failed == 0, module.__name__


def test_a_section_replaces_itself_and_leaves_the_rest_of_the_page(scripts: dict[str, Any], tmp_path: Path) -> None:
    places = scripts["document"].Places.of(tmp_path)
    places.page.write_text("# Title\n\nby hand\n\n<!-- a -->\nold\n<!-- /a -->\n\nby hand, too\n")

    places.write("a", r"new \1")
    places.write("b", "appended")

    assert places.page.read_text() == (
        "# Title\n\nby hand\n\n<!-- a -->\nnew \\1\n<!-- /a -->\n\nby hand, too\n\n<!-- b -->\nappended\n<!-- /b -->\n"
    )


def test_a_reduction_is_that_of_the_paper(scripts: dict[str, Any]) -> None:
    simulations = scripts["simulations"]
    cell = simulations.Cell("paper", "chain", policies=("fcfs", "llmsched"), seeds=2)
    made = simulations.Found(cell, {})
    made.runs = {("fcfs", 0): [10.0], ("fcfs", 1): [20.0], ("llmsched", 0): [5.0], ("llmsched", 1): [10.0]}

    assert made.reduction("llmsched", "fcfs") == (50.0, [50.0, 50.0])
    assert made.change("fcfs", "llmsched") == (100.0, [100.0, 100.0])


def test_runs_come_back_from_the_results_they_were_saved_in(scripts: dict[str, Any], tmp_path: Path) -> None:
    simulations = scripts["simulations"]
    cell = simulations.Cell("paper", "chain", policies=("fcfs", "sjf"), seeds=2)
    made = found(scripts, cell)
    del made.runs["sjf", 0]  # a gap: the second seed cannot be kept without the first

    simulations.save([made], tmp_path / "reproduction-x.json")

    given = options(scripts, tmp_path)
    assert simulations.kept(given) == {(cell, "fcfs", seed): made.runs["fcfs", seed] for seed in (0, 1)}


def test_machines_stay_when_the_rate_changes(scripts: dict[str, Any]) -> None:
    simulations = scripts["simulations"]
    work = Work(7.0, "llm", {"cpu": 2.0})
    base = simulations.machines_of(simulations.Cell("paper", "chain"), work)
    faster = simulations.machines_of(simulations.Cell("paper", "chain", rate_factor=2.0, workers_factor=3.0), work)

    assert faster.engines == base.engines
    assert (faster.rate, faster.load) == (2 * base.rate, 1.7)
    assert faster.workers == {"cpu": 3 * base.workers["cpu"]}


def test_engines_of_another_size_are_offered_the_same_load(scripts: dict[str, Any]) -> None:
    simulations = scripts["simulations"]
    sizing = simulations.machines_of(simulations.Cell("paper", "mixed", slots=4), Work(80.0, "llm", {"cpu": 2.0}))

    # l(4) / l(1) = 1.09: 0.9 x 80 x 1.09 / 0.85 / 4 = 23.1 engines.
    assert sizing.engines == (4,) * 23
    assert sizing.rate * 80.0 * 1.09 / (23 * 4) == pytest.approx(0.85)


def test_stages_that_did_not_run_count_as_no_seconds(scripts: dict[str, Any]) -> None:
    shapes = scripts["shapes"]
    names, columns = shapes.durations([job(1.0), job(2.0, 3.0)])

    assert names == ["s0", "s1"]
    assert columns.tolist() == [[1.0, 0.0], [2.0, 3.0]]
    assert shapes.pearson(columns)[0, 1] == pytest.approx(1.0)


def test_figure_1_counts_jobs(scripts: dict[str, Any]) -> None:
    jobs = [job(3.0), job(1.0, 2.0, 4.0)]
    measured = scripts["figure_1"].measure({"paper": {"code_generation": jobs}})["code_generation"]["paper"]

    assert measured["seconds"]["percentiles"]["100"] == 7.0
    assert measured["stages"] == {"1": 0.5, "3": 0.5}


def test_figure_7_compares_with_every_baseline_of_the_paper(scripts: dict[str, Any], tmp_path: Path) -> None:
    given = options(scripts, tmp_path)
    founds = [found(scripts, cell) for cell in scripts["figure_7"].cells(given)]
    text = scripts["figure_7"].section(founds, given)

    # llmsched is the tenth policy, decima the sixth: 100.5 s against 60.5 s and, the first, 10.5 s.
    assert "| `llmsched` against `decima` | −66 % (" in text
    assert "| `llmsched` against `fcfs` | −857 % (" in text


def test_figures_9_and_10_and_the_settings_render(scripts: dict[str, Any], tmp_path: Path) -> None:
    given = options(scripts, tmp_path)
    nine, ten, settings = scripts["figure_9"], scripts["figure_10"], scripts["settings"]

    founds = [found(scripts, cell) for cell in nine.cells(given)]
    lines = nine.curves(founds)
    assert lines["eps"]["mixed"].xs[0] == 0.0
    assert lines["rate"]["chain"].ys == [1.0, 40.5 / 10.5, 1.0]  # it stands fourth among the policies of one cell
    assert "| ε = 0.2 | 0 % |" in nine.section(founds, lines, given)
    founds = [found(scripts, cell) for cell in ten.cells(given)]
    assert "| `llmsched-wo-bn`, *paper* | +18 % | +17 % | +20 % | +5 % |" in ten.section(founds, given)
    founds = [found(scripts, cell) for cell in settings.cells(given)]
    assert "mixed, engines of 64 slots" in settings.section(founds, given)


def test_an_estimator_that_knows_everything_has_no_error(scripts: dict[str, Any]) -> None:
    actual = np.array([1.0, 2.0, 4.0, 8.0])
    numbers = np.arange(4)
    right = scripts["estimators"].Answers(actual, np.tile(actual, (4, 1)).T, actual, numbers, numbers)
    wrong = scripts["estimators"].Answers(actual + 1.0, np.full((4, 4), np.nan), actual, numbers, numbers)

    score = right.score()
    assert (score["mae"], score["rmse"], score["tau"], score["cover90"]) == (0.0, 0.0, 1.0, 1.0)
    assert wrong.mae_by_query().tolist() == [1.0] * 4
    assert scripts["estimators"].against(right, wrong) == (-100.0, [-100.0, -100.0])

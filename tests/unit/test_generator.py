"""Generated jobs look like the recorded ones.

The numbers compared with are those of the 4,397 public jobs the generator was fitted to; with LLMSCHED_TRACES set,
the same is asked of the traces themselves.
"""

import importlib.util
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from statistics import correlation, fmean, quantiles, stdev
from typing import Any

import pytest

from llmsched.errors import UnknownName
from llmsched.model.kinds import StageKind
from llmsched.model.latency import GENERIC_7B
from llmsched.model.recording import RecordedStage, Recording
from llmsched.workloads.generator import (
    APPLICATIONS,
    Histogram,
    Quantiles,
    fitted_parameters,
    generate,
    isolated_seconds,
)
from llmsched.workloads.traces import read_traces

N = 1500

needs_traces = pytest.mark.skipif("LLMSCHED_TRACES" not in os.environ, reason="LLMSCHED_TRACES names no traces")


@cache
def drawn(application: str, parameters: str = "measured", n: int = N) -> list[Recording]:
    rng = Random(f"test {application}")
    return [generate(application, rng, parameters) for _ in range(n)]


@cache
def recorded(application: str) -> list[Recording]:
    return read_traces(Path(os.environ["LLMSCHED_TRACES"]), [application])[application]


def shape(job: Recording) -> list[tuple[str, str, list[str], int]]:
    return [(stage.name, stage.kind.value, list(stage.after), len(stage.tasks)) for stage in job.stages]


def tokens(stage: str, zero: bool = False) -> Callable[[Recording], float | None]:
    """Output tokens of a stage over its calls; where it did not run, 0 or nothing."""

    def of(job: Recording) -> float | None:
        for found in job.stages:
            if found.name == stage:
                return float(sum(task.output_tokens for task in found.tasks))
        return 0.0 if zero else None

    return of


def together(jobs: Sequence[Recording], a: str, b: str, *, zero: bool = False) -> float:
    pairs = [(tokens(a, zero)(job), tokens(b, zero)(job)) for job in jobs]
    both = [(x, y) for x, y in pairs if x is not None and y is not None]
    return correlation(*zip(*both, strict=True))


def iterations(job: Recording) -> int:
    return max(stage.iteration or 0 for stage in job.stages)


# What one job is.


@pytest.mark.parametrize("application", APPLICATIONS)
def test_the_same_seed_gives_the_same_jobs(application: str) -> None:
    first = [generate(application, rng) for rng in [Random(5)] for _ in range(20)]
    assert first == [generate(application, rng) for rng in [Random(5)] for _ in range(20)]
    assert len({job.job_id for job in first}) == 20


@pytest.mark.parametrize("parameters", ["measured", "paper"])
@pytest.mark.parametrize("application", APPLICATIONS)
def test_every_job_is_a_valid_recording(application: str, parameters: str) -> None:
    for job in drawn(application, parameters, 200):
        assert Recording.from_json(job.to_json()) == job
        assert job.application == application
        assert job.job_id.startswith(f"{application}-")
        assert job.job_id.endswith("#generated")


@pytest.mark.parametrize("application", APPLICATIONS)
def test_applications_without_paper_numbers_are_as_measured(application: str) -> None:
    same = generate(application, Random(1), "paper") == generate(application, Random(1))
    assert same == (application not in {"sequence_sorting", "code_generation", "task_automation"})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownName, match=r"unknown application .* 'sorting'; .*known: sequence_sorting"):
        generate("sorting", Random(1))
    with pytest.raises(UnknownName, match="unknown parameters 'papers'; did you mean 'paper'"):
        generate("web_search", Random(1), "papers")


def test_sorting_has_the_stages_of_the_published_graph() -> None:
    job = next(j for j in drawn("sequence_sorting") if "5/5/10/10" in str(j.features["variant"]))
    assert shape(job) == [
        ("split", "llm", [], 1),
        ("select_1", "regular", ["split"], 1),
        ("select_2", "regular", ["split"], 1),
        ("sort_1", "llm", ["select_1"], 5),
        ("sort_2", "llm", ["select_2"], 5),
        ("score_1", "regular", ["sort_1"], 1),
        ("score_2", "regular", ["sort_2"], 1),
        ("keep_best_1", "regular", ["score_1"], 1),
        ("keep_best_2", "regular", ["score_2"], 1),
        ("merge", "llm", ["keep_best_1", "keep_best_2"], 10),
        ("score_m", "regular", ["merge"], 1),
        ("keep_best_m", "regular", ["score_m"], 1),
        ("improve", "llm", ["keep_best_m"], 10),
        ("score_i", "regular", ["improve"], 1),
        ("keep_best_i", "regular", ["score_i"], 1),
    ]
    assert set(job.features) == {"variant", "length"}


def test_document_merging_has_the_stages_of_the_published_graph() -> None:
    (only,) = {repr(shape(job)) for job in drawn("document_merging")}
    assert only == repr(
        [
            ("generate", "llm", [], 5),
            ("score_1", "llm", ["generate"], 15),
            ("keep_best_1", "regular", ["score_1"], 1),
            ("aggregate", "llm", ["keep_best_1"], 5),
            ("score_2", "llm", ["aggregate"], 15),
            ("keep_best_2", "regular", ["score_2"], 1),
            ("improve", "llm", ["keep_best_2"], 10),
            ("score_3", "llm", ["improve"], 30),
            ("keep_best_3", "regular", ["score_3"], 1),
        ]
    )
    assert set(drawn("document_merging")[0].features) == {"variant", "doc_tokens"}


def test_code_generation_reflects_and_tries_again() -> None:
    job = next(j for j in drawn("code_generation") if iterations(j) == 1)
    assert shape(job) == [
        ("test_gen", "llm", [], 1),
        ("code_gen_0", "llm", ["test_gen"], 1),
        ("code_exec_0", "regular", ["code_gen_0"], 1),
        ("reflect_1", "llm", ["code_exec_0"], 1),
        ("code_gen_1", "llm", ["reflect_1"], 1),
        ("code_exec_1", "regular", ["code_gen_1"], 1),
    ]
    assert {3, 6, 15} <= {len(j.stages) for j in drawn("code_generation")} <= {3, 6, 9, 12, 15}


def test_web_search_ends_with_an_answer_or_with_its_last_tool() -> None:
    job = next(j for j in drawn("web_search") if iterations(j) == 2)
    assert shape(job) == [
        ("thought_1", "llm", [], 1),
        ("action_1", "llm", ["thought_1"], 1),
        ("tool_1", "regular", ["action_1"], 1),
        ("thought_2", "llm", ["tool_1"], 1),
        ("action_2", "llm", ["thought_2"], 1),
    ]
    assert {j.stages[-1].name for j in drawn("web_search")} == {*(f"action_{i}" for i in range(2, 7)), "tool_6"}


def test_task_automation_runs_the_tools_of_its_plan() -> None:
    job = next(j for j in drawn("task_automation") if len(j.stages) == 4 and j.stages[3].after != ("plan",))
    plan, tools, first, second = job.stages
    assert (plan.name, tools.kind, tools.after) == ("plan", StageKind.DYNAMIC, ("plan",))
    assert tools.candidates == job.features["variant"]
    assert first.name == "tool_0_" + "".join(c if c.isalnum() else "_" for c in str(first.tasks[0].tool).lower())
    assert (first.after, second.after) == (("plan",), (first.name,))
    assert first.parent == second.parent == "tools"


def test_llm_compiler_joins_all_that_was_planned() -> None:
    job = next(j for j in drawn("llm_compiler") if len(j.stages) == 9)
    assert [(stage.name, stage.after) for stage in job.stages] == [
        ("plan", ()),
        ("tasks", ("plan",)),
        ("search_1", ("plan",)),
        ("search_2", ("plan",)),
        ("search_3", ("plan",)),
        ("math_1", ("search_1",)),
        ("math_2", ("search_2",)),
        ("math_3", ("search_3",)),
        ("join", ("search_1", "search_2", "search_3", "math_1", "math_2", "math_3")),
    ]


# Many jobs against the published numbers.

#: Mean prompt tokens, output tokens and regular seconds of a job; 50th and 95th percentile of its output tokens.
PUBLISHED = {
    "sequence_sorting": (17777.6, 1876.3, 0.0886, 1343, 4490),
    "document_merging": (235500.7, 34414.0, 0.03, 34375, 41453),
    "code_generation": (3532.5, 535.8, 0.2262, 324, 1384),
    "web_search": (18116.5, 166.9, 2.7332, 152, 316),
    "task_automation": (2443.2, 259.3, 9.3198, 238, 450),
    "llm_compiler": (2696.7, 179.1, 2.3396, 104, 447),
}


def assert_near(values: Sequence[float], expected: float) -> None:
    """The mean is `expected` but for four standard errors, and 3 % for steps of tables and sums of prompts."""
    assert abs(fmean(values) - expected) <= 0.03 * expected + 4 * stdev(values) / math.sqrt(len(values))


@pytest.mark.parametrize("application", APPLICATIONS)
def test_the_work_of_a_job_is_as_published(application: str) -> None:
    prompt, output, seconds, _, _ = PUBLISHED[application]
    jobs = drawn(application)
    assert_near([job.prompt_tokens for job in jobs], prompt)
    assert_near([job.output_tokens for job in jobs], output)
    assert_near([job.regular_seconds for job in jobs], seconds)


@pytest.mark.parametrize("application", APPLICATIONS)
def test_the_spread_of_a_job_is_as_published(application: str) -> None:
    *_, p50, p95 = PUBLISHED[application]
    steps = quantiles((job.output_tokens for job in drawn(application)), n=20)
    # Sampling moves a median of 1,500 by 3 % and the 95th percentile by 4 %; sorting has a gap of 10 % at its median.
    assert steps[9] == pytest.approx(p50, rel=0.10)
    assert steps[18] == pytest.approx(p95, rel=0.12)


@pytest.mark.parametrize(
    ("application", "shares"),
    [
        # code_generation counts attempts from 0, web_search steps from 1
        ("code_generation", {0: 0.603, 1: 0.086, 2: 0.002, 3: 0.009, 4: 0.299}),
        ("web_search", {2: 0.071, 3: 0.440, 4: 0.219, 5: 0.105, 6: 0.165}),
    ],
)
def test_loops_are_as_long_as_published(application: str, shares: dict[int, float]) -> None:
    counts = Counter(map(iterations, drawn(application)))
    assert set(counts) <= set(shares)
    for length, share in shares.items():
        # four standard errors of a share of 1,500, and half a unit of the last printed digit
        assert abs(counts[length] / N - share) < 4 * math.sqrt(share * (1 - share) / N) + 0.0005


def test_plans_are_as_long_as_published() -> None:
    published = {1: 0.007, 2: 0.141, 3: 0.352, 4: 0.260, 5: 0.137, 6: 0.053, 7: 0.034, 8: 0.009}
    counts = Counter(len(job.stages) - 2 for job in drawn("task_automation"))
    for n, share in published.items():
        assert abs(counts[n] / N - share) < 4 * math.sqrt(share * (1 - share) / N) + 0.0005
    chains = sum(
        all(len(s.after) == 1 for s in job.stages[2:]) and len({s.after for s in job.stages[2:]}) == len(job.stages) - 2
        for job in drawn("task_automation")
    )
    # 83.6 % are chains in the planner's order, another 2 % chains in some other
    assert 0.80 < chains / N < 0.90


def test_lengths_of_one_job_go_together_as_published() -> None:
    code = drawn("code_generation")
    assert together(code, "code_gen_1", "code_gen_2") == pytest.approx(0.93, abs=0.1)
    assert together(code, "code_gen_0", "code_gen_4") == pytest.approx(0.84, abs=0.1)
    assert together(code, "test_gen", "code_gen_0") == pytest.approx(0.33, abs=0.1)
    assert together(code, "reflect_1", "reflect_2", zero=True) == pytest.approx(0.83, abs=0.1)
    merging = drawn("document_merging")
    assert together(merging, "generate", "aggregate") == pytest.approx(0.97, abs=0.05)
    assert together(merging, "generate", "improve") == pytest.approx(0.80, abs=0.1)
    sorting = [j for j in drawn("sequence_sorting") if "5/5/10/10" in str(j.features["variant"])]
    assert together(sorting, "split", "sort_1") > 0.98
    assert together(sorting, "merge", "improve") > 0.98
    searching = drawn("web_search")
    assert together(searching, "thought_3", "action_3") == pytest.approx(0.45, abs=0.1)
    plans = drawn("task_automation")
    planned = [len(job.stages) - 2 for job in plans]
    assert correlation([job.output_tokens for job in plans], planned) == pytest.approx(0.90, abs=0.05)


# The paper's set.


def alone(job: Recording) -> float:
    return isolated_seconds(job.stages)


def stage_seconds(job: Recording, k: int) -> float:
    if k >= len(job.stages):
        return 0.0
    return sum(GENERIC_7B.reference(t.prompt_tokens, t.output_tokens) for t in job.stages[k].tasks)


@pytest.mark.parametrize(
    ("application", "seconds", "stages"),
    [
        ("sequence_sorting", (10, 300), (15, 15)),
        ("code_generation", (2, 50), (3, 15)),
        ("task_automation", (1, 116), (1, 8)),  # generated stages
    ],
)
def test_the_paper_set_reaches_the_ranges_of_the_paper(
    application: str, seconds: tuple[float, float], stages: tuple[int, int]
) -> None:
    jobs = drawn(application, "paper")
    durations = [alone(job) for job in jobs]
    assert (min(durations), max(durations)) == pytest.approx(seconds, rel=0.1)
    lengths = [sum(s.parent is not None for s in job.stages) or len(job.stages) for job in jobs]
    assert (min(lengths), max(lengths)) == stages


@pytest.mark.parametrize(
    ("application", "a", "b", "r"), [("sequence_sorting", 0, 3, 0.7), ("code_generation", 3, 6, 0.9)]
)
def test_the_paper_set_has_the_correlations_of_the_paper(application: str, a: int, b: int, r: float) -> None:
    jobs = drawn(application, "paper")
    assert correlation(
        [stage_seconds(job, a) for job in jobs], [stage_seconds(job, b) for job in jobs]
    ) == pytest.approx(r, abs=0.1)


def test_a_job_alone_takes_what_its_critical_path_takes() -> None:
    # One call at a time: 0.1 s of prefill and 1 s of decoding each; the tools (2 s and 0.5 s) overlap.
    job = Recording.from_json(
        {
            "app": "a",
            "job_id": "j",
            "stages": [
                {"name": "p", "kind": "llm", "deps": [], "tasks": [{"prompt_tokens": 800, "output_tokens": 100}]},
                {"name": "x", "kind": "regular", "deps": ["p"], "tasks": [{"duration_s": 2}, {"duration_s": 0.5}]},
                {
                    "name": "q",
                    "kind": "llm",
                    "deps": ["p"],
                    "tasks": [{"prompt_tokens": 800, "output_tokens": 100}] * 2,
                },
            ],
        }
    )
    assert isolated_seconds(job.stages) == pytest.approx(1.1 + 2.2)
    assert isolated_seconds(job.stages, scale=2.0) == pytest.approx(2.1 + 4.2)


# Tables.


def test_a_histogram_is_read_by_share() -> None:
    table = Histogram(["a", "b"], [1, 3])
    assert [table.at(u) for u in (0.0, 0.24, 0.26, 0.999, 1.0)] == ["a", "a", "b", "b", "b"]


def test_quantiles_are_linear_between_the_middles_of_their_steps() -> None:
    # Two steps with means 10 and 20, at u = 1/4 and 3/4; ends 8 and 30.
    table = Quantiles([8, 10, 20, 30])
    assert [table.at(u) for u in (0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1.0)] == [8, 9, 10, 15, 20, 25, 30]


# The traces themselves.


@needs_traces
@pytest.mark.parametrize("application", APPLICATIONS)
def test_generated_jobs_do_the_work_of_recorded_ones(application: str) -> None:
    measures: list[Callable[[Recording], float]] = [
        lambda job: job.prompt_tokens,
        lambda job: job.output_tokens,
        lambda job: job.regular_seconds,
        lambda job: len(job.stages),
        alone,
    ]
    for measure in measures:
        real = [float(measure(job)) for job in recorded(application)]
        assert_near([float(measure(job)) for job in drawn(application)], fmean(real))


@needs_traces
@pytest.mark.parametrize("application", APPLICATIONS)
def test_generated_loops_are_as_long_as_recorded_ones(application: str) -> None:
    real, ours = (Counter(map(iterations, jobs)) for jobs in (recorded(application), drawn(application)))
    for length in set(real) | set(ours):
        share = real[length] / real.total()
        assert abs(ours[length] / N - share) < 4 * math.sqrt(max(share, 1e-3) * (1 - share) / N) + 1e-9


@needs_traces
@pytest.mark.parametrize("application", APPLICATIONS)
def test_generated_stages_have_the_names_and_links_of_recorded_ones(application: str) -> None:
    def described(stage: RecordedStage) -> tuple[Any, ...]:
        tools = tuple(task.tool for task in stage.tasks if stage.kind is StageKind.REGULAR)
        return stage.name, stage.kind, stage.after, tools, stage.iteration, stage.parent, stage.candidates

    def fixed(jobs: Sequence[Recording]) -> set[tuple[Any, ...]]:
        # Names and links of a plan's tools are as many as there are plans, and a step may search or look up.
        return {described(s) for job in jobs for s in job.stages if s.parent is None and "tool_" not in s.name}

    assert fixed(drawn(application)) <= fixed(recorded(application))


@needs_traces
def test_the_parameters_are_what_the_traces_give() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "fit_generator.py"
    spec = importlib.util.spec_from_file_location("fit_generator", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.fit(Path(os.environ["LLMSCHED_TRACES"])) == script.OUT.read_text(encoding="utf-8")
    assert set(fitted_parameters()) == {"measured", "paper"}

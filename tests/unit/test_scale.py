"""The scale benchmark: quantiles of histograms, growth, groups of a profile, lean engines, what its page says."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmsched.gateway.metrics import Metrics

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("arithmetic", "engines", "profiled", "live", "simulated", "page", "scale")


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules by name, as they find each other when one is run as a script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "scale"))
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in (*MODULES, "marks", "record", "rig"):
        del sys.modules[name]


# -------------------------------------------------------------------------------------------------- histograms


def scraped(*decisions: float) -> str:
    metrics = Metrics()
    for seconds in decisions:
        metrics.decided(seconds)
    return metrics.exposition().decode()


def test_a_scraped_histogram_is_that_of_what_was_observed_since(scale: dict[str, ModuleType]) -> None:
    read = scale["arithmetic"].Buckets.read
    before, after = scraped(0.0002), scraped(0.0002, 0.003, 0.003, 0.02)
    since = read(after, "llmsched_decision_seconds") - read(before, "llmsched_decision_seconds")
    assert since.observations == 3
    assert since.mean == pytest.approx(0.026 / 3)
    assert since.quantile(0.5) == pytest.approx(0.0025 + 0.0025 * 1.5 / 2)  # two of three in the bucket 2.5 to 5 ms


def test_series_of_one_histogram_are_added_up(scale: dict[str, ModuleType]) -> None:
    metrics = Metrics()
    metrics.task_started("llm", "a", 0.004)
    metrics.task_started("cpu", "b", 0.004)
    text = metrics.exposition().decode()
    assert scale["arithmetic"].Buckets.read(text, "llmsched_task_queue_seconds").observations == 2
    assert scale["arithmetic"].value(text, "llmsched_task_queue_seconds_count", pool="llm") == 1
    assert scale["arithmetic"].value(text, "llmsched_task_queue_seconds_count") == 2


def test_a_quantile_beyond_the_last_bucket_is_not_invented(scale: dict[str, ModuleType]) -> None:
    buckets = scale["arithmetic"].Buckets({0.1: 98.0, inf: 100.0}, 12.0)
    assert buckets.quantile(0.98) == pytest.approx(0.1)
    assert buckets.quantile(0.99) == inf
    assert scale["arithmetic"].Buckets({}, 0.0).quantile(0.99) == 0.0


def test_a_metric_that_is_not_there_is_said(scale: dict[str, ModuleType]) -> None:
    with pytest.raises(KeyError, match="llmsched_nothing"):
        scale["arithmetic"].Buckets.read(scraped(), "llmsched_nothing")


# ------------------------------------------------------------------------------------------------------ growth


def test_growth_ratios_and_exponents(scale: dict[str, ModuleType]) -> None:
    arithmetic = scale["arithmetic"]
    assert arithmetic.per_job(1e6, 3e6, 1_000) == 2_000
    assert arithmetic.exponents([(100, 1.0), (1_000, 10.0), (10_000, 1_000.0)]) == [1.0, 2.0]
    assert arithmetic.ratio([2.0, 4.0, 1.0], [1.0, 1.0, 1.0]) == (0.5, 0.25, 1.0)


def test_a_sample_counts_for_the_innermost_frame_that_has_a_group(scale: dict[str, ModuleType]) -> None:
    stacks = [
        ("run (llmsched/cli/serve.py);tick (llmsched/runtime/service.py);handle (llmsched/scheduler/core.py)", 5),
        ("tick (llmsched/runtime/service.py);key (llmsched/policies/pool.py);weigh (llmsched/profiler/kernel.py)", 2),
        ("go (llmsched/runtime/attempts.py);post (aiohttp/client.py)", 2),
        ("what (elsewhere.py)", 1),
    ]
    assert scale["arithmetic"].shares(stacks, scale["profiled"].GROUPS) == {
        "scheduler": 0.5,
        "calls to engines": 0.2,
        "estimates (what jobs have left)": 0.2,
        "other": 0.1,
    }


# ----------------------------------------------------------------------------------------------------- engines


def test_a_lean_engine_reads_lengths_off_the_body_that_the_client_sends(scale: dict[str, ModuleType]) -> None:
    body = b'{"stream":true,"prompt":[101,102,103],"max_tokens":40,"min_tokens":40,"ignore_eos":true}'
    assert scale["engines"].lengths(body) == (3, 40)
    assert scale["engines"].lengths(b'{"prompt":"1","max_tokens":1}') == (1, 1)


def test_a_lean_answer_has_its_tokens_and_takes_its_time(scale: dict[str, ModuleType]) -> None:
    engines = scale["engines"]
    until_first, decoding = engines.seconds(2_000, 100)
    assert (until_first, decoding) == pytest.approx((0.02, 0.05))
    parts = engines.chunks(2_000, 100)
    assert len(parts) == round(decoding / engines.CHUNK)
    whole = b"".join(parts)
    assert b'"prompt_tokens":2000,"completion_tokens":100' in whole
    assert whole.count(b'"finish_reason":"length"') == 1
    assert whole.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_lean_engine_knows_only_what_the_service_asks(scale: dict[str, ModuleType]) -> None:
    assert scale["engines"].answer("/server_info?config_format=json").startswith(b"HTTP/1.1 200 OK")
    assert scale["engines"].answer("/metrics").startswith(b"HTTP/1.1 404")


# -------------------------------------------------------------------------------------------------------- page

CONDITIONS = {
    "date": "2026-01-02",
    "commit": "abc",
    "machine": "2 CPUs",
    "load": 0.5,
    "versions": "SQLite 3",
    "command": "python x",
}


def point(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"policy": "fcfs", "engines": 4, "jobs": 1_000, "active": 999.0, "seconds": 6.0}
    base |= {"tasks_per_s": 1234.5, "jobs_per_s": 60.0, "decisions": 9, "decision_mean": 2e-4, "decision_p99": 9e-3}
    base |= {"lag_p50": 2e-3, "lag_p99": 3e-2, "processor": 0.97, "processor_per_task": 6e-4, "slots_used": 1.0}
    return base | {"rss": 2e8, "load": 1.0} | changes


def filling(memory: float = 12_500.0) -> dict[str, Any]:
    return {"policy": "fcfs", "jobs": 1_000, "jobs_per_s": 900.0, "lag_p99": 0.02, "memory_per_job": memory}


def document(*points: dict[str, Any], memory: float = 12_500.0) -> dict[str, Any]:
    measured = [{"filling": filling(memory), "points": list(points)}]
    return {"live": {"conditions": CONDITIONS, "measured": measured}}


def test_the_page_has_the_numbers_and_says_that_goals_are_met(scale: dict[str, ModuleType]) -> None:
    text = scale["page"].text(document(point()))
    assert "| fcfs | 1,000 | 4 | 1,234 | 100% | 0.20 / 9.0 | 2.0 / 30.0 | 97% | 0.60 | 200 |" in text
    assert "| fcfs | 1,000 | 900 | 20.0 | 12.5 |" in text
    assert "**Every goal is met**" in text


def test_a_missed_goal_is_named(scale: dict[str, ModuleType]) -> None:
    told = document(point(lag_p99=0.0621), point(lag_p99=inf), memory=31_000.0)
    assert scale["page"].missed(told) == [
        "event-loop lag p99 is 62.1 ms with 4 engines and 1,000 jobs (fcfs); the goal is 50 ms",
        "event-loop lag p99 is over the last bucket ms with 4 engines and 1,000 jobs (fcfs); the goal is 50 ms",
        "1,000 jobs take 31.0 kB each (fcfs); the goal is 30 kB",
    ]
    assert "62.1 (missed)" in scale["page"].text(told)


def test_before_and_after_are_held_against_each_other_round_by_round(scale: dict[str, ModuleType]) -> None:
    runs = [{"tasks_per_s": 500.0, "processor_per_task": 1e-3, "decision_mean": 1e-3, "lag_p50": 0.1, "lag_p99": inf}]
    after = [{"tasks_per_s": 750.0, "processor_per_task": 8e-4, "decision_mean": 5e-4, "lag_p50": 0.0, "lag_p99": 0.1}]
    simulator = [{"jobs": 2_400, "engines": 256, "before": [3e-4, 2e-4], "after": [1e-4, 1e-4]}]
    sides = {"before": runs, "after": after}
    measured = {"jobs": 600, "engines": 64, "policies": {"fcfs": sides}, "simulator": simulator}
    text = scale["page"].text({"comparison": {"conditions": CONDITIONS, "measured": measured}})
    assert "| fcfs | LLM tasks/s | 500 | 750 | 1.50 (1.50 to 1.50) |" in text
    assert "| fcfs | event-loop lag p99 (ms) | over 1,000 | 100.0 |  |" in text  # beyond the buckets is no number
    assert "256 engines: processor time per task (ms) | 0.300, 0.200 | 0.100, 0.100 | 0.42 (0.33 to 0.50) |" in text


def test_the_simulator_says_by_which_power_it_grows(scale: dict[str, ModuleType]) -> None:
    run = {
        "policy": "fcfs",
        "engines": 256,
        "utilisation": 0.9,
        "rss_before": 5e7,
        "rss_generated": 6e7,
        "rss_peak": 9e7,
    }
    runs = [run | {"jobs": jobs, "seconds": s, "dispatches": 20 * jobs} for jobs, s in ((1_000, 1.0), (10_000, 10.0))]
    text = scale["page"].text({"simulator": {"conditions": CONDITIONS, "measured": runs}})
    assert "| fcfs | 10,000 | 256 | 1,000 | 50 | 90% | 60 / 90 |" in text
    assert "fcfs, 1,000, 10,000 jobs on 256 engines: time grows with power 1.00 of the jobs." in text


def test_numbers_go_between_the_marks_and_nowhere_else(scale: dict[str, ModuleType], tmp_path: Path) -> None:
    page = scale["page"]
    file = tmp_path / "page.md"
    file.write_text(f"Before.\n{page.BEGIN}\nold\n{page.marks.END}\nAfter.\n")
    page.write(document(point()), file)
    written = file.read_text()
    assert written.startswith(f"Before.\n{page.BEGIN}\n\n### The service")
    assert written.endswith(f"{page.marks.END}\nAfter.\n")
    assert "old" not in written
    file.write_text("nothing")
    with pytest.raises(ValueError, match="lacks"):
        page.write(document(point()), file)


def test_the_page_in_the_repository_is_that_of_the_results(scale: dict[str, ModuleType]) -> None:
    page = scale["page"]
    results = BENCHMARKS / "results" / "scale.json"
    if not results.exists():
        pytest.skip("nothing was measured")
    written = page.PAGE.read_text().partition(page.BEGIN)[2].partition(page.marks.END)[0]
    assert written.strip() == page.text(json.loads(results.read_text())).strip()


def test_figures_for_the_record_are_held_against_the_goals(scale: dict[str, ModuleType]) -> None:
    figures = {f.name: f for f in scale["scale"].figures(document(point(lag_p99=0.0621), memory=31_000.0))}
    lag = figures["event-loop lag p99: fcfs, 1,000 jobs, 4 engines"]
    assert (round(lag.value, 1), lag.goal, lag.is_met) == (62.1, 50.0, False)
    assert figures["memory per job: fcfs, 1,000 jobs"].is_met is False

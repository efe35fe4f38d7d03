"""The comparison of all policies: what it runs, that it goes on where it stopped, and what its page says."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsched.policies import DEFAULT_POLICY

COMPARISON = Path(__file__).parents[2] / "benchmarks" / "comparison"
POLICIES = ["fcfs", "sjf", "llmsched", DEFAULT_POLICY, "oracle-pool"]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The modules by name, as they find each other when one is run as a script; small runs."""
    monkeypatch.syspath_prepend(str(COMPARISON))
    modules = {name: importlib.import_module(name) for name in ("cells", "charts", "page", "compare")}
    monkeypatch.setattr(modules["cells"], "JOBS", 12)
    monkeypatch.setattr(modules["cells"], "seeds_of", lambda policy, load, full: 3)
    yield modules
    for name in modules:
        del sys.modules[name]


def compare(scripts: dict[str, Any], out: Path, *more: str) -> str:
    """The page after a comparison on generated jobs of one workload, in this process."""
    arguments = ["--sources", "generator", "--workloads", "planning", "--parallel", "1", "--out", str(out)]
    assert scripts["compare"].main([*arguments, "--policies", ",".join(POLICIES), *more]) == 0
    return (out / "docs" / "comparison.md").read_text()


def results(scripts: dict[str, Any], out: Path) -> Any:
    return scripts["cells"].read(out / "benchmarks" / "results" / "comparison.json")


def test_it_runs_every_policy_on_every_seed_and_writes_the_page(scripts: dict[str, Any], tmp_path: Path) -> None:
    page = compare(scripts, tmp_path)

    (found,) = results(scripts, tmp_path).values()
    assert {policy: sorted(rows) for policy, rows in found.runs.items()} == {key: [0, 1, 2] for key in POLICIES}
    for policy in POLICIES:
        assert f"| `{policy}` | {found.mean(policy):.1f} |" in page  # its mean in the table of the workload
    by, (low, high) = found.change("sjf", "fcfs")
    assert f"{by:+.0f} % ({low:+.0f} … {high:+.0f})" in page
    assert (tmp_path / "docs" / "images" / "comparison-generator-orders.png").stat().st_size > 10_000


def test_it_goes_on_where_it_stopped(scripts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int]] = []
    one = scripts["cells"]._one

    def watched(cell: Any, policy: str, seed: int, traces: Path | None) -> list[float]:
        ran.append((policy, seed))
        return list(one(cell, policy, seed, traces))

    monkeypatch.setattr(scripts["cells"], "_one", watched)
    compare(scripts, tmp_path, "--seconds", "0")
    assert len(ran) == 1
    before = results(scripts, tmp_path)

    compare(scripts, tmp_path)
    assert len(ran) == len(set(ran)) == 3 * len(POLICIES)  # nothing twice

    compare(scripts, tmp_path, "--again", "fcfs")
    assert ran[3 * len(POLICIES) :] == [("fcfs", 0), ("fcfs", 1), ("fcfs", 2)]
    (earlier,), (later,) = before.values(), results(scripts, tmp_path).values()
    k = scripts["cells"].COLUMNS.index("decision_ms")
    rows = [found.runs["fcfs"][0][:k] for found in (earlier, later)]
    assert rows[0] == rows[1]  # the same jobs, the same order, the same times


def made_up(scripts: dict[str, Any], workload: str, **means: float) -> Any:
    """A cell whose runs are made up: mean completion times by policy, the same for each of three seeds but for 1 %."""
    cells = scripts["cells"]
    found = cells.Found(cells.Cell("traces", workload, 1.0), "1 engine")
    for policy, mean in means.items():
        row = [mean] + [1.0] * (len(cells.COLUMNS) - 1)
        found.runs[policy.replace("_", "-")] = {seed: [row[0] * (1 + seed / 100), *row[1:]] for seed in range(3)}
    return found


def test_a_policy_that_beats_the_default_is_named(scripts: dict[str, Any]) -> None:
    found = made_up(scripts, "chain", fcfs=30.0, sjf=9.0, llmsched_pool=10.0, fair=10.0)

    said = scripts["page"]._claim({found.cell: found})

    assert "no: `sjf` beats it" in said

    found = made_up(scripts, "chain", fcfs=30.0, fair=10.0, llmsched_pool=10.0)
    assert "level with `fair`" in scripts["page"]._claim({found.cell: found})

    found = made_up(scripts, "chain", fcfs=30.0, fair=11.0, llmsched_pool=10.0)
    assert "yes, every interval below zero" in scripts["page"]._claim({found.cell: found})


def test_statements_of_the_paper_hold_or_do_not(scripts: dict[str, Any]) -> None:
    mixed = made_up(scripts, "mixed", fcfs=30.0, sjf=20.0, fair=40.0, llmsched=21.0, llmsched_pool=10.0)

    said = scripts["page"]._statements({mixed.cell: mixed})

    assert "| mixed: LLMSched has the lowest mean | does not hold | +5 % (+5 … +5) against `sjf`" in said
    assert "| mixed: SJF is the best baseline | holds | -33 % (-33 … -33) against `fcfs` |" in said
    # 21 against 20 … 40: -5 … 48 %
    assert "| mixed: 36 to 79 % less than the baselines (Fig. 7) | in that range | `llmsched`: -5 to 48 % |" in said

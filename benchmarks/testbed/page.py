"""The numbers in docs/testbed.md, from the results: tables, and every sentence with a number in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import marks
from results import EMULATED, REAL, Found, Key

from llmsched.policies import DEFAULT_POLICY

PAGE = Path(__file__).parents[2] / "docs" / "testbed.md"
BEGIN = marks.begin("benchmarks/testbed/testbed.py")

#: Reductions of mean JCT over its baselines on the paper's testbed, per cent (Fig. 8).
PUBLISHED = {"mixed": (45, 66), "predefined": (26, 46), "chain": (35, 45), "planning": (38, 51)}
#: Milliseconds per invocation (Table I).
TABLE_1 = {
    "fcfs": {"mixed": 0.25, "predefined": 0.47, "chain": 0.06, "planning": 0.10},
    "sjf": {"mixed": 0.41, "predefined": 0.66, "chain": 0.17, "planning": 0.18},
    "fair": {"mixed": 0.48, "predefined": 0.70, "chain": 0.08, "planning": 0.12},
    "llmsched": {"mixed": 0.96, "predefined": 2.32, "chain": 0.70, "planning": 0.16},
}
#: Policies of the paper that these runs have, too.
BASELINES = ("fcfs", "fair", "sjf")
OURS = ("llmsched", DEFAULT_POLICY)
#: What is asked of the simulator: mean time off by at most so many per cent; MAPE below, at the load of `MAPE_LOAD`.
MEAN_GOAL = {EMULATED: 3.0, REAL: 8.0}
MAPE_GOAL = {EMULATED: 10.0, REAL: 12.0}
MAPE_LOAD = 0.7


def write(conditions: Mapping[str, Any], founds: Mapping[Key, Found], path: Path = PAGE) -> None:
    """Replaces what stands between the two marks. Raises ValueError where a mark is missing."""
    marks.put(text(conditions, founds), path, BEGIN)


def text(conditions: Mapping[str, Any], founds: Mapping[Key, Found]) -> str:
    """All that was measured."""
    founds = {key: found for key, found in sorted(founds.items(), key=_place) if found.runs}
    parts = [f"{conditions['date']}, commit {conditions['commit']}; {conditions['machine']}."]
    for engine, title in ((EMULATED, "On emulated engines"), (REAL, "On a real vLLM")):
        own = [found for key, found in founds.items() if key.engine == engine]
        if own:
            parts += [f"## {title}", f"![mean completion times](images/testbed-{engine}.png)"]
            parts += [_reductions(own), *map(_times, own), _undisturbed(own)]
    parts.append(_overheads([found for key, found in founds.items() if key.load == 1.0]))
    parts.append(_fidelity(list(founds.values())))
    return "\n\n".join(part for part in parts if part)


def line(found: Found, policy: str) -> str:
    """One run, while others are still to come."""
    off, run = found.error(policy, "simulated"), found.runs[policy]
    return (
        f"mean {found.mean(policy):.2f} s, simulated {(off.ratio - 1) * 100:+.1f} %, MAPE {off.mape:.1f} %; decision"
        f" {run['decision_ms']['mean']:.2f} ms, send lag at most {run['send_lag_ms']['max']:.0f} ms, call"
        f" +{run['call_ms']} ms, loop p99 {run['loop_lag_p99_ms']} ms, load {run['load_before']}"
    )


def missed(found: Found) -> list[str]:
    """A sentence for each goal of the simulator that is not met on this bed."""
    told = []
    goal = MEAN_GOAL[found.key.engine]
    for policy in found.runs:
        off = found.error(policy)
        if abs(off.ratio - 1) * 100 > goal:
            told.append(f"mean of `{policy}` off by {(off.ratio - 1) * 100:+.1f} % (goal {goal:g} %)")
        if found.key.load <= MAPE_LOAD and off.mape >= MAPE_GOAL[found.key.engine]:
            told.append(f"MAPE of `{policy}` is {off.mape:.1f} % (goal {MAPE_GOAL[found.key.engine]:g} %)")
    told += [f"`{a}` and `{b}` change places" for a, b, is_sure in found.flips() if is_sure]
    return told


def _place(item: tuple[Key, Found]) -> tuple[str, float, int]:
    order = ("mixed", "mixed-nodoc", "predefined", "chain", "planning")
    return item[0].engine, -item[0].load, order.index(item[0].workload)


def _reductions(founds: Sequence[Found]) -> str:
    rows = []
    load = max(found.key.load for found in founds)
    for found in founds:
        if found.key.load != load or not set(OURS) <= set(found.runs):
            continue
        known = [b for b in BASELINES if b in found.runs]
        low, high = PUBLISHED[found.key.workload]
        row = [found.key.workload, f"{low} to {high} %"]
        for ours in OURS:
            row += [_range([found.reduction(ours, b, w)[0] for b in known]) for w in ("times", "simulated")]
        rows.append(row)
    head = ["workload", "the paper (Fig. 8)"]
    head += [f"`{ours}`{how}" for ours in OURS for how in (" here", ", simulated")]
    return (
        "How much shorter the mean completion time is than that of "
        + ", ".join(f"`{b}`" for b in BASELINES)
        + f", at load {load:g}, from the least to the most:\n\n"
        + _table(head, rows)
    )


def _range(values: Sequence[float]) -> str:
    return f"{round(min(values))} to {round(max(values))} %"


def _times(found: Found) -> str:
    about = found.about
    ours = [policy for policy in OURS if policy in found.runs]
    rows = []
    for policy, run in found.runs.items():
        times = found.times(policy)
        ends = times[times == times]
        low, high = found.interval(policy)
        row = [f"`{policy}`", f"{found.mean(policy):.2f} ({low:.2f} to {high:.2f})", f"{_percentile(ends, 95):.1f}"]
        row += ["" if policy == own else _reduction(found.reduction(own, policy)) for own in ours]
        row += [f"{found.mean(policy, 'simulated'):.2f}", f"{run['busy'].get('llm', 0.0):.0%}"]
        rows.append([*row, str(len(times) - len(ends))] if len(ends) < len(times) else row)
    head = ["policy", "mean (s), 95 % interval", "P95"]
    head += [f"`{own}` takes less by" for own in ours] + ["simulated mean", "LLM busy"]
    if any(len(row) > len(head) for row in rows):
        head.append("failed")
    speed = f", {about['speed']:g} emulated seconds a second" if "speed" in about else ""
    return (
        f"### {found.key.workload}, load {found.key.load:g}\n\n{about['jobs']} jobs; {about['machines']}{speed}.\n\n"
        + _table(head, rows)
    )


def _percentile(values: Any, q: float) -> float:
    ordered = sorted(values)
    at = (len(ordered) - 1) * q / 100
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (ordered[high] - ordered[low]) * (at - low))


def _reduction(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.0f} % ({found[1]:.0f} to {found[2]:.0f})"


def _undisturbed(founds: Sequence[Found]) -> str:
    runs = [run for found in founds for run in found.runs.values()]
    calls = [run["call_ms"] for run in runs if run["call_ms"] is not None]
    lags = [run["loop_lag_p99_ms"] for run in runs if run["loop_lag_p99_ms"] is not None]
    sent = [run["send_lag_ms"] for run in runs]
    return (
        f"How undisturbed these {len(runs)} runs were, in real milliseconds: jobs were sent"
        f" {_span(s['p50'] for s in sent)} late (median of a run), at most {max(s['max'] for s in sent):.0f}; the"
        f" service's event loop was late by {_span(lags)} (p99 of a run, upper edge of its bucket); a call took"
        f" {_span(calls)} longer for the service than for its engine (mean of a run); load of the machine before a run"
        f" {_span(run['load_before'] for run in runs)}."
    )


def _span(values: Iterable[float]) -> str:
    known = sorted(values)
    return f"{known[0]:.1f} to {known[-1]:.1f} (mean {fmean(known):.1f})" if known else "?"


def _overheads(founds: Sequence[Found]) -> str:
    at = {found.key.workload: found for found in founds if found.key.engine == EMULATED}
    if not at:
        return ""
    rows = []
    for policy in dict.fromkeys(p for found in at.values() for p in found.runs):
        row = [f"`{policy}`"]
        for workload, found in at.items():
            cost = found.runs.get(policy, {}).get("decision_ms")
            paper = TABLE_1.get(policy, {}).get(workload)
            told = "–" if cost is None else f"{cost['mean']:.2f} / {cost['p99']:.1f}"
            row.append(told + ("" if paper is None else f" (paper {paper:g})"))
        rows.append(row)
    return (
        "## What a decision costs\n\nMilliseconds per decision, mean / p99, on the emulated engines at load 1"
        " (`llmsched_decision_seconds`: the scheduler handles a batch of events, estimates and policy included); in"
        " brackets the mean per invocation of the paper's Table I, from another machine.\n\n"
        + _table(["policy", *at], rows)
    )


def _fidelity(founds: Sequence[Found]) -> str:
    rows = []
    for found in founds:
        offs = {p: found.error(p) for p in found.runs}
        plain = [found.error(p, "simulated").ratio for p in found.runs]
        worst = max(offs.values(), key=lambda off: abs(off.ratio - 1))
        flips = [f"`{a}` < `{b}`{'' if is_sure else ' (within noise)'}" for a, b, is_sure in found.flips()]
        rows.append(
            [
                "emulated" if found.key.engine == EMULATED else "vLLM",
                f"{found.key.workload}, {found.key.load:g}",
                _off(fmean(plain)),
                f"{fmean(run['overhead'] for run in found.runs.values()) * 1000:.0f} ms",
                f"{_off(fmean(off.ratio for off in offs.values()))} ({_off(worst.ratio)})",
                *(f"{fmean(getattr(off, q) for off in offs.values()):.1f} %" for q in ("mape", "median", "p95")),
                "the same" if not flips else "the same but " + ", ".join(flips),
            ]
        )
    head = [
        "engine",
        "workload, load",
        "mean off by, plain",
        "overhead of a call",
        "mean off by, with it (worst policy)",
    ]
    head += ["MAPE", "median", "P95", "order of policies"]
    verdicts = [
        f"* {found.key}: {'; '.join(told)}." if (told := missed(found)) else f"* {found.key}: met." for found in founds
    ]
    return (
        "## How far the simulator is off\n\n![each job in the simulator and measured](images/testbed-fidelity.png)\n\n"
        "The same jobs, moments, machines and profiles in the simulator. Off by: simulated over measured mean, minus 1."
        " *Plain*: the simulator knows nothing of the service. *With it*: every call holds its slot for the overhead"
        " that was measured: what a call takes longer for the service than for its engine, mean of all runs of a"
        " workload, and a decision of the policy, in the seconds of the jobs. Errors of single jobs are absolute"
        " percentages, with it, averaged over policies.\n\n"
        + _table(head, rows)
        + f"\n\nBy policy, with the overhead (mean off by / MAPE):\n\n{_by_policy(founds)}\n\nGoals: mean within"
        f" {MEAN_GOAL[EMULATED]:g} % on emulated engines and {MEAN_GOAL[REAL]:g} % on vLLM, MAPE below"
        f" {MAPE_GOAL[EMULATED]:g} and {MAPE_GOAL[REAL]:g} % at load {MAPE_LOAD:g}, the same order of policies"
        " (pairs whose difference is beyond doubt).\n\n" + "\n".join(verdicts)
    )


def _off(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.1f} %"


def _by_policy(founds: Sequence[Found]) -> str:
    policies = list(dict.fromkeys(p for found in founds for p in found.runs))
    rows = []
    for found in founds:
        row = [str(found.key)]
        for policy in policies:
            off = found.error(policy) if policy in found.runs else None
            row.append("–" if off is None else f"{_off(off.ratio)} / {off.mape:.1f} %")
        rows.append(row)
    return _table(["", *(f"`{p}`" for p in policies)], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

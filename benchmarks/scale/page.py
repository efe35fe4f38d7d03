"""The numbers in docs/scale.md, from the results: tables and the sentences with numbers in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import marks
from arithmetic import exponents, ratio

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
BEGIN = marks.begin("benchmarks/scale/scale.py")

#: Goals: seconds of event-loop lag (p99) at every point, bytes of memory per active job.
LAG, MEMORY = 0.050, 30_000.0
#: Jobs from which on their memory is more than what else grows with them.
MANY = 1_000


def write(document: Mapping[str, Any], path: Path = PAGE) -> None:
    """Replaces what stands between the two marks. Raises ValueError where a mark is missing."""
    marks.put(text(document), path, BEGIN)


def text(document: Mapping[str, Any]) -> str:
    """All that was measured."""
    tables: dict[str, Any] = {
        "live": ("The service", _live),
        "growth": ("What a job leaves in the database", _growth),
        "profile": ("Where the processor time goes", _profile),
        "comparison": ("Before and after the limits were removed", _comparison),
        "simulator": ("The simulator", _simulator),
    }
    parts = []
    for name, (title, told) in tables.items():
        part = document.get(name)
        if part and part["measured"]:
            parts += [f"### {title}", _conditions(part["conditions"]), told(part["measured"])]
    parts.append(_verdict(document))
    return "\n\n".join(parts)


def missed(document: Mapping[str, Any]) -> list[str]:
    """A sentence for each goal that is not met."""
    if "live" not in document:
        return []
    told = []
    for series in document["live"]["measured"]:
        told += [
            f"event-loop lag p99 is {_ms(p['lag_p99'])} ms with {p['engines']} engines and {p['jobs']:,} jobs"
            f" ({p['policy']}); the goal is {LAG * 1e3:.0f} ms"
            for p in series["points"]
            if p["lag_p99"] >= LAG
        ]
        filling = series["filling"]
        if filling["jobs"] >= MANY and filling["memory_per_job"] >= MEMORY:
            told.append(
                f"{filling['jobs']:,} jobs take {filling['memory_per_job'] / 1e3:.1f} kB each"
                f" ({filling['policy']}); the goal is {MEMORY / 1e3:.0f} kB"
            )
    return told


def _conditions(c: Mapping[str, Any]) -> str:
    where = f"{c['machine']}, load {c['load']:g} before; {c['versions']}"
    return f"{c['date']}, commit {c['commit']}; {where}. `{c['command']}`."


def _live(measured: Sequence[Mapping[str, Any]]) -> str:
    head = ["policy", "active jobs", "engines", "LLM tasks/s", "slots in use", "decision mean / p99 (ms)"]
    head += ["event-loop lag p50 / p99 (ms)", "processor of the gateway", "its time per LLM task (ms)", "memory (MB)"]
    rows = [
        [
            p["policy"],
            f"{p['jobs']:,}",
            str(p["engines"]),
            f"{p['tasks_per_s']:,.0f}",
            f"{p['slots_used']:.0%}",
            f"{_ms(p['decision_mean'])} / {_ms(p['decision_p99'])}",
            f"{_ms(p['lag_p50'])} / {_ms(p['lag_p99'])}{'' if p['lag_p99'] < LAG else ' (missed)'}",
            f"{p['processor']:.0%}",
            _ms(p["processor_per_task"]),
            f"{p['rss'] / 1e6:,.0f}",
        ]
        for series in measured
        for p in series["points"]
    ]
    filled = [
        [
            f["policy"],
            f"{f['jobs']:,}",
            f"{f['jobs_per_s']:,.0f}",
            _ms(f["lag_p99"]),
            f"{f['memory_per_job'] / 1e3:.1f}",
        ]
        for f in (series["filling"] for series in measured)
        if f["jobs"] >= MANY
    ]
    head_of_filling = ["policy", "jobs submitted", "jobs/s", "event-loop lag p99 (ms)", "memory per job (kB)"]
    return f"{_table(head, rows)}\n\nBefore the engines came, while nothing ran:\n\n{_table(head_of_filling, filled)}"


def _growth(m: Mapping[str, Any]) -> str:
    tables = ", ".join(f"{name} {size / 1e3:.2f}" for name, size in m["tables"].items() if size >= 10)
    return (
        f"{m['jobs']:,} completed jobs, each submitted with {m['submitted_per_job'] / 1e3:.1f} kB of JSON, take"
        f" **{m['per_job'] / 1e3:.1f} kB each**, indexes included. By table, in kB per job: {tables}."
    )


def _profile(measured: Sequence[Mapping[str, Any]]) -> str:
    names = sorted({g for m in measured for g in m["groups"]}, key=lambda g: -measured[0]["groups"].get(g, 0.0))
    head = ["share of the time in which Python runs", *(f"{m['point']['policy']}" for m in measured)]
    rows = [[name, *(f"{m['groups'].get(name, 0.0):.0%}" for m in measured)] for name in names]
    p = measured[0]["point"]
    return f"{_table(head, rows)}\n\nAt {p['engines']} engines and {p['jobs']:,} active jobs, sampled by py-spy."


def _comparison(m: Mapping[str, Any]) -> str:
    told = {
        "tasks_per_s": ("LLM tasks/s", 1.0, "{:,.0f}"),
        "processor_per_task": ("processor time per LLM task (ms)", 1e3, "{:.2f}"),
        "decision_mean": ("one decision, mean (ms)", 1e3, "{:.2f}"),
        "lag_p50": ("event-loop lag p50 (ms)", 1e3, "{:.1f}"),
        "lag_p99": ("event-loop lag p99 (ms)", 1e3, "{:.1f}"),
    }
    rows = []
    for policy, sides in m["policies"].items():
        for key, (name, scale, form) in told.items():
            before, after = ([run[key] for run in sides[side]] for side in ("before", "after"))
            shown = [", ".join(_number(v * scale, form) for v in values) for values in (before, after)]
            told_ratio = ""
            if all(before) and inf not in (*before, *after):
                middle, low, high = ratio(before, after)
                told_ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            rows.append([policy, name, *shown, told_ratio])
    for costs in m["simulator"]:
        name = f"simulator, {costs['jobs']:,} jobs, {costs['engines']} engines: processor time per task (ms)"
        shown = [", ".join(f"{v * 1e3:.3f}" for v in costs[side]) for side in ("before", "after")]
        middle, low, high = ratio(costs["before"], costs["after"])
        rows.append(["fcfs", name, *shown, f"{middle:.2f} ({low:.2f} to {high:.2f})"])
    head = ["policy", "", "before, each round", "after, each round", "after ÷ before: median (range)"]
    return (
        f"{m['jobs']:,} jobs that were there before {m['engines']} engines came, run to their end, in turns:\n\n"
        + _table(head, rows)
    )


def _simulator(measured: Sequence[Mapping[str, Any]]) -> str:
    head = ["policy", "jobs", "engines", "jobs/s", "µs per task", "slots in use", "memory: jobs / peak (MB)"]
    rows = [
        [
            m["policy"],
            f"{m['jobs']:,}",
            str(m["engines"]),
            f"{m['jobs'] / m['seconds']:,.0f}",
            f"{m['seconds'] / m['dispatches'] * 1e6:.0f}",
            f"{m['utilisation']:.0%}",
            f"{m['rss_generated'] / 1e6:,.0f} / {m['rss_peak'] / 1e6:,.0f}",
        ]
        for m in measured
    ]
    grown = []
    for policy in dict.fromkeys(m["policy"] for m in measured):
        most = max(m["engines"] for m in measured)
        points = sorted((m["jobs"], m["seconds"]) for m in measured if (m["policy"], m["engines"]) == (policy, most))
        if len(points) > 1:
            powers = ", ".join(f"{e:.2f}" for e in exponents(points))
            sizes = ", ".join(f"{jobs:,}" for jobs, _ in points)
            grown.append(f"{policy}, {sizes} jobs on {most} engines: time grows with power {powers} of the jobs.")
    return _table(head, rows) + ("\n\n" + " ".join(grown) if grown else "")


def _verdict(document: Mapping[str, Any]) -> str:
    if "live" not in document:
        return ""
    failed = missed(document)
    if not failed:
        return "**Every goal is met**: event-loop lag p99 below 50 ms at every point, less than 30 kB per active job."
    return "**Missed**:\n\n" + "\n".join(f"* {sentence}" for sentence in failed)


def _ms(seconds: float) -> str:
    """Milliseconds with as many digits as say something."""
    if seconds == inf:
        return "over the last bucket"
    ms = seconds * 1e3
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 1 else f"{ms:.2f}"


def _number(value: float, form: str) -> str:
    return "over 1,000" if value == inf else form.format(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])

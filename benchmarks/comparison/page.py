"""docs/comparison.md, from the runs: tables, and every sentence with a number in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cells import COLUMNS, LOAD, ORACLES, WORKLOADS, Cell, Found
from charts import all_policies

from llmsched.policies import DEFAULT_POLICY, POLICIES

#: Workloads and loads on which the default has to be the best of all that are not told the future.
CLAIMED = ("mixed-nodoc", "chain", "planning")
CLAIMED_LOADS = (0.85, 1.0, 1.2)
#: What one decision may cost at the paper's load, mean milliseconds.
COST_GOALS = {
    "fcfs": 0.5,
    "fair": 0.7,
    "sjf": 0.7,
    "argus": 0.6,
    "decima": 10.0,
    "carbyne": 9.0,
    "llmsched": 3.0,
    "llmsched-wo-bn": 3.0,
    "llmsched-wo-uncertainty": 3.0,
    "llmsched-literal": 3.0,
    "llmsched-plus": 3.0,
    "ltr": 2.0,
    "ssjf": 2.0,
    "magnus": 2.0,
    "scls": 2.0,
    "fastserve": 1.0,
    "mlfq": 1.0,
    "gittins": 5.0,
}
#: Reductions of mean JCT over its baselines that the LLMSched paper reports, per cent (Fig. 7).
PUBLISHED = {"mixed": (36, 79), "predefined": (14, 46), "chain": (36, 67), "planning": (24, 52)}
BASELINES = ("fcfs", "fair", "sjf", "argus", "decima", "carbyne")
#: Sources of jobs as people call them.
NAMES = {"traces": "public traces", "generator": "generated jobs"}


def page(founds: Mapping[Cell, Found], images: Mapping[str, Sequence[Path]], root: Path, conditions: str) -> str:
    """The whole document. images: by source, pictures to show."""
    sources = [s for s in NAMES if any(c.source == s for c in founds)]
    parts = [_head(founds, sources, conditions)]
    for source in sources:
        own = {c: f for c, f in founds.items() if c.source == source}
        parts.append(f"## On the {NAMES[source]}")
        parts += [
            f"![{path.stem.replace('-', ' ')}]({path.relative_to(root).as_posix()})" for path in images.get(source, ())
        ]
        parts += [_against(own, "fcfs"), _against(own, DEFAULT_POLICY), _claim(own), _details(own), _loads(own)]
        parts.append(_statements(own))
    parts.append(_costs(founds, sources[0]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(founds: Mapping[Cell, Found], sources: Sequence[str], conditions: str) -> str:
    some = next(iter(founds.values()))
    most = max((len(rows) for rows in some.runs.values()), default=0)
    return f"""# Comparison

Every policy this service has, on identical jobs: those of the LLMSched paper, the schedulers of single requests, the
program-aware ones of today, and ours. `make bench` makes this page (load {LOAD:g}); `make bench-full` adds loads and
seeds. Both go on where they stopped, from `benchmarks/results/comparison.json`.

What each policy is: [policies.md](policies.md). How a simulation works, and what is learned from which jobs:
[simulation.md](simulation.md). Machines are made for the offered load, 300 jobs arrive by a Poisson process, up to
{most} seeds; all policies get the same jobs at the same moments. Intervals are paired bootstrap 95 % over seeds. The
oracles are told the future and are no policies. {conditions}

*Slowdown*: completion time over the time a job takes alone. *Jain*: Jain's index of the slowdowns, 1 if all jobs are
slowed down alike. *Request*: mean seconds of an LLM call from the moment it could start; what request schedulers are
about."""


def headline(founds: Mapping[Cell, Found]) -> list[tuple[str, float, str]]:
    """What the page comes down to: the default against `fcfs` and against the best other policy, by workload.

    Name, change of the mean completion time, and its unit.
    """
    told = []
    for source, title in NAMES.items():
        for workload, found in _at({c: f for c, f in founds.items() if c.source == source}).items():
            if not found.has(DEFAULT_POLICY, "fcfs"):
                continue
            told.append((f"{title}, {workload}: against `fcfs`", found.change(DEFAULT_POLICY, "fcfs")[0], "%"))
            others = [p for p in found.runs if p not in (*ORACLES, DEFAULT_POLICY) and found.has(p, DEFAULT_POLICY)]
            best = min(others, key=found.mean)
            by = found.change(DEFAULT_POLICY, best)[0]
            told.append((f"{title}, {workload}: against the best other, `{best}`", by, "%"))
    return told


def _at(founds: Mapping[Cell, Found], load: float = LOAD) -> dict[str, Found]:
    return {c.workload: f for w in WORKLOADS for c, f in founds.items() if c[1:] == (w, load) and any(f.runs.values())}


def _against(founds: Mapping[Cell, Found], other: str) -> str:
    """Change of the mean JCT against a policy, by workload, at the common load."""
    at = _at(founds)
    rows = []
    for policy in all_policies(list(at.values())):
        if policy == other:
            continue
        cells = []
        for found in at.values():
            if not found.has(policy, other):
                cells.append("–")
                continue
            by, interval = found.change(policy, other)
            text = f"{by:+.0f} % ({interval[0]:+.0f} … {interval[1]:+.0f})"
            cells.append(f"**{text}**" if policy == _best(found) else text)
        rows.append([f"`{policy}`", *cells])
    first = "" if other != "fcfs" else " Bold: the best of a workload that is not told the future."
    return f"### Mean completion time against `{other}`, load {LOAD:g}\n\nNegative: faster.{first}\n\n" + table(
        ["policy", *at], rows
    )


def _best(found: Found) -> str:
    return min((p for p in found.runs if p not in ORACLES and found.runs[p]), key=found.mean)


def _claim(founds: Mapping[Cell, Found]) -> str:
    """Whether anything beats the default where it shall not be beaten."""
    rows = []
    for workload in CLAIMED:
        for load in CLAIMED_LOADS:
            found = founds.get(Cell(next(iter(founds)).source, workload, load))
            if found is None or not found.has(DEFAULT_POLICY):
                continue
            others = [p for p in found.runs if p not in (*ORACLES, DEFAULT_POLICY) and found.has(p, DEFAULT_POLICY)]
            closest = sorted(others, key=lambda p: found.change(DEFAULT_POLICY, p)[0])[-3:][::-1]
            cells = []
            for policy in closest:
                by, (low, high) = found.change(DEFAULT_POLICY, policy)
                cells.append(f"`{policy}` {by:+.1f} % ({low:+.1f} … {high:+.1f})")
            unproven = [p for p in others if found.change(DEFAULT_POLICY, p)[1][1] >= 0]
            better = [p for p in unproven if found.change(DEFAULT_POLICY, p)[1][0] > 0]
            verdict = (
                f"no: {', '.join(f'`{p}`' for p in better)} beats it"
                if better
                else f"level with {', '.join(f'`{p}`' for p in unproven)}"
                if unproven
                else "yes, every interval below zero"
            )
            rows.append([workload, f"{load:g}", verdict, *cells])
    if not rows:
        return ""
    return (
        "### Is the default the best?\n\nThe default against its three closest rivals, and whether any beats it.\n\n"
        + table(["workload", "load", f"`{DEFAULT_POLICY}` has the lowest mean", "closest", "second", "third"], rows)
    )


def _details(founds: Mapping[Cell, Found]) -> str:
    parts = []
    for workload, found in _at(founds).items():
        rows = []
        for policy in sorted((p for p in found.runs if found.runs[p]), key=found.mean):
            mean = {column: found.mean(policy, column) for column in COLUMNS}
            rows.append(
                [
                    f"`{policy}`",
                    *(f"{mean[c]:.1f}" for c in ("mean_jct", "p50_jct", "p95_jct", "p99_jct", "mean_request")),
                    f"{mean['mean_slowdown']:.1f}",
                    f"{mean['max_slowdown']:.0f}",
                    f"{mean['jain']:.2f}",
                    f"{mean['decision_ms']:.2f}",
                    str(len(found.runs[policy])),
                ]
            )
        times = ["mean (s)", "P50", "P95", "P99", "request"]
        heading = ["policy", *times, "slowdown", "at most", "Jain", "decision (ms)", "seeds"]
        parts.append(f"### {workload}, load {LOAD:g}\n\n{found.machines}.\n\n" + table(heading, rows))
    return "\n\n".join(parts)


def _loads(founds: Mapping[Cell, Found]) -> str:
    loads = sorted({c.load for c in founds})
    if len(loads) < 2:
        return ""
    parts = []
    for workload in WORKLOADS:
        at = [f for load in loads if (f := _at(founds, load).get(workload)) is not None]
        rows = [[f"`{p}`", *(f"{f.mean(p):.1f}" if f.runs.get(p) else "–" for f in at)] for p in all_policies(at)]
        parts.append(f"#### {workload}\n\n" + table(["mean (s)", *(f"load {f.cell.load:g}" for f in at)], rows))
    return "### By load\n\n" + "\n\n".join(parts)


def _statements(founds: Mapping[Cell, Found]) -> str:
    """The statements of the LLMSched paper, tested at the common load."""
    at = _at(founds)
    rows = [
        _is_lowest(at[w], w) for w in ("mixed", "predefined", "chain", "planning") if w in at and at[w].has("llmsched")
    ]
    if "mixed" in at and at["mixed"].has("sjf"):
        rows.append(_is_best_of(at["mixed"], "mixed: SJF is the best baseline", "sjf", BASELINES))
    if "predefined" in at and at["predefined"].has("argus", "llmsched"):
        rows.append(_argus(at["predefined"]))
    if "planning" in at and at["planning"].has("decima"):
        rows.append(_is_worst_of(at["planning"], "planning: Decima is the worst", "decima", BASELINES))
    for policy in ("fcfs", "fair", "carbyne"):
        for workload in ("mixed", "predefined", "chain", "planning"):
            if workload in at and at[workload].has(policy, "llmsched"):
                by, interval = at[workload].change(policy, "llmsched")
                rows.append(
                    [
                        f"{workload}: `{policy}` is poor",
                        _verdict(interval[0] > 0, by > 0),
                        f"{_signed(by, interval)} against `llmsched`",
                    ]
                )
    for workload, (low, high) in PUBLISHED.items():
        if workload not in at:
            continue
        for policy in ("llmsched", DEFAULT_POLICY):
            known = [b for b in BASELINES if at[workload].has(policy, b) and (workload, b) != ("planning", "decima")]
            if not known:
                continue
            found = [-at[workload].change(policy, b)[0] for b in known]
            overlaps = min(found) <= high and max(found) >= low
            rows.append(
                [
                    f"{workload}: {low} to {high} % less than the baselines (Fig. 7)",
                    "in that range" if overlaps else "not here",
                    f"`{policy}`: {min(found):.0f} to {max(found):.0f} %",
                ]
            )
    if not rows:
        return ""
    return (
        "### What the paper says, and what happens here\n\nThe statements of the LLMSched paper on its four "
        f"workloads, at load {LOAD:g}. Its machines, ε and r are not published.\n\n"
        + table(["statement", "", "by how much"], rows)
    )


def _verdict(is_proven: bool, is_so: bool) -> str:
    return "holds" if is_proven else "holds on average, not beyond doubt" if is_so else "does not hold"


def _signed(by: float, interval: Sequence[float]) -> str:
    return f"{by:+.0f} % ({interval[0]:+.0f} … {interval[1]:+.0f})"


def _is_lowest(found: Found, workload: str) -> list[str]:
    known = [b for b in BASELINES if found.has("llmsched", b)]
    best = min(known, key=found.mean)
    by, interval = found.change("llmsched", best)
    return [
        f"{workload}: LLMSched has the lowest mean",
        _verdict(interval[1] < 0, by < 0),
        f"{_signed(by, interval)} against `{best}`, the best baseline",
    ]


def _is_best_of(found: Found, statement: str, policy: str, among: Sequence[str]) -> list[str]:
    others = [p for p in among if p != policy and found.has(p, policy)]
    best = min(others, key=found.mean)
    by, interval = found.change(policy, best)
    return [statement, _verdict(interval[1] < 0, by < 0), f"{_signed(by, interval)} against `{best}`"]


def _is_worst_of(found: Found, statement: str, policy: str, among: Sequence[str]) -> list[str]:
    others = [p for p in among if p != policy and found.has(p, policy)]
    if not others:
        return [statement, "not run", ""]
    worst = max(others, key=found.mean)
    by, interval = found.change(policy, worst)
    return [statement, _verdict(interval[0] > 0, by > 0), f"{_signed(by, interval)} against `{worst}`"]


def _argus(found: Found) -> list[str]:
    others = [p for p in BASELINES if p != "argus" and found.has(p, "argus")]
    better = [p for p in others if found.mean(p) < found.mean("argus")]
    by, interval = found.change("argus", "llmsched")
    return [
        "predefined: Argus performs well, yet below LLMSched",
        _verdict(interval[0] > 0 and len(better) <= 1, by > 0 and len(better) <= 2),
        f"{_signed(by, interval)} against `llmsched`; {len(better)} of {len(others)} other baselines are better",
    ]


def _costs(founds: Mapping[Cell, Found], source: str) -> str:
    load = 0.85 if any(c.load == 0.85 and c.source == source for c in founds) else LOAD
    at = _at({c: f for c, f in founds.items() if c.source == source}, load)
    rows = []
    for policy in all_policies(list(at.values())):
        if policy in ORACLES:
            continue
        means = [f.mean(policy, "decision_ms") if f.runs.get(policy) else None for f in at.values()]
        goal = COST_GOALS.get(policy)
        missed = goal is not None and any(m is not None and m > goal for m in means)
        shown = ["–" if m is None else f"{m:.2f}" for m in means]
        rows.append([f"`{policy}`", *shown, "" if goal is None else f"{goal:g}{' **missed**' if missed else ''}"])
    return (
        f"## What a decision costs\n\nMean milliseconds per decision at load {load:g}, measured in these runs (as many"
        " at once as there are processors); [policies.md](policies.md#what-a-decision-costs) has the figures of a quiet"
        " machine.\n\n" + table(["policy", *at, "goal"], rows)
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


assert DEFAULT_POLICY in POLICIES

"""Figure 10: what Algorithm 1 loses without the Bayesian network, and without exploration.

    python benchmarks/reproduction/figure_10.py [--traces DIR] [--seeds N] [--out DIR]

The runs are those of figure 7 with 300 jobs, where its results are at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import pictures
from document import Options, options, percent, table
from figure_7 import seeds
from simulations import JOBS, WORKLOADS, Cell, Found, simulate

NAME = "figure-10"
POLICIES = ("fcfs", "sjf", "srtf-prior", "llmsched-wo-bn", "llmsched-wo-uncertainty", "llmsched", "llmsched-pool")
#: Mean JCT higher than that of LLMSched by so many per cent.
PUBLISHED = {
    "llmsched-wo-bn": {"mixed": 18, "predefined": 17, "chain": 20, "planning": 5},
    "llmsched-wo-uncertainty": {"mixed": 21, "predefined": 12, "chain": 15, "planning": 13},
}


def cells(given: Options) -> list[Cell]:
    names = ["paper", *(["traces"] if given.traces is not None else [])]
    return [
        Cell(source, w, JOBS, given.load, policies=POLICIES, seeds=seeds(w, JOBS, given))
        for source in names
        for w in WORKLOADS
    ]


def draw(founds: Sequence[Found], given: Options) -> None:
    figure = pictures.figure(
        11,
        4.4,
        "Figure 10: mean JCT above that of llmsched, 300 jobs",
        "whiskers: paired 95 % interval; dashed: the paper",
    )
    panels = figure.subplots(1, len(PUBLISHED), sharey=True)
    names = list(dict.fromkeys(f.cell.source for f in founds))
    width = 0.36
    for axes, (policy, published) in zip(panels, PUBLISHED.items(), strict=True):
        axes.axhline(0, color="#444444", linewidth=0.8)
        for k, source in enumerate(names):
            for x, workload in enumerate(WORKLOADS):
                found = next(f for f in founds if f.cell.source == source and f.cell.workload == workload)
                by, interval = found.change(policy, "llmsched")
                at = x + width * (k - (len(names) - 1) / 2)
                label = pictures.SOURCE_NAMES[source] if not x else None
                axes.bar(at, by, width * 0.92, color=pictures.SOURCE[source], label=label)
                if interval is not None:
                    axes.plot([at, at], interval, color="#222222", linewidth=1.1)
        for x, workload in enumerate(WORKLOADS):
            axes.bar(
                x, published[workload], 0.84, fill=False, edgecolor="#222222", linestyle="--", linewidth=1,
                label="paper" if not x else None,
            )  # fmt: skip
        axes.set_xticks(range(len(WORKLOADS)), WORKLOADS)
        pictures.bare(axes, policy)
    panels[0].set_ylabel("mean JCT above llmsched (%)")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    pictures.save(figure, given.places.image(NAME))


def section(founds: Sequence[Found], given: Options) -> str:
    rows = []
    for policy, published in PUBLISHED.items():
        rows.append([f"`{policy}`, *paper*", *(f"+{published[w]} %" for w in WORKLOADS)])
        for source in dict.fromkeys(f.cell.source for f in founds):
            own = {f.cell.workload: f for f in founds if f.cell.source == source}
            changes = [percent(*own[w].change(policy, "llmsched"), sign=True) for w in WORKLOADS]
            rows.append([f"`{policy}`, {pictures.SOURCE_NAMES[source]}", *changes])
    runs = {f.cell.workload: f.cell.seeds for f in founds}
    return f"""
## Figure 10: ablations

{given.places.link(NAME, "Mean JCT of the ablations relative to llmsched")}

Mean JCT above that of `llmsched`, 300 jobs, offered load {given.load:g}; paired 95 % intervals over
{_counts(runs)}.

{table(["", *WORKLOADS], rows)}

{deviations(founds)}
"""


def _counts(runs: dict[str, int]) -> str:
    if len(set(runs.values())) == 1:
        return f"{next(iter(runs.values()))} seeds"
    return ", ".join(f"{n} ({workload})" for workload, n in runs.items()) + " seeds"


def deviations(founds: Sequence[Found]) -> str:
    """Whether what the paper says holds here."""

    def says(policy: str) -> str:
        certain, against = [], []
        for f in founds:
            interval = f.change(policy, "llmsched")[1]
            name = f.cell.workload + (" (traces)" if f.cell.source == "traces" else "")
            if interval is not None and interval[0] > 0:
                certain.append(name)
            if interval is not None and interval[1] < 0:
                against.append(name)
        return f"surely worse on {', '.join(certain) or 'none'}; surely better on {', '.join(against) or 'none'}"

    return f"""Deviations (surely: the interval leaves 0 out). The paper finds both ablations worse everywhere.

* Without the network: {says("llmsched-wo-bn")}.
* Without exploration: {says("llmsched-wo-uncertainty")}.

The paper does not give its ε and r; figure 9 sweeps them, and ε = 0 there is the ablation without exploration."""


def main(argv: Sequence[str] | None = None) -> int:
    given = options(__doc__, argv)
    founds = simulate(cells(given), NAME, given)
    draw(founds, given)
    given.places.write(NAME, section(founds, given))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

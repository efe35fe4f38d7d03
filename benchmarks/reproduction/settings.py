"""What the paper leaves open, swept: load, number of workers, batch size; 300 jobs of the paper-like generator.

    python benchmarks/reproduction/settings.py [--seeds N] [--load 0.85] [--out DIR]

Nothing is chosen by these numbers: figures 7, 9 and 10 stay with the settings that were fixed before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pictures
from document import Options, options, percent, table
from simulations import JOBS, WORKLOADS, Cell, Found, simulate

NAME = "settings"
POLICIES = ("fcfs", "sjf", "llmsched", "llmsched-pool")
SEEDS = {"mixed": 6, "predefined": 3, "chain": 10, "planning": 10}
LOADS = (1.0, 1.2)
#: So many times the workers.
WORKERS = (2.0, 4.0)
#: Batch sizes, for workloads that need more than one engine; the number of engines follows.
SLOTS = (4, 64)
MANY_ENGINES = ("mixed", "predefined")


def cells(given: Options) -> list[Cell]:
    wanted = []
    for w in WORKLOADS:
        base = Cell("paper", w, JOBS, given.load, policies=POLICIES, seeds=given.seeded(SEEDS[w]))
        wanted += [base, *(replace(base, load=load) for load in LOADS)]
        wanted += [replace(base, workers_factor=factor) for factor in WORKERS]
        if w in MANY_ENGINES:
            wanted += [replace(base, slots=slots) for slots in SLOTS]
    return wanted


def what(cell: Cell, given: Options) -> str:
    """How a cell differs from figure 7."""
    if cell.load != given.load:
        return f"load {cell.load:g}"
    if cell.workers_factor != 1:
        return f"{cell.workers_factor:g} × the workers"
    if cell.slots is not None:
        return f"engines of {cell.slots} slots"
    return "as in figure 7"


def draw(founds: Sequence[Found], given: Options) -> None:
    figure = pictures.figure(
        12.5,
        4.6,
        "Settings that the paper does not give: reduction of the mean JCT against fcfs",
        "300 jobs, paper-like generator; whiskers: paired 95 % interval",
    )
    panels = figure.subplots(1, len(WORKLOADS))
    shown = POLICIES[1:]
    height = 0.8 / len(shown)
    for axes, workload in zip(panels, WORKLOADS, strict=True):
        own = [f for f in founds if f.cell.workload == workload]
        axes.axvline(0, color="#444444", linewidth=0.8)
        for y, found in enumerate(own):
            for k, policy in enumerate(shown):
                at = y + height * (k - (len(shown) - 1) / 2)
                by, interval = found.reduction(policy, "fcfs")
                axes.barh(at, by, height * 0.92, color=pictures.POLICY[policy], label=policy if not y else None)
                if interval is not None:
                    axes.plot(interval, [at, at], color="#222222", linewidth=1)
        axes.set_yticks(range(len(own)), [what(f.cell, given) for f in own])
        axes.invert_yaxis()
        axes.set_xlabel("reduction against fcfs (%)")
        pictures.bare(axes, workload)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", alpha=0.3)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    pictures.save(figure, given.places.image(NAME))


def section(founds: Sequence[Found], given: Options) -> str:
    rows = []
    for f in founds:
        m = f.machines
        rows.append(
            [
                f"{f.cell.workload}, {what(f.cell, given)}",
                f"{m['engines']} × {m['slots']}, {sum(m['workers'].values())}",
                f"{f.mean('fcfs'):.1f} s",
                *(percent(*f.reduction(policy, "fcfs")) for policy in POLICIES[1:]),
            ]
        )
    used = dict.fromkeys(f"{f.cell.seeds} ({f.cell.workload})" for f in founds)
    header = ["", "engines × slots, workers", "`fcfs`", *(f"`{p}`" for p in POLICIES[1:])]
    return f"""
## Settings that the paper does not give

{given.places.link(NAME, "Reductions against fcfs as load, workers and batch size change")}

Reduction of the mean JCT against `fcfs`, 300 jobs of the paper-like generator; seeds:
{", ".join(used)}. ε, r and λ are in figure 9.

{table(header, rows)}

{finding(founds)}
"""


def finding(founds: Sequence[Found]) -> str:
    """Who is below `fcfs` in which of the settings, and what more workers do on mixed."""
    counts = []
    for policy in POLICIES[1:]:
        better = sum(f.reduction(policy, "fcfs")[0] > 0 for f in founds)
        counts.append(f"`{policy}` in {better} of {len(founds)}")
    mixed = [f for f in founds if f.cell.workload == "mixed" and f.cell.slots is None]
    load = min(f.cell.load for f in mixed)
    by_factor = sorted((f for f in mixed if f.cell.load == load), key=lambda f: f.cell.workers_factor)
    moves = [
        f"`{policy}` {' → '.join(percent(f.reduction(policy, 'fcfs')[0], None) for f in by_factor)}"
        for policy in POLICIES[1:]
    ]
    factors = ", ".join(f"{f.cell.workers_factor:g}" for f in by_factor)
    return f"""* The mean JCT is below that of `fcfs` for {", ".join(counts)} settings.
* On mixed the queue of the workers decides. Reductions against `fcfs` with {factors} × the workers:
  {"; ".join(moves)}."""


def main(argv: Sequence[str] | None = None) -> int:
    given = options(__doc__, argv)
    founds = simulate(cells(given), NAME, given)
    draw(founds, given)
    given.places.write(NAME, section(founds, given))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

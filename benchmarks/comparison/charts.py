"""The pictures of the comparison: who is how much slower than the default, where loads part them, who pays for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cells import LOAD, ORACLES, WORKLOADS, Cell, Found
from matplotlib.figure import Figure

from llmsched.plots import COLOURS
from llmsched.policies import DEFAULT_POLICY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What a policy needs to know, in the order of the picture, and its colour.
FAMILIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ours": (COLOURS[1], ("llmsched-pool", "srpt", "gittins")),
    "LLMSched, its variants": (
        COLOURS[0],
        ("llmsched", "llmsched-plus", "llmsched-literal", "llmsched-wo-bn", "llmsched-wo-uncertainty"),
    ),
    "its baselines": (
        COLOURS[2],
        ("fcfs", "fair", "sjf", "srtf-prior", "argus", "carbyne", "decima"),
    ),
    "program-aware": (COLOURS[4], ("las", "atlas", "finish-started", "vtfq")),
    "length-aware, by request": (COLOURS[3], ("ltr", "ssjf", "magnus", "hrrn")),
    "by slices of a request": (COLOURS[6], ("scls", "fastserve", "mlfq")),
    "reference lines": ("#8c8c8c", ("random", *ORACLES)),
}
#: Policies whose way with the load is drawn.
LINES = ("fcfs", "fair", "sjf", "llmsched", "decima", "las", "ltr", "vtfq", DEFAULT_POLICY, "oracle-pool")


def family_colour(policy: str) -> str:
    """The colour of what a policy belongs to."""
    return next((colour for colour, members in FAMILIES.values() if policy in members), "#8c8c8c")


def draw(founds: Mapping[Cell, Found], source: str, images: Path) -> list[Path]:
    """Writes the pictures of a source that there are runs for; their paths."""
    at = [found for w in WORKLOADS if (found := founds.get(Cell(source, w, LOAD))) and any(found.runs.values())]
    figures = {}
    if panels := [found for found in at if found.has(DEFAULT_POLICY)]:
        figures["orders"] = orders(panels, source)
    if panels := [found for found in at if found.cell.workload in ("mixed-nodoc", "chain", "planning")]:
        figures["price"] = price(panels, source)
    if len({cell.load for cell in founds if cell.source == source}) > 1:
        figures["loads"] = loads(founds, source)
    paths = []
    for name, figure in figures.items():
        path = images / f"comparison-{source}-{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
        paths.append(path)
    return paths


def orders(panels: Sequence[Found], source: str) -> Figure:
    """Mean completion time over that of the default, by policy and workload, with paired intervals."""
    policies = [p for p in all_policies(panels) if panels[0].runs.get(p)]
    figure = Figure(figsize=(13, 0.24 * len(policies) + 1.6), layout="constrained")
    figure.suptitle(f"Mean job completion time over that of the default, offered load {LOAD:g}, {source}", fontsize=11)
    for axes, found in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        axes.axvline(1.0, color=COLOURS[1], linewidth=1.0, alpha=0.7)
        for y, policy in enumerate(policies):
            if not found.has(policy, DEFAULT_POLICY):
                continue
            by, (low, high) = found.change(policy, DEFAULT_POLICY)
            axes.plot([1 + low / 100, 1 + high / 100], [y, y], color=family_colour(policy), linewidth=1.6)
            axes.plot(1 + by / 100, y, "o", color=family_colour(policy), markersize=5)
        axes.set_xscale("log")
        ticks = [t for t in (0.8, 1, 1.5, 2, 3, 5, 8, 12) if axes.get_xlim()[0] < t < axes.get_xlim()[1]]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.set_yticks(range(len(policies)), policies)
        _bare(axes, found.cell.workload, "x")
    for axes in figure.axes[:1]:
        axes.invert_yaxis()
    return figure


def loads(founds: Mapping[Cell, Found], source: str) -> Figure:
    """Mean completion time against the offered load, a panel per workload."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    figure.suptitle(f"Mean job completion time (s) against the offered load, {source}", fontsize=11)
    for axes, workload in zip(figure.subplots(1, len(WORKLOADS)), WORKLOADS, strict=True):
        own = sorted((c for c in founds if c.source == source and c.workload == workload), key=lambda c: c.load)
        for k, policy in enumerate(LINES):
            there = [c for c in own if founds[c].runs.get(policy)]
            means = [founds[c].mean(policy) for c in there]
            is_bound = policy in ORACLES
            colour = "#4d4d4d" if is_bound else "#8c8c8c" if policy == "fcfs" else COLOURS[k % len(COLOURS)]
            axes.plot(
                [c.load for c in there],
                means,
                marker="o",
                markersize=3,
                color=COLOURS[1] if policy == DEFAULT_POLICY else colour,
                linewidth=2.4 if policy == DEFAULT_POLICY else 1.1,
                linestyle=":" if is_bound else "-",
                label=policy,
            )
        if axes.lines:
            axes.set_yscale("log")
        _bare(axes, workload, "y")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=10, fontsize=8)
    return figure


def price(panels: Sequence[Found], source: str) -> Figure:
    """What a short mean costs: the largest slowdown of a job, beside the mean."""
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    figure.suptitle(
        f"Mean completion time, and who waits for it: the largest slowdown of a job, load {LOAD:g}, {source}"
    )
    for axes, found in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for policy in (p for p, rows in found.runs.items() if rows):
            x, y = found.mean(policy), found.mean(policy, "max_slowdown")
            axes.plot(x, y, "o", color=family_colour(policy), markersize=5)
            axes.annotate(policy, (x, y), fontsize=6.5, xytext=(4, 2), textcoords="offset points")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("mean completion time (s)")
        _bare(axes, found.cell.workload, "both")
    figure.axes[0].set_ylabel("largest slowdown")
    return figure


def _bare(axes: Axes, title: str, grid: str) -> None:
    """No box, a small title, a light grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis=grid, alpha=0.3)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=10)


def all_policies(founds: Sequence[Found]) -> list[str]:
    """Policies that ran, in the order of the pictures; those of no family last."""
    ran = dict.fromkeys(policy for found in founds for policy in found.runs)
    known = [p for _, members in FAMILIES.values() for p in members if p in ran]
    return [*known, *(p for p in ran if p not in known)]

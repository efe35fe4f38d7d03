"""The pictures of the testbed: mean completion times by policy, and every job beside its simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from results import EMULATED, REAL, Found, Key, error

from llmsched.plots import COLOURS
from llmsched.policies import DEFAULT_POLICY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGES = Path(__file__).parents[2] / "docs" / "images"


def draw(founds: Mapping[Key, Found], images: Path = IMAGES) -> list[Path]:
    """Writes the pictures that there are runs for; their paths."""
    ran = [found for found in founds.values() if found.runs]
    figures = {}
    for engine in (EMULATED, REAL):
        own = [found for found in ran if found.key.engine == engine]
        if most := max((found.key.load for found in own), default=None):
            figures[engine] = bars([found for found in own if found.key.load == most])
    panels = [found for found in ran if DEFAULT_POLICY in found.runs and found.key.workload in ("chain", "planning")]
    if panels:
        figures["fidelity"] = scatter(sorted(panels, key=lambda found: found.key))
    images.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        path = images / f"testbed-{name}.png"
        figure.savefig(path, dpi=110)
        paths.append(path)
    return paths


def bars(founds: Sequence[Found]) -> Figure:
    """Mean completion time by policy with its interval, a panel per workload; a line for the simulator."""
    figure = Figure(figsize=(3.3 * len(founds), 3.2), layout="constrained")
    figure.suptitle(f"Mean job completion time (s), load {founds[0].key.load:g}, {founds[0].key.engine}", fontsize=10)
    for axes, found in zip(figure.subplots(1, len(founds), squeeze=False)[0], founds, strict=True):
        for x, policy in enumerate(found.runs):
            low, high = found.interval(policy)
            mean = found.mean(policy)
            axes.bar(x, mean, 0.75, color=COLOURS[1] if policy == DEFAULT_POLICY else COLOURS[0])
            axes.plot([x, x], [low, high], color="#333333", linewidth=1.2)
            simulated = found.mean(policy, "simulated")
            axes.plot([x - 0.38, x + 0.38], [simulated, simulated], color="black", linewidth=1.2, linestyle=":")
        axes.set_xticks(range(len(found.runs)), list(found.runs), rotation=45, ha="right", fontsize=7)
        _bare(axes, f"{found.key.workload} (dotted: simulated)")
    return figure


def scatter(founds: Sequence[Found]) -> Figure:
    """Every job under the default policy: measured across, simulated upwards."""
    columns = min(4, len(founds))
    rows = -(-len(founds) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.1 * rows), layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axes in every[len(founds) :]:
        axes.remove()
    for axes, found in zip(every, founds, strict=False):
        measured, simulated = found.times(DEFAULT_POLICY), found.times(DEFAULT_POLICY, "with_overhead")
        axes.plot(measured, simulated, "o", markersize=2.5, alpha=0.6, color=COLOURS[0])
        ends = [float(measured.min()), float(measured.max())]
        axes.plot(ends, ends, color="#333333", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("measured (s)", fontsize=8)
        axes.set_ylabel("simulated (s)", fontsize=8)
        off = error(measured, simulated)
        _bare(axes, f"{found.key.engine}, {found.key.workload}, {found.key.load:g}: MAPE {off.mape:.1f} %")
    return figure


def _bare(axes: Axes, title: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=8)

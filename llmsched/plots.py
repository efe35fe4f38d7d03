"""Pictures of a simulation: bars with intervals, distributions, completion time against load, Gantt charts.

One colour and place per policy throughout, in the order in which they were compared; oracles, which are bounds and no
policies, are grey. One panel per load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsched.simulator.experiment import SimulatedRun
from llmsched.simulator.statistics import CEILING, ORACLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Told apart by people with any colour vision, the first six also in grey.
COLOURS = (
    "#3b6ea8", "#e08e2b", "#5aa469", "#a8456b", "#7a6bb0", "#c9b037",
    "#2f9aa8", "#b5533c", "#d58fb0", "#8a6d4a", "#9ab83f", "#1f3b57",
)  # fmt: skip
_BOUNDS = dict(zip((*ORACLES, CEILING), ("#8c8c8c", "#4d4d4d", "#b8b8b8"), strict=True))
_LLM, _REGULAR, _LIFE = "#3b6ea8", "#e08e2b", "#e4e4e4"
_DPI = 130


def draw(document: Mapping[str, Any], runs: Sequence[SimulatedRun], directory: Path) -> list[Path]:
    """Writes `jct.png`, `completion_times.png`, `load.png` for several loads and `gantt.png` for spans; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    loads = list(dict.fromkeys(run.load for run in runs))
    figures: dict[str, Figure] = {"jct": bars(document, loads), "completion_times": distributions(runs, loads)}
    if len(loads) > 1:
        figures["load"] = against_load(document)
    if any(run.spans for run in runs):
        figures["gantt"] = gantt([run for run in runs if run.spans and run.load == loads[0]])
    paths = []
    for name, figure in figures.items():
        path = directory / f"{name}.png"
        figure.savefig(path, dpi=_DPI)
        paths.append(path)
    return paths


def colours(policies: Sequence[str]) -> dict[str, str]:
    """The colour of each policy of a comparison.

    >>> colours(["fcfs", "oracle-pool"])
    {'fcfs': '#3b6ea8', 'oracle-pool': '#4d4d4d'}
    """
    own = iter(COLOURS * (1 + len(policies) // len(COLOURS)))
    return {p: _BOUNDS[p] if p in _BOUNDS else next(own) for p in policies}


def bars(document: Mapping[str, Any], loads: Sequence[float | None]) -> Figure:
    """Mean completion time of each policy with its 95 % interval."""
    policies = _policies(document)
    shown = colours(policies)
    figure = _figure(4.2 + 3.4 * len(loads), 1.5 + 0.36 * len(policies))
    panels = figure.subplots(1, len(loads), squeeze=False, sharey=True)[0]
    for axes, load in zip(panels, loads, strict=True):
        entries = {e["policy"]: e for e in document["summary"] if len(loads) == 1 or e["load"] == load}
        most = max((e["ci95"] or [0.0, e["mean_jct"] or 0.0])[1] for e in entries.values())
        for y, policy in enumerate(policies):
            mean, interval = entries[policy]["mean_jct"], entries[policy]["ci95"]
            if mean is None:
                axes.text(0, y, " no job completed", va="center", fontsize=8)
                continue
            axes.barh(y, mean, 0.72, color=shown[policy], alpha=0.55 if policy in _BOUNDS else 1.0)
            end = mean
            if interval is not None:
                low, end = interval
                axes.plot([low, end], [y, y], color="#222222", linewidth=1.2, solid_capstyle="butt")
                axes.plot([low, end], [y, y], color="#222222", marker="|", markersize=6, linestyle="")
            axes.text(max(mean, end) + 0.015 * most, y, f"{mean:.1f}", va="center", fontsize=8)
        axes.set_xlim(0, most * 1.12)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        _name(axes, load, len(loads))
        axes.set_xlabel("mean job completion time (s)")
    panels[0].set_yticks(range(len(policies)), policies)
    panels[0].invert_yaxis()
    _title(figure, _what(document, "Mean job completion time, 95 % interval"))
    return figure


def distributions(runs: Sequence[SimulatedRun], loads: Sequence[float | None]) -> Figure:
    """Share of jobs that are done within a time, over all seeds."""
    policies = list(dict.fromkeys(run.policy for run in runs))
    shown = colours(policies)
    figure = _figure(3.2 + 4.2 * len(loads), 4.6)
    panels = figure.subplots(1, len(loads), squeeze=False, sharey=True)[0]
    for axes, load in zip(panels, loads, strict=True):
        for policy in policies:
            own = [run for run in runs if run.policy == policy and run.load == load]
            times = sorted(t for run in own for t in run.completion_times)
            shares = [100 * (i + 1) / len(times) for i in range(len(times))]
            style = "--" if policy in _BOUNDS else "-"
            axes.step(times, shares, style, where="post", label=policy, color=shown[policy], linewidth=1.6)
        axes.set(xscale="log", ylim=(0, 101), xlabel="job completion time (s)")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        _name(axes, load, len(loads))
    panels[0].set_ylabel("share of jobs (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    _title(figure, "Jobs done within a time")
    return figure


def against_load(document: Mapping[str, Any]) -> Figure:
    """Mean completion time of each policy as the load grows, intervals as bands."""
    policies = _policies(document)
    shown = colours(policies)
    figure = _figure(8.2, 4.8)
    axes = figure.subplots()
    for policy in policies:
        entries = [e for e in document["summary"] if e["policy"] == policy and e["mean_jct"] is not None]
        entries.sort(key=lambda e: e["load"])
        loads, means = [e["load"] for e in entries], [e["mean_jct"] for e in entries]
        style = "--" if policy in _BOUNDS else "-"
        axes.plot(loads, means, style, marker="o", markersize=4, color=shown[policy], label=policy, linewidth=1.6)
        if all(e["ci95"] is not None for e in entries):
            low, high = [e["ci95"][0] for e in entries], [e["ci95"][1] for e in entries]
            axes.fill_between(loads, low, high, color=shown[policy], alpha=0.10, linewidth=0)
    axes.set_xticks(sorted({entry["load"] for entry in document["summary"]}))
    axes.set(xlabel="offered load of the LLM pool", ylabel="mean job completion time (s)", ylim=(0, None))
    axes.grid(alpha=0.3)
    _bare(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    _title(figure, _what(document, "Mean job completion time against load"))
    return figure


def gantt(runs: Sequence[SimulatedRun]) -> Figure:
    """What the first jobs did, one row per job and one panel per policy, on one time axis.

    Grey from arrival to completion; LLM calls in the upper half of the row, regular tasks in the lower; darker where
    more of the job's tasks run at once.
    """
    from matplotlib.patches import Patch

    columns = 1 if len(runs) == 1 else 2
    rows = ceil(len(runs) / columns)
    jobs = max(len(run.lives) for run in runs)
    figure = _figure(6.4 * columns + 0.6, 0.9 + rows * (0.8 + 0.125 * jobs))
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for run, axes in zip(runs, panels, strict=False):
        for y, (arrived, over) in enumerate(run.lives):
            axes.broken_barh([(arrived, over - arrived)], (y - 0.42, 0.84), color=_LIFE, linewidth=0)
        for is_llm, colour, bottom in ((True, _LLM, -0.42), (False, _REGULAR, 0.0)):
            for y in range(len(run.lives)):
                own = [s for s in run.spans if s.job == y and s.executor.startswith("engine-") is is_llm]
                pieces = [(s.started_at, s.ended_at - s.started_at) for s in own]
                axes.broken_barh(pieces, (y + bottom, 0.42), color=colour, alpha=0.55, linewidth=0)
        mean = sum(over - arrived for arrived, over in run.lives) / len(run.lives)
        axes.set_title(f"{run.policy}: {mean:.1f} s on average", fontsize=9)
        axes.set_ylim(jobs - 0.3, -0.7)
        axes.set_yticks([0, *range(4, jobs, 5)], [1, *range(5, jobs + 1, 5)])
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        _bare(axes)
    for k, axes in enumerate(panels):
        axes.tick_params(labelsize=8)
        if k >= len(runs):
            axes.set_visible(False)
        if k % columns == 0:
            axes.set_ylabel("job, in order of arrival", fontsize=8)
        if k + columns >= len(runs):
            axes.set_xlabel("time (s)", fontsize=8)
            axes.tick_params(labelbottom=True)
    kinds = [
        Patch(color=_LLM, alpha=0.7, label="LLM calls"),
        Patch(color=_REGULAR, alpha=0.7, label="regular tasks"),
        Patch(color=_LIFE, label="in the system"),
    ]
    figure.legend(handles=kinds, loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    _title(figure, f"The first {jobs} jobs")
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # 0.4 s and only needed here

    return Figure(figsize=(width, height), layout="constrained")


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")


def _policies(document: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(entry["policy"] for entry in document["summary"]))


def _what(document: Mapping[str, Any], title: str) -> str:
    settings = document["settings"]
    seeds = "one seed" if settings["seeds"] == 1 else f"{settings['seeds']} seeds"
    return f"{title}: {settings['workload']}, {settings['jobs']} jobs, {seeds}"


def _name(axes: Axes, load: float | None, panels: int) -> None:
    if load is not None and panels > 1:
        axes.set_title(f"offered load {load:g}", fontsize=9)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)

"""Shows what a comparison of policies found: a table for the terminal, a picture for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from llmsched.simulator.statistics import Run

#: Told apart by people with any colour vision, also in grey.
_COLOURS = ("#3b6ea8", "#e08e2b", "#5aa469", "#a8456b", "#7a6bb0", "#8c8c8c")

#: Shares of a gain, and their headings.
_SHARES = {"clairvoyant_share": "of the\nclairvoyant gain", "ceiling_share": "of what\ncan be known"}


def unit_of(document: Mapping[str, Any]) -> str:
    """What the times of a document are in: seconds, or emulated ones."""
    return "seconds" if document["settings"].get("speed", 1.0) == 1.0 else "emulated seconds"


def table(document: Mapping[str, Any], *, load: float | None = None, machines: str = "") -> Table:
    """One row per policy of a replay or simulation document; changes are against the first policy.

    load: which one, in a document of several. machines: what it ran on, for the title.
    """
    entries = [entry for entry in document["summary"] if load is None or entry["load"] == load]
    runs = [run for run in document["runs"] if load is None or run["load"] == load]
    first = entries[0]["policy"]
    some_failed = any(run["failed"] for run in runs)
    shares = [key for key in _SHARES if any(key in entry for entry in entries)]
    knows_slowdowns = any(run.get("jain") is not None for run in runs)
    has_deadlines = any("deadlines" in run for run in runs)
    title = f"Job completion time in {unit_of(document)}" + (f": {machines}" if machines else "")
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left", title_style="bold")
    shown.add_column("policy", no_wrap=True)
    headings = [
        "jobs",
        *(["failed"] if some_failed else []),
        "mean",
        "95 % interval",
        "P50",
        "P95",
        "P99",
        *(["slowdown\nat most", "Jain"] if knows_slowdowns else []),
        *(["on\ntime", "mean\nlate"] if has_deadlines else []),
        "LLM\nbusy",
        *([f"mean against\n{first}"] if len(entries) > 1 else []),
        *(_SHARES[key] for key in shares),
    ]
    for heading in headings:
        shown.add_column(heading, justify="right", no_wrap=True)
    for entry in entries:
        own = [r for r in runs if r["policy"] == entry["policy"]]
        cells = [
            entry["policy"],
            str(sum(r["jobs"] for r in own)),
            *([str(sum(r["failed"] for r in own))] if some_failed else []),
            _number(entry["mean_jct"]),
            "" if entry["ci95"] is None else "{:.2f} – {:.2f}".format(*entry["ci95"]),
            *(_number(_mean(r[key] for r in own), 1) for key in ("p50_jct", "p95_jct", "p99_jct")),
        ]
        if knows_slowdowns:
            cells += [_number(_mean(r["max_slowdown"] for r in own), 0), _number(_mean(r["jain"] for r in own))]
        if has_deadlines:
            on_time = _mean(r["deadlines"]["on_time"] for r in own)
            cells.append("–" if on_time is None else f"{on_time:.1%}")
            cells.append(_number(_mean(r["deadlines"]["mean_lateness"] for r in own)))
        cells.append("{:.0%}".format(_mean(r["utilisation"].get("llm") for r in own) or 0.0))
        if len(entries) > 1:
            versus = entry["vs"].get(first)
            cells.append("" if versus is None else _percent(versus["change_pct"], versus["ci95"], "+"))
        for key in shares:
            share = entry.get(key)
            cells.append("" if share is None else _percent(share["share_pct"], share["ci95"]))
        shown.add_row(*cells)
    return shown


def _percent(value: float, interval: Sequence[float] | None, sign: str = "") -> str:
    shown = f"{value:{sign}.1f} %"
    return shown if interval is None else f"{shown} ({interval[0]:{sign}.0f} … {interval[1]:{sign}.0f})"


def _mean(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def plot(document: Mapping[str, Any], runs: Sequence[Run], directory: Path, *, title: str = "") -> Path:
    """Writes `completion_times.png` into `directory`; its path.

    Left the share of jobs that are done within a time, one line per policy; right the mean of each application.
    """
    from matplotlib.figure import Figure  # 0.4 s and only needed here

    directory.mkdir(parents=True, exist_ok=True)
    unit = unit_of(document)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    if title:
        figure.suptitle(title, fontsize=12)
    policies = list(dict.fromkeys(run.policy for run in runs))
    applications = sorted({a for run in runs for a in run.by_application()}, reverse=True)
    height = 0.8 / len(policies)
    for k, policy in enumerate(policies):
        own = [run for run in runs if run.policy == policy]
        colour = _COLOURS[k % len(_COLOURS)]
        times = sorted(t for run in own for t in run.completion_times)
        shares = [100 * (i + 1) / len(times) for i in range(len(times))]
        left.step(times, shares, where="post", label=policy, color=colour, linewidth=1.8)
        means = [_mean(t for run in own for t in run.by_application().get(a, [])) or 0.0 for a in applications]
        # The first policy on top, as in the legend.
        at = [y + height * ((len(policies) - 1) / 2 - k) for y in range(len(applications))]
        bars = right.barh(at, means, height * 0.92, label=policy, color=colour)
        right.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    left.set_title("Jobs done within a time", fontsize=10)
    left.set(xlabel=f"job completion time ({unit})", ylabel="share of jobs (%)", xscale="log", ylim=(0, 102))
    left.xaxis.set_major_formatter("{x:g}")
    left.grid(alpha=0.3)
    left.legend(loc="lower right", frameon=False)
    right.set_title("Mean of each application", fontsize=10)
    right.set(xlabel=f"mean job completion time ({unit})")
    right.set_yticks(range(len(applications)), [a.replace("_", " ") for a in applications])
    right.margins(x=0.12)
    right.grid(axis="x", alpha=0.3)
    right.set_axisbelow(True)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path = directory / "completion_times.png"
    figure.savefig(path, dpi=130)
    return path

"""How the pictures of the reproduction look: one colour per policy and per source throughout, thin frames, a title."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from llmsched.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Policies of the paper and ours; ours are the strong colours.
POLICY = {
    "fcfs": "#8c8c8c",
    "fair": "#b8b8b8",
    "sjf": "#c9b037",
    "argus": "#8a6d4a",
    "carbyne": "#9ab83f",
    "decima": "#7a6bb0",
    "srtf-prior": "#5aa469",
    "llmsched-wo-bn": "#d58fb0",
    "llmsched-wo-uncertainty": "#a8456b",
    "llmsched": COLOURS[0],
    "llmsched-pool": COLOURS[1],
}
WORKLOAD = {"mixed": COLOURS[0], "predefined": COLOURS[1], "chain": COLOURS[2], "planning": COLOURS[3]}
SOURCE = {"paper": COLOURS[0], "measured": COLOURS[2], "traces": COLOURS[1]}
ESTIMATOR = {"mean": "#8c8c8c", "bayesnet": COLOURS[0], "history": COLOURS[1]}
SOURCE_NAMES = {"paper": "paper-like generator", "measured": "measured generator", "traces": "public traces"}


def figure(width: float, height: float, title: str, note: str = "") -> Figure:
    """An empty one; note: a quieter second line."""
    made = Figure(figsize=(width, height), layout="constrained")
    made.suptitle(title + (f"\n{note}" if note else ""), fontsize=11)
    return made


def bare(axes: Axes, title: str = "") -> None:
    """No box, a small title, a light grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_size(9)
    axes.yaxis.label.set_size(9)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, fontsize=10)


def save(made: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=120)

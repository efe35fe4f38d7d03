"""Shows what a comparison of policies found: a table for the terminal, a picture for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from llmsched.replay import ReplayRun


def table(document: dict[str, Any], *, unit: str = "s") -> Table:
    """One row per policy of a replay or simulation document; changes are against the first policy."""
    shown = Table(title="Job completion time", title_justify="left")
    for column in ("policy", "jobs", "mean", "95 % interval", "P95", "utilisation llm", "change of the mean"):
        shown.add_column(column, justify="left" if column == "policy" else "right")
    first = document["summary"][0]["policy"]
    for entry in document["summary"]:
        runs = [r for r in document["runs"] if r["policy"] == entry["policy"]]
        low, high = entry["ci95"] or (float("nan"), float("nan"))
        versus = entry["vs"].get(first)
        change = "" if versus is None else "{:+.1f} % [{:+.1f}, {:+.1f}]".format(versus["change_pct"], *versus["ci95"])
        p95 = sum(r["p95_jct"] or 0.0 for r in runs) / len(runs)
        busy = sum(r["utilisation"].get("llm", 0.0) for r in runs) / len(runs)
        shown.add_row(
            entry["policy"],
            str(sum(r["jobs"] for r in runs)),
            f"{entry['mean_jct']:.2f} {unit}" if entry["mean_jct"] is not None else "–",
            f"{low:.2f} – {high:.2f}",
            f"{p95:.2f}",
            f"{busy:.0%}",
            change,
        )
    return shown


def plot(runs: Sequence[ReplayRun], directory: Path) -> Path:
    """Writes `completion_times.png`: share of jobs done within a time, one line per policy, and means by application."""
    import matplotlib as mpl  # 0.3 s and only needed here

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    directory.mkdir(parents=True, exist_ok=True)
    policies = list(dict.fromkeys(run.policy for run in runs))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    applications = sorted({a for run in runs for a in run.by_application()})
    for k, policy in enumerate(policies):
        own = [run for run in runs if run.policy == policy]
        times = sorted(t for run in own for t in run.completion_times)
        left.step(times, [(i + 1) / len(times) for i in range(len(times))], where="post", label=policy)
        means = []
        for application in applications:
            of = [t for run in own for t in run.by_application().get(application, [])]
            means.append(sum(of) / len(of) if of else 0.0)
        width = 0.8 / len(policies)
        right.bar([x + k * width for x in range(len(applications))], means, width, label=policy)
    left.set(xlabel="job completion time (s)", ylabel="share of jobs", xscale="log")
    left.grid(alpha=0.3)
    left.legend()
    right.set(ylabel="mean job completion time (s)", yscale="log")
    right.set_xticks([x + 0.4 for x in range(len(applications))], applications, rotation=20, ha="right")
    right.grid(axis="y", alpha=0.3)
    path = directory / "completion_times.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path

"""Which estimator: `mean`, `bayesnet` and `history` on traced jobs they have not learned from, by training jobs.

    python benchmarks/estimators.py [--traces DIR] [--seeds N] [--out DIR]

The 30 % of the queries that `llmsched simulate` holds out are relived stage by stage; at every point each estimator
says what is left. Writes JSON, a picture and the section "Which estimator" of docs/reproduction.md.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent / "reproduction"))

import pictures
from document import Options, options, percent, table

from llmsched.catalogue import installed_applications
from llmsched.model.application import Application
from llmsched.model.latency import GENERIC_7B
from llmsched.model.recording import Recording
from llmsched.profiler import Curves, Estimator, Knowledge, Truth, fit
from llmsched.profiler.cases import Tables
from llmsched.profiler.knowledge import make_estimator
from llmsched.profiler.profile import Profile
from llmsched.profiler.validation import kendall_tau
from llmsched.profiler.walk import walk
from llmsched.simulator.experiment import is_held_out, query_of
from llmsched.workloads import APPLICATIONS, read_traces

NAME = "estimators"
ESTIMATORS = ("mean", "bayesnet", "history")
#: Training jobs, and how often so many are drawn; None: all there are.
TRAINING: Mapping[int | None, int] = {30: 5, 100: 3, 500: 2, None: 1}
#: Held-out jobs of an application that are asked about, at every point of theirs; for an interval at every third.
ASKED = 150
EVERY = 3
CURVES = Curves(default=GENERIC_7B)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """What one estimator said at every point. Arrays are (points,) but quantiles, (points, 4), nan where not asked.

    actual: seconds that were left. depth: stages that were over. query: number of the job's query.
    """

    predicted: Array
    quantiles: Array
    actual: Array
    depth: NDArray[np.int64]
    query: NDArray[np.int64]

    def score(self) -> dict[str, float | None]:
        """mae, rmse: relative to the mean of what was left. tau: Kendall's tau-b over all points of the application;
        tau_equal: among points with equally many stages over, by their number. cover50, cover90: of the central
        intervals."""
        error = self.predicted - self.actual
        scale = max(float(self.actual.mean()), 1e-9)
        slack = 1e-6 * (1.0 + self.actual)  # a point mass counts as covered
        asked = np.isfinite(self.quantiles[:, 0])
        q05, q25, q75, q95 = self.quantiles.T
        inside50 = (q25 - slack <= self.actual) & (self.actual <= q75 + slack)
        inside90 = (q05 - slack <= self.actual) & (self.actual <= q95 + slack)
        return {
            "mae": float(np.abs(error).mean()) / scale,
            "rmse": float(np.sqrt((error**2).mean())) / scale,
            "tau": kendall_tau(self.predicted, self.actual),
            "tau_equal": self._tau_at_equal_depth(),
            "cover50": float(inside50[asked].mean()),
            "cover90": float(inside90[asked].mean()),
        }

    def _tau_at_equal_depth(self) -> float | None:
        found = []
        for d in np.unique(self.depth):
            here = self.depth == d
            tau = kendall_tau(self.predicted[here], self.actual[here]) if here.sum() >= 10 else None
            if tau is not None:
                found.append((tau, int(here.sum())))
        return float(np.average([t for t, _ in found], weights=[n for _, n in found])) if found else None

    def mae_by_query(self) -> Array:
        """(queries,) summed absolute error of each query."""
        return np.bincount(self.query, np.abs(self.predicted - self.actual))

    def worst(self, queries: int) -> float:
        """Share of the absolute error that so many queries make."""
        each = np.sort(self.mae_by_query())
        return float(each[-queries:].sum() / max(each.sum(), 1e-12))


def ask(application: Application, jobs: Sequence[Recording], estimators: Mapping[str, Estimator]) -> dict[str, Answers]:
    """The same questions to every estimator."""
    numbers = {query: k for k, query in enumerate(dict.fromkeys(query_of(job.job_id) for job in jobs))}
    said: dict[str, list[tuple[float, ...]]] = {name: [] for name in estimators}
    actual, depth, query = [], [], []
    for recording in jobs:
        truth = Truth({recording.job_id: recording}, CURVES)
        for job in walk(application, recording, recording.job_id):
            actual.append(sum(work.total for work in truth.remaining(job).values()))
            depth.append(sum(stage.is_over for stage in job.stages.values()))
            query.append(numbers[query_of(recording.job_id)])
            for name, estimator in estimators.items():
                mean = sum(work.total for work in estimator.remaining(job).values())
                interval: tuple[float, ...] = (np.nan,) * 4
                if len(actual) % EVERY == 0:
                    interval = estimator.outlook(job).quantiles(0.05, 0.25, 0.75, 0.95)
                said[name].append((mean, *interval))
    rows = {name: np.array(own, dtype=float) for name, own in said.items()}
    return {
        name: Answers(own[:, 0], own[:, 1:], np.array(actual), np.array(depth), np.array(query))
        for name, own in rows.items()
    }


def against(mine: Answers, theirs: Answers) -> tuple[float, list[float]]:
    """Change of the mean absolute error in per cent, with a paired bootstrap 95 % interval over queries."""
    a, b = mine.mae_by_query(), theirs.mae_by_query()
    drawn = np.random.default_rng(0).integers(len(a), size=(5000, len(a)))
    ratios = a[drawn].sum(axis=1) / np.maximum(b[drawn].sum(axis=1), 1e-12)
    low, high = np.percentile((ratios - 1) * 100, [2.5, 97.5])
    return float(a.sum() / max(b.sum(), 1e-12) - 1) * 100, [float(low), float(high)]


def split(jobs: Sequence[Recording], application: str) -> tuple[list[Recording], list[Recording]]:
    """Jobs to learn from, and jobs to be asked about: never of the same query."""
    learn = [job for job in jobs if not is_held_out(application, job.job_id)]
    held = [job for job in jobs if is_held_out(application, job.job_id)]
    if len(held) > ASKED:
        held = Random(f"estimators/asked/{application}").sample(held, ASKED)
    return learn, held


def made(profile: Profile) -> dict[str, Estimator]:
    """Fresh ones, with nothing remembered."""
    tables = Tables(profile.history, CURVES)
    return {name: make_estimator(name, profile, tables) for name in ESTIMATORS}


def measure(name: str, application: Application, jobs: Sequence[Recording], draws: int | None = None) -> dict[str, Any]:
    """Everything about one application. draws: at most so many per number of training jobs."""
    learn, held = split(jobs, name)
    by_training: dict[str, Any] = {}
    for n, times in TRAINING.items():
        if n is not None and n >= len(learn):
            continue
        rng = Random(f"estimators/{name}/{n}")
        scores: dict[str, list[dict[str, float | None]]] = {e: [] for e in ESTIMATORS}
        for _ in range(min(times, draws or times)):
            profile = fit(application, learn if n is None else rng.sample(learn, n), curves=CURVES, estimator="mean")
            answers = ask(application, held, made(profile))
            for e in ESTIMATORS:
                scores[e].append(answers[e].score())
        by_training["all" if n is None else str(n)] = {
            e: {key: _mean([s[key] for s in own]) for key in own[0]} for e, own in scores.items()
        }
    began = time.perf_counter()
    chosen = fit(application, learn, curves=CURVES)
    return {
        "training_jobs": len(learn),
        "asked_jobs": len(held),
        "points": len(answers["mean"].actual),
        "scores": by_training,
        "history_against_mean": against(answers["history"], answers["mean"]),
        "bayesnet_against_mean": against(answers["bayesnet"], answers["mean"]),
        "history_against_bayesnet": against(answers["history"], answers["bayesnet"]),
        "chosen": chosen.estimator,
        "worst_two_queries": {e: round(answers[e].worst(2), 4) for e in ESTIMATORS},
        "fit_s": {"with_cross_validation": time.perf_counter() - began, "alone": _fit_seconds(application, learn)},
        "answer_us": timed(application, held, profile),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return round(sum(known) / len(known), 4) if known else None


def _fit_seconds(application: Application, learn: Sequence[Recording]) -> float:
    began = time.perf_counter()
    fit(application, learn, curves=CURVES, estimator="mean")
    return time.perf_counter() - began


def timed(application: Application, jobs: Sequence[Recording], profile: Profile) -> dict[str, dict[str, float]]:
    """Microseconds per `remaining`. cold: median of the first questions ever, at each point of a job that went far;
    warm: the median point of many jobs, asked again, the best of three; looked_up: asked again at the same moment of
    the same job, which `Knowledge` remembers."""
    jobs = sorted(jobs, key=lambda job: -len(job.stages))[:40]
    found: dict[str, dict[str, float]] = {}
    for name in ESTIMATORS:
        cold = [us for _ in range(3) for us in _asked(application, jobs[:1], made(profile)[name])]
        estimator = made(profile)[name]
        passes = np.array([list(_asked(application, jobs, estimator)) for _ in range(4)])
        knowledge = Knowledge([profile], CURVES)
        knowledge.use(profile.application, name)
        again = [
            min(_once(lambda: knowledge.remaining(job)) for _ in range(4))  # noqa: B023 (called at once)
            for job in walk(application, jobs[0])
        ]
        found[name] = {
            "cold": round(float(np.median(cold)), 1),
            "warm": round(float(np.median(passes[1:].min(axis=0))), 1),
            "looked_up": round(float(np.median(again)), 2),
        }
    return found


def _asked(application: Application, jobs: Sequence[Recording], estimator: Estimator) -> Iterator[float]:
    for recording in jobs:
        for job in walk(application, recording, recording.job_id):
            yield _once(lambda: estimator.remaining(job))  # noqa: B023 (called at once)


def _once(question: Any) -> float:
    began = time.perf_counter()
    question()
    return (time.perf_counter() - began) * 1e6


# -------------------------------------------------------------------------------------------------------- report


def draw(found: Mapping[str, Any], given: Options) -> None:
    figure = pictures.figure(
        13,
        7.2,
        "Estimators on held-out queries of the public traces",
        "expected remaining work of jobs, asked at every stage",
    )
    panels = figure.subplots(3, len(found), sharey="row", squeeze=False)
    rows = (
        "mean absolute error /\nmean remaining work",
        "Kendall's tau-b\nwithin the application",
        "inside the interval (%)",
    )
    for k, (application, entry) in enumerate(found.items()):
        xs = list(range(len(entry["scores"])))
        labels = [n if n != "all" else f"all\n({entry['training_jobs']})" for n in entry["scores"]]
        for e in ESTIMATORS:
            own = [scores[e] for scores in entry["scores"].values()]
            style = {"color": pictures.ESTIMATOR[e], "marker": "o", "markersize": 3.5, "linewidth": 1.6}
            panels[0, k].plot(xs, [s["mae"] for s in own], label=e, **style)
            panels[1, k].plot(xs, [np.nan if s["tau"] is None else s["tau"] for s in own], **style)
            panels[2, k].plot(xs, [100 * s["cover90"] for s in own], **style)
            panels[2, k].plot(xs, [100 * s["cover50"] for s in own], **(style | {"linestyle": ":"}))
        for goal in (50, 90):
            panels[2, k].axhline(goal, color="#444444", linewidth=0.8)
        for row in range(3):
            pictures.bare(panels[row, k], application.replace("_", " ") if row == 0 else "")
            panels[row, k].set_xticks(xs, labels if row == 2 else [""] * len(xs))
        panels[2, k].set_xlabel("training jobs")
    for row, label in enumerate(rows):
        panels[row, 0].set_ylabel(label)
    panels[0, 0].set_ylim(bottom=0)
    panels[2, 0].set_ylim(0, 102)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
        title="lowest row: solid 90 % interval, dotted 50 % interval",
        title_fontsize=8,
    )
    pictures.save(figure, given.places.image(NAME))


def section(found: Mapping[str, Any], given: Options) -> str:
    errors, quality, costs = [], [], []
    for application, entry in found.items():
        for e in ESTIMATORS:
            by_training = entry["scores"]
            errors.append(
                [
                    f"{application}, `{e}`",
                    *(_two(by_training[n][e]["mae"]) if n in by_training else "" for n in ("30", "100", "500", "all")),
                    "" if e == "mean" else percent(*entry[f"{e}_against_mean"], sign=True),
                ]
            )
            own = by_training["all"][e]
            quality.append(
                [
                    f"{application}, `{e}`" + (" (chosen)" if entry["chosen"] == e else ""),
                    *(_two(own[key]) for key in ("mae", "rmse", "tau", "tau_equal")),
                    *(f"{100 * own[key]:.0f} %" for key in ("cover50", "cover90")),
                ]
            )
        costs.append(
            [
                application,
                str(entry["training_jobs"]),
                f"{entry['fit_s']['alone']:.2f} s",
                f"{entry['fit_s']['with_cross_validation']:.2f} s",
                *(f"{entry['answer_us'][e]['cold']:,.0f} / {entry['answer_us'][e]['warm']:.0f}" for e in ESTIMATORS),
                f"{max(entry['answer_us'][e]['looked_up'] for e in ESTIMATORS):.1f}",
            ]
        )
    return f"""
## Which estimator

{given.places.link(NAME, "Errors, rank correlation and coverage of the estimators by number of training jobs")}

Asked about at most {ASKED} jobs of the held-out 30 % of the queries, at submission and after every stage; learned from
jobs of the other queries (30, 100 and 500 jobs: mean over {TRAINING[30]}, {TRAINING[100]} and {TRAINING[500]} draws).
Errors are relative to the mean of what was left.

Mean absolute error by training jobs, and with all of them its change against `mean` (paired bootstrap 95 % over
queries):

{table(["", "30", "100", "500", "all", "all, against `mean`"], errors)}

With all training jobs. *tau*: Kendall's tau-b over all points of an application; *at equal progress*: among points with
equally many stages over (a dash: nothing varies). *Chosen*: what cross-validation on the training part chose.

{table(["", "MAE", "RMSE", "tau", "at equal progress", "50 % interval", "90 % interval"], quality)}

Cost, on a machine that was busy with other work, too. *Fit alone*: history and network; *chosen*: with the
cross-validation that chooses. Microseconds per answer, cold / warm: the first question on a course ever, and a job on a
course that others took before. *Again*: the same job at the same moment, which is looked up.

{table(["", "jobs", "fit alone", "fit, chosen", *(f"`{e}`" for e in ESTIMATORS), "again"], costs)}

{verdict(found)}
"""


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def verdict(found: Mapping[str, Any]) -> str:
    """Who wins where, and what that means for the default."""
    sentences = []
    for first, second in (("history", "bayesnet"), ("history", "mean"), ("bayesnet", "mean")):
        better, worse = [], []
        for application, entry in found.items():
            _, (low, high) = entry[f"{first}_against_{second}"]
            if high < 0:
                better.append(application)
            elif low > 0:
                worse.append(application)
        sentences.append(
            f"* `{first}` has a smaller absolute error than `{second}` on {_names(better)},"
            f" a larger one on {_names(worse)}."
        )
    chosen = sorted({entry["chosen"] for entry in found.values()})
    missed = []
    for application, entry in found.items():
        own = {e: s["rmse"] for e, s in entry["scores"]["all"].items()}
        best = min(own, key=lambda e: own[e])
        if own[entry["chosen"]] > 1.01 * own[best]:
            two = {e: f"{100 * share:.0f} %" for e, share in entry["worst_two_queries"].items()}
            mine, other = own[entry["chosen"]], own[best]
            missed.append(
                f"{application.replace('_', ' ')} (RMSE {mine:.2f}, `{best}` {other:.2f}; two queries make"
                f" {two[entry['chosen']]} of its absolute error, {two[best]} of that of `{best}`)"
            )
    lines = [
        "With all training jobs, where the 95 % interval leaves 0 out:",
        "",
        *sentences,
        "",
        "Cross-validation compares squared errors on the training part only, and chooses",
        f"{' and '.join(f'`{c}`' for c in chosen)}: that serves every policy but the faithful `llmsched`, which keeps",
        "the network.",
        f"On the held-out part another one would have been better on {', '.join(missed) or 'none'}.",
    ]
    return "\n".join(lines)


def _names(applications: Sequence[str]) -> str:
    if len(applications) == len(APPLICATIONS):
        return "all six applications"
    return ", ".join(a.replace("_", " ") for a in applications) or "none"


def main(argv: Sequence[str] | None = None) -> int:
    given = options(__doc__, argv)
    if given.traces is None:
        raise SystemExit("name a folder of traces with --traces or LLMSCHED_TRACES")
    path = given.places.results / f"reproduction-{NAME}.json"
    found: dict[str, Any] = {}
    if path.exists() and not given.fresh:
        found = json.loads(path.read_text())
    applications = installed_applications()
    for name, jobs in read_traces(given.traces, APPLICATIONS).items():
        if name not in found:
            began = time.monotonic()
            found[name] = measure(name, applications[name], jobs, given.seeds)
            print(f"  {time.monotonic() - began:5.0f} s  {name}", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
    draw(found, given)
    given.places.write(NAME, section(found, given))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

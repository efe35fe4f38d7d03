"""How good an estimator is: asked about finished jobs it has not learned from, at every stage they completed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from llmsched.model.application import Application
from llmsched.model.recording import Recording
from llmsched.profiler.estimator import Estimator
from llmsched.profiler.history import Array, Curves
from llmsched.profiler.truth import Truth
from llmsched.profiler.walk import walk

#: Points with the same number of completed stages are ranked among each other, if there are so many of them.
_FEWEST_TO_RANK = 10
_NOT_ASKED = (np.nan,) * 4


@dataclass(frozen=True, slots=True)
class Assessment:
    """Errors of the expected remaining work, all pools together.

    mae, rmse: relative to the mean actual remaining work. tau: Kendall's tau-b between predicted and actual, within
    points at which equally many stages were complete, weighted by their number; None if nothing could be ranked.
    cover50, cover90: share of actual values inside the central 50 % and 90 % interval. points: how many questions.
    """

    mae: float
    rmse: float
    tau: float | None
    cover50: float
    cover90: float
    points: int

    def to_json(self) -> dict[str, float | int | None]:
        return {k: None if v is None else round(v, 4) for k, v in asdict(self).items()}


def assess(
    application: Application,
    recordings: Iterable[Recording],
    estimators: Mapping[str, Estimator],
    curves: Curves,
    *,
    every: int = 1,
) -> dict[str, Assessment]:
    """Asks every estimator the same questions about these jobs; for intervals only at every `every`-th point."""
    answers: dict[str, list[tuple[float, ...]]] = {name: [] for name in estimators}
    actual: list[float] = []
    depth: list[int] = []
    for recording in recordings:
        truth = Truth({recording.job_id: recording}, curves)
        for job in walk(application, recording, recording.job_id):
            actual.append(sum(work.total for work in truth.remaining(job).values()))
            depth.append(sum(stage.is_over for stage in job.stages.values()))
            for name, estimator in estimators.items():
                mean = sum(work.total for work in estimator.remaining(job).values())
                asked = len(actual) % every == 0
                interval = estimator.outlook(job).quantiles(0.05, 0.25, 0.75, 0.95) if asked else _NOT_ASKED
                answers[name].append((mean, *interval))
    return {
        name: _assessment(np.array(rows, dtype=float).reshape(-1, 5), np.array(actual), np.array(depth))
        for name, rows in answers.items()
    }


def _assessment(answers: Array, actual: Array, depth: Array) -> Assessment:
    if not len(actual):
        return Assessment(0.0, 0.0, None, 1.0, 1.0, 0)
    scale = max(float(actual.mean()), 1e-9)
    error = answers[:, 0] - actual
    slack = 1e-6 * (1.0 + actual)  # a point mass counts as covered
    asked = np.isfinite(answers[:, 1])
    inside50 = (answers[:, 2] - slack <= actual) & (actual <= answers[:, 3] + slack)
    inside90 = (answers[:, 1] - slack <= actual) & (actual <= answers[:, 4] + slack)
    return Assessment(
        float(np.abs(error).mean()) / scale,
        float(np.sqrt((error**2).mean())) / scale,
        _tau_within(answers[:, 0], actual, depth),
        float(inside50[asked].mean()) if asked.any() else 1.0,
        float(inside90[asked].mean()) if asked.any() else 1.0,
        len(actual),
    )


def _tau_within(predicted: Array, actual: Array, depth: Array) -> float | None:
    taus, counts = [], []
    for d in np.unique(depth):
        here = depth == d
        if here.sum() >= _FEWEST_TO_RANK:
            tau = kendall_tau(predicted[here], actual[here])
            if tau is not None:
                taus.append(tau)
                counts.append(int(here.sum()))
    return float(np.average(taus, weights=counts)) if taus else None


def kendall_tau(x: Array, y: Array) -> float | None:
    """Kendall's tau-b; None if one of the two does not vary. O(n^2).

    >>> round(kendall_tau(np.array([12.0, 11, 30, 30]), np.array([10.0, 20, 30, 40])), 6)
    0.547723
    """
    sx, sy = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    varied = np.abs(sx).sum() * np.abs(sy).sum()
    return float((sx * sy).sum() / np.sqrt(varied)) if varied else None

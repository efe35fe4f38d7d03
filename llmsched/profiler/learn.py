"""Learns a profile from finished jobs: history, network, and which estimator to trust, by cross-validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from llmsched.errors import ProfileError
from llmsched.model.application import Application
from llmsched.model.recording import Recording
from llmsched.profiler.cases import Tables
from llmsched.profiler.history import Curves, History
from llmsched.profiler.knowledge import ESTIMATORS, make_estimator
from llmsched.profiler.profile import Profile
from llmsched.profiler.stages import learn_stages
from llmsched.profiler.validation import Assessment, assess

#: Fewer jobs teach nothing that the declared means do not say better.
MIN_JOBS = 10
#: Newest jobs that are learned from: more of them cost time at every estimate and change nothing.
MAX_JOBS = 2_000
_FOLDS = 3
#: Jobs asked about per fold.
_ASKED = 25
#: An estimator that is this much worse than the best is still as good, if it stands earlier in `ESTIMATORS`.
_TIE = 1.01


def fit(
    application: Application,
    recordings: Sequence[Recording],
    *,
    curves: Curves | None = None,
    learned_at: float = 0.0,
    estimator: str | None = None,
) -> Profile:
    """A profile of the application's finished jobs, oldest first; the newest `MAX_JOBS` of them count.

    curves: of the pools' engines, only to compare estimators in seconds. estimator: use this one, without comparing.
    Raises ProfileError, in one sentence: fewer than `MIN_JOBS` jobs, a job of another application, an impossible cost.
    """
    if len(recordings) < MIN_JOBS:
        raise ProfileError(
            f"{len(recordings)} jobs of {application.name!r} are too few to learn from; at least {MIN_JOBS} are needed"
        )
    curves = curves or Curves()
    recordings = recordings[-MAX_JOBS:]
    history = History.of(application, recordings)
    scores: dict[str, Assessment] = {}
    if estimator is None:
        scores = cross_validate(application, recordings, history, curves)
        best = min(score.rmse for score in scores.values())
        estimator = next(name for name in ESTIMATORS if name in scores and scores[name].rmse <= _TIE * best)
    return Profile(
        application.name,
        application.version,
        history,
        learn_stages(Tables(history, curves)),
        estimator,
        {name: score.to_json() for name, score in scores.items()},
        learned_at,
    )


def cross_validate(
    application: Application, recordings: Sequence[Recording], history: History, curves: Curves
) -> dict[str, Assessment]:
    """Every estimator, learned from two thirds of the queries and asked about jobs of the others; points pooled.

    history: of the same recordings, in the same order. All runs of one query stay on one side.
    """
    found: dict[str, list[Assessment]] = {}
    folds = [fold_of(query) for query in history.queries]
    for fold in range(_FOLDS):
        learn = [i for i, f in enumerate(folds) if f != fold]
        asked = [recordings[i] for i, f in enumerate(folds) if f == fold]
        if len(learn) < MIN_JOBS or not asked:
            continue
        step = max(1, len(asked) // _ASKED)
        profile = fit_quick(application, history.take(learn), curves)
        tables = Tables(profile.history, curves)
        estimators = {name: make_estimator(name, profile, tables) for name in ESTIMATORS}
        if profile.network is None:
            del estimators["bayesnet"]
        for name, score in assess(application, asked[::step][:_ASKED], estimators, curves, every=5).items():
            found.setdefault(name, []).append(score)
    return {name: _pooled(scores) for name, scores in found.items()} or {"mean": _pooled([])}


def fit_quick(application: Application, history: History, curves: Curves) -> Profile:
    """A profile of a history, without choosing an estimator."""
    network = learn_stages(Tables(history, curves))
    return Profile(application.name, application.version, history, network, "history")


def fold_of(query: str) -> int:
    """The same for all runs of a query, in every process."""
    return hashlib.sha256(f"fold|{query}".encode()).digest()[0] % _FOLDS


def _pooled(scores: Sequence[Assessment]) -> Assessment:
    """The mean over folds, each by its number of points."""
    points = sum(s.points for s in scores)
    if not points:
        return Assessment(0.0, 0.0, None, 1.0, 1.0, 0)

    def mean(name: str) -> float:
        return float(sum(getattr(s, name) * s.points for s in scores) / points)

    ranked = [s for s in scores if s.tau is not None]
    weight = sum(s.points for s in ranked)
    tau = sum((s.tau or 0.0) * s.points for s in ranked) / weight if weight else None
    return Assessment(mean("mae"), mean("rmse"), tau, mean("cover50"), mean("cover90"), points)

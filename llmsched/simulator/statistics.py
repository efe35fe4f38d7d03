"""What one run measured, and what several runs say together: means, paired changes, shares, bootstrap intervals.

Runs are compared by *samples*: one number per seed, or per job where there is but one seed. Sample k of every policy
comes from the same jobs, arriving at the same moments, so that comparisons are paired. An interval is the 2.5 % and
97.5 % percentile of a statistic over resamples (drawn with replacement, pairs kept together); the same number of
samples is always resampled in the same way, so that a figure does not depend on what else was compared.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile intervals).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float64]

_PERCENTILES = (2.5, 97.5)

#: The baseline of the clairvoyant gain, and the orders that know the future.
BASELINE = "fcfs"
ORACLES = ("oracle-srtf", "oracle-pool")
#: The order of who knows what can be known: the truth of stages that are ready, history for the rest.
CEILING = "oracle-ready"


@dataclass(slots=True)
class Run:
    """What one run measured.

    jobs: (application, completion time in seconds or None for a job that did not complete), in order of arrival.
    alone: seconds each of them takes with the machines to itself, in the same order; empty if that is not known.
    deadlines: seconds in which each should have been over, or None, in the same order; empty if no job had any.
    """

    policy: str
    seed: int
    jobs: list[tuple[str, float | None]] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    deadlines: list[float | None] = field(default_factory=list)
    #: Mean seconds of an LLM call from the moment it could start to its end; None where nobody measured it.
    mean_request: float | None = None
    makespan: float = 0.0
    decisions: int = 0
    decision_ms: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(("mean", "p50", "p99")))
    utilisation: dict[str, float] = field(default_factory=dict)

    @property
    def completion_times(self) -> list[float]:
        return [seconds for _, seconds in self.jobs if seconds is not None]

    @property
    def slowdowns(self) -> Samples:
        """Completion time over the time alone, of completed jobs that take any."""
        pairs = zip((seconds for _, seconds in self.jobs), self.alone, strict=False)
        return np.array([seconds / alone for seconds, alone in pairs if seconds is not None and alone > 0])

    @property
    def mean(self) -> float:
        """Mean completion time; nan if nothing completed."""
        times = self.completion_times
        return float(np.mean(times)) if times else float("nan")

    def by_application(self) -> dict[str, list[float]]:
        """Completion times of each application that completed a job."""
        times: dict[str, list[float]] = {}
        for application, seconds in self.jobs:
            if seconds is not None:
                times.setdefault(application, []).append(seconds)
        return dict(sorted(times.items()))

    def punctuality(self) -> dict[str, float | int | None]:
        """jobs: with a deadline. on_time: the share that met it. mean_lateness: seconds after it, 0 of those that did.

        A job that did not complete met no deadline and has no lateness.
        """
        pairs = [(s, d) for (_, s), d in zip(self.jobs, self.deadlines, strict=True) if d is not None]
        late = [max(0.0, seconds - deadline) for seconds, deadline in pairs if seconds is not None]
        return {
            "jobs": len(pairs),
            "on_time": sum(seconds == 0.0 for seconds in late) / len(pairs) if pairs else None,
            "mean_lateness": float(np.mean(late)) if late else None,
        }

    def to_json(self) -> dict[str, Any]:
        """One entry of `runs` in the contract: jobs counts all, means and percentiles the completed ones."""
        times = self.completion_times
        p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist() if times else (None, None, None)
        slowdowns = self.slowdowns
        deadlines = {"deadlines": self.punctuality()} if self.deadlines else {}
        return {
            "policy": self.policy,
            "seed": self.seed,
            "jobs": len(self.jobs),
            "failed": len(self.jobs) - len(times),
            "mean_jct": self.mean if times else None,
            "p50_jct": p50,
            "p95_jct": p95,
            "p99_jct": p99,
            "mean_request": self.mean_request,
            "mean_slowdown": float(slowdowns.mean()) if len(slowdowns) else None,
            "max_slowdown": float(slowdowns.max()) if len(slowdowns) else None,
            "jain": jain(slowdowns),
            "makespan": self.makespan,
            "decisions": self.decisions,
            "decision_ms": self.decision_ms,
            "utilisation": self.utilisation,
            "apps": {a: {"jobs": len(t), "mean_jct": float(np.mean(t))} for a, t in self.by_application().items()},
        } | deadlines


def jain(slowdowns: Samples) -> float | None:
    """Jain's index of fairness of the jobs' slowdowns, (Σx)² / (n Σx²); 1: all jobs are slowed down alike.

    None for no jobs. Source: Jain, Chiu, Hawe, A Quantitative Measure of Fairness (DEC TR-301, 1984).

    >>> jain(np.array([2.0, 2.0, 2.0]))
    1.0
    >>> jain(np.array([1.0, 3.0]))
    0.8
    """
    if not len(slowdowns):
        return None
    return float(slowdowns.sum() ** 2 / (len(slowdowns) * (slowdowns**2).sum()))


def samples_of(runs: Sequence[Run]) -> dict[str, Samples]:
    """The samples of each policy, in order of first appearance; nan for what did not complete.

    With several seeds a sample is the mean of one seed, seeds in order; with one seed it is a job.
    """
    by_policy: dict[str, list[Run]] = {}
    for run in runs:
        by_policy.setdefault(run.policy, []).append(run)
    if len({run.seed for run in runs}) > 1:
        return {p: np.array([r.mean for r in sorted(own, key=lambda r: r.seed)]) for p, own in by_policy.items()}
    return {p: np.array([t for r in own for _, t in r.jobs], dtype=float) for p, own in by_policy.items()}


def summary(samples: Mapping[str, Samples]) -> list[dict[str, Any]]:
    """`summary` of the contract: mean and interval of each policy, change against every other one.

    Where FCFS and an oracle were compared, also `clairvoyant_share`: how much of the gain of knowing the future a
    policy got, (FCFS - policy) / (FCFS - the better oracle) in per cent; and where the ceiling was compared,
    `ceiling_share`, the same of what can be known.
    """
    entries = []
    oracle = best_oracle(samples)
    bounds = {"clairvoyant_share": oracle, "ceiling_share": CEILING if CEILING in samples else None}
    for policy, own in samples.items():
        known = own[~np.isnan(own)]
        entry = {
            "policy": policy,
            "mean_jct": float(known.mean()) if len(known) else None,
            "ci95": interval(known),
            "vs": {
                other: found
                for other, theirs in samples.items()
                if other != policy and len(theirs) == len(own) and (found := change(own, theirs)) is not None
            },
        }
        for key, bound in bounds.items():
            if bound is not None and BASELINE in samples:
                got = share(samples[BASELINE], own, samples[bound])
                if got is not None:
                    entry[key] = got
        entries.append(entry)
    return entries


def interval(samples: Samples) -> list[float] | None:
    """Of the mean; None for fewer than two samples.

    >>> interval(np.array([2.0, 2.0, 2.0]))
    [2.0, 2.0]
    """
    if len(samples) < 2:
        return None
    return _between(_resampled(samples.tobytes()))


def change(mine: Samples, theirs: Samples) -> dict[str, Any] | None:
    """Change of the mean in per cent, over pairs that both have; None for fewer than two.

    >>> change(np.array([2.0, 4.0]), np.array([4.0, 8.0]))
    {'change_pct': -50.0, 'ci95': [-50.0, -50.0]}
    """
    both = ~(np.isnan(mine) | np.isnan(theirs))
    mine, theirs = mine[both], theirs[both]
    if len(mine) < 2:
        return None
    ratios = _resampled(mine.tobytes()) / _resampled(theirs.tobytes())
    return {
        "change_pct": float((mine.mean() / theirs.mean() - 1) * 100),
        "ci95": _between((ratios - 1) * 100),
    }


def share(baseline: Samples, mine: Samples, oracle: Samples) -> dict[str, Any] | None:
    """Part of the gain from `baseline` to `oracle` that `mine` has, in per cent; None if there is no gain at all.

    ci95 is None where a resample has no gain either: the share has no meaning then.

    >>> share(np.array([10.0, 20.0]), np.array([7.0, 14.0]), np.array([6.0, 12.0]))
    {'share_pct': 75.0, 'ci95': [75.0, 75.0]}
    """
    if not len(baseline) == len(mine) == len(oracle):
        return None
    all_three = ~(np.isnan(baseline) | np.isnan(mine) | np.isnan(oracle))
    baseline, mine, oracle = baseline[all_three], mine[all_three], oracle[all_three]
    if not len(mine) or not (gain := float(baseline.mean() - oracle.mean())) > 0:
        return None
    found: dict[str, Any] = {"share_pct": float(baseline.mean() - mine.mean()) / gain * 100, "ci95": None}
    if len(mine) > 1:
        before = _resampled(baseline.tobytes())
        gains = before - _resampled(oracle.tobytes())
        if gains.min() > 0:
            found["ci95"] = _between((before - _resampled(mine.tobytes())) / gains * 100)
    return found


def best_oracle(samples: Mapping[str, Samples]) -> str | None:
    """The oracle with the smaller mean; None unless FCFS and an oracle were compared."""
    oracles = [name for name in ORACLES if name in samples and not np.isnan(samples[name]).all()]
    if BASELINE not in samples or not oracles:
        return None
    return min(oracles, key=lambda name: float(np.nanmean(samples[name])))


def _between(values: Samples) -> list[float]:
    low, high = np.percentile(values, _PERCENTILES).tolist()
    return [low, high]


@lru_cache(maxsize=64)
def _resampled(samples: bytes) -> Samples:
    """The mean of every resample. Kept, because every policy is compared with every other one."""
    values = np.frombuffer(samples)
    drawn = _drawn(len(values))
    rows = 1 + 1_000_000 // len(values)  # at a time: all of them would take 80 MB for 10,000 jobs
    blocks = (drawn[k : k + rows] for k in range(0, len(drawn), rows))
    return np.concatenate([values[block].mean(axis=1) for block in blocks])


@lru_cache(maxsize=2)
def _drawn(n: int) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """Resamples as rows of positions: many of few samples (seeds), fewer of many (jobs)."""
    shape = (10_000 if n <= 100 else 1_000, n)
    rng = np.random.default_rng(0)
    return rng.integers(n, size=shape, dtype=np.uint16) if n < 1 << 16 else rng.integers(n, size=shape, dtype=np.uint32)

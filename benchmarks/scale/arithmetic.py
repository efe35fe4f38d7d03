"""What is made of raw measurements: quantiles of scraped histograms, growth per job, exponents. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, log
from statistics import mean, median


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram as Prometheus exposes it. counts: upper bound in seconds -> observations up to it, ascending."""

    counts: Mapping[float, float]
    total: float

    @classmethod
    def read(cls, exposition: str, name: str) -> Buckets:
        """The histogram `name`, all its series added up. Raises KeyError where the text has none of it."""
        counts: dict[float, float] = {}
        total: float | None = None
        for line in exposition.splitlines():
            if line.startswith(f"{name}_bucket{{"):
                labels, _, value = line.rpartition(" ")
                bound = float(labels.rpartition('le="')[2].partition('"')[0])
                counts[bound] = counts.get(bound, 0.0) + float(value)
            elif line.startswith((f"{name}_sum ", f"{name}_sum{{")):
                total = (total or 0.0) + float(line.rpartition(" ")[2])
        if total is None:
            raise KeyError(f"there is no histogram {name} in what was scraped")
        return cls(dict(sorted(counts.items())), total)

    def __sub__(self, before: Buckets) -> Buckets:
        """What was observed since `before`."""
        return Buckets({le: n - before.counts.get(le, 0.0) for le, n in self.counts.items()}, self.total - before.total)

    @property
    def observations(self) -> float:
        return max(self.counts.values(), default=0.0)

    @property
    def mean(self) -> float:
        """In seconds; 0 where nothing was observed."""
        return self.total / self.observations if self.observations else 0.0

    def quantile(self, q: float) -> float:
        """In seconds, linear within a bucket as Prometheus does it; inf beyond the last finite bound.

        >>> Buckets({0.1: 50, 0.2: 100, inf: 100}, 10.0).quantile(0.75)
        0.15
        """
        rank, below, lower = q * self.observations, 0.0, 0.0
        for bound, upto in self.counts.items():
            if upto >= rank and upto > below:
                return inf if bound == inf else lower + (bound - lower) * (rank - below) / (upto - below)
            below, lower = upto, bound
        return 0.0


def value(exposition: str, name: str, **labels: str) -> float:
    """The sum of all series of a metric that have these labels."""
    wanted = [f'{key}="{text}"' for key, text in labels.items()]
    return sum(
        float(line.rpartition(" ")[2])
        for line in exposition.splitlines()
        if line.startswith((f"{name} ", f"{name}{{")) and all(part in line for part in wanted)
    )


def per_job(before: float, after: float, jobs: int) -> float:
    """What each of so many jobs added."""
    return (after - before) / jobs


def exponents(points: Sequence[tuple[float, float]]) -> list[float]:
    """Between neighbours of (size, cost): by which power of the size the cost grows; 1 is linear.

    >>> exponents([(1, 2.0), (10, 20.0), (100, 2000.0)])
    [1.0, 2.0]
    """
    return [round(log(b[1] / a[1]) / log(b[0] / a[0]), 9) for a, b in pairwise(points)]


def ratio(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """After ÷ before of rounds that took turns: the median of the rounds' own ratios, the lowest and the highest."""
    ratios = [b / a for a, b in zip(before, after, strict=True)]
    return median(ratios), min(ratios), max(ratios)


def shares(stacks: Iterable[tuple[str, int]], groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Share of the samples in each group, largest first.

    stacks: (frames from the outermost to the innermost, joined by ";", samples). A sample belongs to the group named
    first of which a part occurs in a frame, looked for from the innermost frame outwards; to "other" if there is none.
    """
    found: dict[str, int] = {}
    for stack, samples in stacks:
        group = _group(stack.split(";"), groups)
        found[group] = found.get(group, 0) + samples
    total = sum(found.values()) or 1
    return {group: n / total for group, n in sorted(found.items(), key=lambda item: (-item[1], item[0]))}


def _group(frames: Sequence[str], groups: Mapping[str, Sequence[str]]) -> str:
    for frame in reversed(frames):
        for group, parts in groups.items():
            if any(part in frame for part in parts):
                return group
    return "other"


def middle(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return mean(values) if values else 0.0

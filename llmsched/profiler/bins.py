"""Discretisation: the few states that a stage's work, or a feature of a job, is counted in.

State 0 of `Bins` is "not executed, 0"; positive values fall into at most k bins that hold about equally many samples
(the paper's k + 1 values of an LLM stage, "based on its frequency"). A bin remembers what it saw: the smallest and the
largest value and their mean. Between two bins the nearer one takes a value, beyond the outer ones the outer one does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from llmsched.errors import ProfileError

Array = npt.NDArray[np.float64]
States = npt.NDArray[np.intp]


def bins_for(n: int) -> int:
    """How many positive bins `n` finished jobs can feed: 3 or 4 below 300, up to 6 above.

    >>> [bins_for(n) for n in (50, 299, 300, 5000)]
    [3, 4, 5, 6]
    """
    return 3 + (n >= 100) + (n >= 300) + (n >= 1000)


@dataclass(frozen=True, slots=True)
class Bins:
    """The states of one amount: 0 = not executed, then bins of positive values in ascending order.

    lo, hi, rep: (n_states,) smallest, largest and mean sample of each state, in the unit of the values (seconds or
    tokens); state 0 has 0, 0, 0. cuts: (n_states - 2,) where one positive bin ends and the next begins; a value on a
    cut belongs below it. Raises ProfileError if the bins are not in order.
    """

    lo: tuple[float, ...]
    hi: tuple[float, ...]
    rep: tuple[float, ...]
    cuts: tuple[float, ...]

    def __post_init__(self) -> None:
        n = len(self.lo)
        if not n == len(self.hi) == len(self.rep) or n == 0 or len(self.cuts) != max(n - 2, 0):
            raise ProfileError("bins need lo, hi and rep of every state, and a cut between each two positive ones")
        line: list[float] = []
        for k, state in enumerate(zip(self.lo, self.rep, self.hi, strict=True)):
            line += (*self.cuts[k - 2 : k - 1], *state) if k >= 2 else state
        if any(line[:3]) or not all(a <= b for a, b in pairwise(line)):
            raise ProfileError("bins must begin with the state 0, 0, 0 and ascend, each cut between its two bins")

    @classmethod
    def fit(cls, values: npt.ArrayLike, k_max: int = 6, min_samples: int = 5) -> Bins:
        """At most `k_max` bins of equal frequency over the positive `values` (n,), with 0 for "not executed".

        Equal values are never parted; a bin of fewer than `min_samples` joins its smaller neighbour. Without a
        positive value there is only state 0. Raises ProfileError for a value that is negative or not finite.
        """
        positive = np.sort(_positive(values))
        if not len(positive):
            return cls((0.0,), (0.0,), (0.0,), ())
        parts = np.split(positive, _merged(_frequency_cuts(positive, k_max), len(positive), min_samples))
        return cls(
            lo=(0.0, *(float(part[0]) for part in parts)),
            hi=(0.0, *(float(part[-1]) for part in parts)),
            rep=(0.0, *(float(np.clip(part.mean(), part[0], part[-1])) for part in parts)),
            cuts=tuple(_between(float(below[-1]), float(above[0])) for below, above in pairwise(parts)),
        )

    @classmethod
    def binary(cls, values: npt.ArrayLike) -> Bins:
        """The two states of a regular stage: not executed, or executed with the mean of the positive values.

        Its one bin is a point, lo = hi = rep, so that the range of a regular stage is its mean while its execution is
        open, and 0 afterwards (A18).
        """
        positive = _positive(values)
        mean = (float(positive.mean()),) if len(positive) else ()
        return cls((0.0, *mean), (0.0, *mean), (0.0, *mean), ())

    @property
    def n_states(self) -> int:
        return len(self.lo)

    def state(self, value: float) -> int:
        """The state of a value; the nearest bin where it lies in none. Raises ProfileError if negative or not finite.

        >>> Bins.fit([0, 0, *range(1, 13)], k_max=3, min_samples=4).state(6.0)
        2
        """
        if not 0 <= value < np.inf:
            raise _not_an_amount(value)
        if value == 0 or self.n_states == 1:
            return 0
        return 1 + bisect_left(self.cuts, value)

    def states(self, values: npt.ArrayLike) -> States:
        """`state` of many values at once: (n,) amounts to (n,) states."""
        amounts = _amounts(values)
        if self.n_states == 1:
            return np.zeros(amounts.shape, np.intp)
        return np.where(amounts == 0, 0, 1 + np.searchsorted(self.cuts, amounts, side="left"))

    def first_above(self, value: float) -> int:
        """The lowest state whose hi exceeds `value`: what a stage that already took so long can still turn out to be.

        The last state where none does. Raises ProfileError if `value` is negative or not finite.
        """
        if not 0 <= value < np.inf:
            raise _not_an_amount(value)
        return next((k for k, hi in enumerate(self.hi) if hi > value), self.n_states - 1)

    def to_json(self) -> dict[str, list[float]]:
        return {"lo": list(self.lo), "hi": list(self.hi), "rep": list(self.rep), "cuts": list(self.cuts)}

    @classmethod
    def from_json(cls, document: Any) -> Bins:
        """Read what `to_json` wrote. Raises ProfileError that names the field."""
        if not isinstance(document, Mapping):
            raise ProfileError("bins are a JSON object with lo, hi, rep and cuts")
        return cls(*(_numbers(document, key) for key in ("lo", "hi", "rep", "cuts")))


@dataclass(frozen=True, slots=True)
class Categories:
    """The states of a feature that is a name, such as a variant: one per value seen, in sorted order."""

    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.values or not all(a < b for a, b in pairwise(self.values)):
            raise ProfileError("categories need at least one value, sorted and without repetition")

    @classmethod
    def fit(cls, values: Iterable[str]) -> Categories:
        """Every value seen. Raises ProfileError if there is none."""
        return cls(tuple(sorted(set(values))))

    @property
    def n_states(self) -> int:
        return len(self.values)

    def state(self, value: str) -> int | None:
        """The state of a value, None for one never seen: then nothing is known, and nothing is evidence.

        >>> Categories.fit(["python", "sql", "python"]).state("perl") is None
        True
        """
        k = bisect_left(self.values, value)
        return k if k < len(self.values) and self.values[k] == value else None

    def states(self, values: Iterable[str]) -> States:
        """`state` of many values: (n,) states. Raises ProfileError for a value never seen."""
        found = {value: k for k, value in enumerate(self.values)}
        try:
            return np.array([found[value] for value in values], np.intp)
        except KeyError as unseen:
            raise ProfileError(f"the value {unseen.args[0]!r} is not among the categories {self.values}") from None

    def to_json(self) -> list[str]:
        return list(self.values)

    @classmethod
    def from_json(cls, document: Any) -> Categories:
        """Read what `to_json` wrote. Raises ProfileError."""
        if not isinstance(document, list) or not all(isinstance(value, str) for value in document):
            raise ProfileError("categories are a JSON list of text")
        return cls(tuple(document))


def _frequency_cuts(ordered: Array, k: int) -> list[int]:
    """Where sorted values part into at most `k` runs of about equal length, each cut moved to a change of value."""
    n = len(ordered)
    cuts: set[int] = set()
    for i in range(1, min(k, n)):
        ideal = round(i * n / k)
        ends = (int(np.searchsorted(ordered, ordered[ideal], side)) for side in ("left", "right"))
        cuts |= set(sorted((end for end in ends if 0 < end < n), key=lambda end: abs(end - ideal))[:1])
    return sorted(cuts)


def _merged(cuts: list[int], n: int, fewest: int) -> list[int]:
    """Cuts less those that leave fewer than `fewest` samples between two: the smallest part joins its smaller side."""
    cuts = list(cuts)
    while cuts:
        sizes = np.diff([0, *cuts, n])
        small = int(sizes.argmin())
        if sizes[small] >= fewest:
            break
        goes_down = small == len(cuts) or (small > 0 and sizes[small - 1] <= sizes[small + 1])
        del cuts[small - 1 if goes_down else small]
    return cuts


def _between(below: float, above: float) -> float:
    middle = below + (above - below) / 2
    return middle if middle < above else below


def _amounts(values: npt.ArrayLike) -> Array:
    amounts = np.asarray(values, np.float64)
    usable = (amounts >= 0) & (amounts < np.inf)
    if not usable.all():
        raise _not_an_amount(float(amounts[~usable][0]))
    return amounts


def _positive(values: npt.ArrayLike) -> Array:
    amounts = _amounts(values)
    return amounts[amounts > 0]


def _numbers(document: Mapping[str, Any], key: str) -> tuple[float, ...]:
    values = document.get(key)
    if not isinstance(values, list) or not all(type(x) in (int, float) and np.isfinite(x) for x in values):
        raise ProfileError(f"bins: {key} must be a list of numbers", field=key)
    return tuple(float(x) for x in values)


def _not_an_amount(value: float) -> ProfileError:
    return ProfileError(f"an amount of work must be a finite number from 0 up, not {value!r}")

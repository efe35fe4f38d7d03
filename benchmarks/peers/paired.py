"""Added latency from samples, with intervals: percentiles over all of a path's calls, a bootstrap over blocks of time.

Calls of one second share what disturbs the machine in it, so what is drawn again is not calls but *blocks*, the calls
of one second of one round. Paths take turns within a round, and the same blocks are drawn for all of them: what is
common to a round cancels out of a difference.

*Excess* of a call is what it took beyond what the engine means to take. *Added* by a path is its excess minus the
median excess of the direct path: every disturbance counts against the path, none is forgiven.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 1_000
#: What an interval holds.
LEVEL = 0.95

#: Excess of calls in seconds, by block: (round, second).
Blocks = Mapping[tuple[int, int], Sequence[float]]


class Estimate(NamedTuple):
    """A value and its interval."""

    value: float
    low: float
    high: float


class Drawn:
    """Percentiles of every path, of what was measured and of `DRAWS` draws of its blocks.

    Raises ValueError where no block is common to all paths.
    """

    def __init__(self, paths: Mapping[str, Blocks], percentiles: Sequence[float] = (50, 99), *, seed: int = 0) -> None:
        keys = sorted(set.intersection(*(set(blocks) for blocks in paths.values())))
        if not keys:
            raise ValueError("the paths have no block in common; measure for longer")
        draws = np.random.default_rng(seed).integers(len(keys), size=(DRAWS, len(keys)))
        self._found: dict[tuple[str, float], np.ndarray] = {}
        for name, blocks in paths.items():
            arrays = [np.asarray(blocks[key]) for key in keys]
            # The first is what was measured: every block once.
            samples = (np.concatenate([arrays[i] for i in draw]) for draw in (range(len(keys)), *draws))
            found = np.array([np.percentile(sample, percentiles) for sample in samples]) * 1000
            self._found |= {(name, q): found[:, column] for column, q in enumerate(percentiles)}

    def added(self, name: str, direct: str, q: float) -> Estimate:
        """What a path adds, in milliseconds: its q-th percentile less the median of the direct one."""
        return _estimate(self._found[name, q] - self._found[direct, 50])

    def difference(self, more: str, less: str, q: float) -> Estimate:
        """How much larger the q-th percentile of one path is than that of another, in milliseconds."""
        return _estimate(self._found[more, q] - self._found[less, q])


def ratio(rates: Mapping[str, Sequence[float]], over: str, under: str, *, seed: int = 0) -> Estimate:
    """Median rate of one path over that of another; rates by round, rounds are drawn again."""
    a, b = np.asarray(rates[over]), np.asarray(rates[under])
    draw = np.random.default_rng(seed).integers(len(a), size=(DRAWS, len(a)))
    ratios = np.median(a[draw], axis=1) / np.median(b[draw], axis=1)
    return _estimate(np.concatenate(([np.median(a) / np.median(b)], ratios)))


def _estimate(values: np.ndarray) -> Estimate:
    """The first is what was measured, the others are of draws."""
    tail = (1 - LEVEL) / 2 * 100
    low, high = np.percentile(values[1:], [tail, 100 - tail])
    return Estimate(float(values[0]), float(low), float(high))

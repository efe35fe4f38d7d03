"""Whether belief is worth having: the posterior against the plain mean, on what recent jobs really had left.

At every completed stage both say how much work is left; when the job is over, both are held against what it was. If the
posterior's mean absolute error is more than `TOLERANCE` above the mean's over the last `WINDOW` notes, and that is no
accident, the world is no longer what the profile was learned from. The mean is used until the posterior is as good
again, or learned anew.

No accident: the difference d of the two errors is above twice its standard error. Notes of one job err together, so
jobs are what is counted,

    se^2 = sum over jobs of (sum over its notes of (d_i - mean d))^2 / n^2.

Without it, a profile was set aside for 1 % of the very jobs it was learned from (traces of task_automation and
web_search in random order); with it for 0.2 %.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import sqrt
from typing import NamedTuple

#: Notes that count, and the fewest that decide.
WINDOW = 200
FEWEST = 50
TOLERANCE = 0.10
#: Standard errors.
CERTAIN = 2.0


class _Errors(NamedTuple):
    job: int
    believed: float
    mean: float


class DriftGuard:
    """Of one application."""

    def __init__(self) -> None:
        self._notes: deque[_Errors] = deque(maxlen=WINDOW)
        self._jobs = 0
        #: Whether the mean is to be used.
        self.has_drifted = False

    def add(self, notes: Iterable[tuple[float, float, float]]) -> None:
        """One finished job's notes: seconds of work that belief and mean said were left, and that were."""
        self._jobs += 1
        for believed, mean, actual in notes:
            self._notes.append(_Errors(self._jobs, abs(believed - actual), abs(mean - actual)))

    @property
    def errors(self) -> tuple[float, float]:
        """Mean absolute error of belief and mean, in seconds; zeros without notes."""
        n = max(1, len(self._notes))
        return sum(note.believed for note in self._notes) / n, sum(note.mean for note in self._notes) / n

    def judge(self) -> bool:
        """Whether the verdict has changed."""
        if len(self._notes) < FEWEST:
            return False
        believed, mean = self.errors
        if self.has_drifted:
            drifted = believed > mean
        else:
            drifted = believed > mean * (1.0 + TOLERANCE) and believed - mean > CERTAIN * self._standard_error()
        changed = drifted != self.has_drifted
        self.has_drifted = drifted
        return changed

    def _standard_error(self) -> float:
        believed, mean = self.errors
        by_job: dict[int, float] = {}
        for note in self._notes:
            by_job[note.job] = by_job.get(note.job, 0.0) + (note.believed - note.mean) - (believed - mean)
        return sqrt(sum(total * total for total in by_job.values())) / len(self._notes)

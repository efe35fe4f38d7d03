"""When a failed attempt is tried again: a decision, nothing is done here."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off in seconds with full-range jitter of `spread` around the nominal delay.

    >>> Backoff(first=0.5, most=30.0, spread=0.0).delay(3, Random(0))
    2.0
    """

    first: float = 0.2
    #: Longest delay before jitter, also where the world asks for more.
    most: float = 30.0
    spread: float = 0.5
    #: How many executors may be lost under one task before the job fails: it may be what kills them.
    max_losses: int = 10

    def delay(self, failures: int, rng: Random) -> float:
        """Seconds to wait after the `failures`-th failed attempt (1, 2, …)."""
        nominal = min(self.most, self.first * 2.0 ** (failures - 1))
        return nominal * (1.0 + self.spread * (rng.random() - 0.5))

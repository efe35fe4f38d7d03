"""When jobs will be done, learned from how long recent ones took for what they had left.

    seconds from now, p50 = m50 x predicted p50,   m50 = median of (actual seconds / predicted p50)
                      p90 = m90 x predicted p90,   m90 = 90 % quantile of (actual seconds / predicted p90)

over the last `WINDOW` notes of an application, where `predicted` are quantiles of remaining reference work. The ratios
hold whatever the work alone does not tell: parallel stages, batching, waiting for slots. So p90 is calibrated by what
happened: 90 % of the recent notes would have ended before it.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from math import ceil
from typing import NamedTuple

#: Notes that count, and the fewest that say more than the default.
WINDOW = 300
FEWEST = 20
#: Seconds of work added to every prediction: the ratio to next to nothing says nothing.
LEAST = 0.1


class Eta(NamedTuple):
    """Unix seconds before which a job is done with probability 50 % and 90 %, as believed."""

    p50: float
    p90: float

    def to_json(self) -> dict[str, float]:
        return {"p50": round(self.p50, 6), "p90": round(self.p90, 6)}


class Calibration:
    """Of one application. default: seconds per second of reference work while nothing is known."""

    def __init__(self, default: float = 1.0) -> None:
        self._default = default
        self._notes: deque[tuple[float, float]] = deque()
        self._ratios: tuple[list[float], list[float]] = ([], [])  # sorted

    def __len__(self) -> int:
        return len(self._notes)

    def add(self, p50: float, p90: float, actual: float) -> None:
        """Predicted reference seconds and the seconds it took."""
        note = (actual / (p50 + LEAST), actual / (p90 + LEAST))
        self._notes.append(note)
        old = self._notes.popleft() if len(self._notes) > WINDOW else None
        for k, ratios in enumerate(self._ratios):
            insort(ratios, note[k])
            if old is not None:
                ratios.remove(old[k])

    def eta(self, now: float, p50: float, p90: float) -> Eta:
        """From predicted reference seconds."""
        m50 = m90 = self._default
        if (n := len(self._notes)) >= FEWEST:
            m50 = self._ratios[0][n // 2]
            # The rank under which the next one lies with 90 % if it is like these (split conformal prediction).
            m90 = self._ratios[1][min(n, ceil(0.9 * (n + 1))) - 1]
        soon = m50 * (p50 + LEAST)
        return Eta(now + soon, now + max(soon, m90 * (p90 + LEAST)))

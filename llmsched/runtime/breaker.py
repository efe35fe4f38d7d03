"""The circuit breaker of one engine: when to stop sending it work, and when to try again. No I/O, no clock.

```
             k engine faults in a row, or 2 failed probes in a row
   closed ───────────────────────────────────────────────────────▶ open ◀─┐ probe fails: back-off doubles
     ▲                                                              │     │
     │ a request succeeds                    a probe succeeds       ▼─────┘
     └──────────────────────── half_open ◀──────────────────────────┘
                                   │
                                   └─ an engine fault or a failed probe: open again, back-off doubles
```

The driver sends a probe when `next_probe` is due and reports what came of it and of every request. A health check that
answers does not forgive requests that fail: a hung vLLM often still says it is healthy. While open, late news of
requests sent before change nothing, and probes count only once the back-off has passed.
"""

from __future__ import annotations

from enum import StrEnum
from random import Random
from typing import Literal


class State(StrEnum):
    """Whether an engine gets work."""

    #: It does.
    CLOSED = "closed"
    #: It does not.
    OPEN = "open"
    #: It gets one request at a time, to see.
    HALF_OPEN = "half_open"


News = Literal["success", "fault", "probe_ok", "probe_failed"]

#: Where news lead; what is not listed leaves the state as it is. In `closed`, faults and failed probes count only when
#: enough came in a row.
TRANSITIONS: dict[tuple[State, News], State] = {
    (State.CLOSED, "fault"): State.OPEN,
    (State.CLOSED, "probe_failed"): State.OPEN,
    (State.OPEN, "probe_ok"): State.HALF_OPEN,
    (State.OPEN, "probe_failed"): State.OPEN,
    (State.HALF_OPEN, "success"): State.CLOSED,
    (State.HALF_OPEN, "fault"): State.OPEN,
    (State.HALF_OPEN, "probe_failed"): State.OPEN,
}


class Breaker:
    """Judges one engine by the news of its requests and probes.

    random: for the jitter of the back-off. faults: engine faults in a row that open it. probes: failed probes in a
    row that open it. interval: seconds between probes while it is not open. base, cap: the back-off in seconds, doubled
    at each failure and shortened by up to a quarter at random, so that engines lost together do not return together.
    """

    def __init__(
        self,
        random: Random,
        *,
        faults: int = 3,
        probes: int = 2,
        interval: float = 5.0,
        base: float = 1.0,
        cap: float = 30.0,
    ) -> None:
        self.state = State.CLOSED
        #: The moment the next probe is due.
        self.next_probe = 0.0
        self._random = random
        self._limits: dict[News, int] = {"fault": faults, "probe_failed": probes}
        #: Bad news in a row, per kind.
        self._run: dict[News, int] = {"fault": 0, "probe_failed": 0}
        self._interval = interval
        self._base = base
        self._cap = cap
        #: Back-offs since the last success.
        self._failures = 0

    def admits(self, slots: int) -> int:
        """How many requests an engine of so many slots may run now."""
        return {State.CLOSED: slots, State.HALF_OPEN: min(1, slots), State.OPEN: 0}[self.state]

    def success(self, at: float) -> bool:
        """A request ended well. True if the state changed."""
        self._run["fault"] = 0
        return self._hear("success", at)

    def fault(self, at: float) -> bool:
        """A request failed by the engine's fault. True if the state changed."""
        return self._hear("fault", at)

    def probe(self, ok: bool, at: float) -> bool:
        """A health check answered, or did not. True if the state changed.

        A good probe of an open breaker counts only when its back-off has passed.
        """
        if self.state is State.OPEN and at < self.next_probe:
            return False
        if self.state is not State.OPEN:
            self.next_probe = at + self._interval
        if ok:
            self._run["probe_failed"] = 0
        return self._hear("probe_ok" if ok else "probe_failed", at)

    def _hear(self, news: News, at: float) -> bool:
        before = self.state
        if before is State.CLOSED and news in self._limits:
            self._run[news] += 1
            if self._run[news] < self._limits[news]:
                return False
        self.state = TRANSITIONS.get((before, news), before)
        if self.state is State.OPEN and (before, news) in TRANSITIONS:
            self._back_off(at)
        elif self.state is State.CLOSED and before is State.HALF_OPEN:
            self._failures = 0
        elif self.state is State.HALF_OPEN and before is State.OPEN:
            self.next_probe = at + self._interval
        return self.state is not before

    def _back_off(self, at: float) -> None:
        # The exponent is bounded: 2.0 ** 1100 is an OverflowError after a night of failures.
        delay = min(self._cap, self._base * 2.0 ** min(self._failures, 32))
        self.next_probe = at + delay * self._random.uniform(0.75, 1.0)
        self._failures += 1
        self._run = dict.fromkeys(self._run, 0)

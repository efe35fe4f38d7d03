"""The service's clock: unix seconds that never go backwards while the process lives."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float: ...


class WallClock:
    """Unix time at creation plus the monotonic clock: a stepped system clock never reorders batches."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return self._offset + time.monotonic()

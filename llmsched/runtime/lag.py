"""How late the event loop is: what news waits for before anybody looks at it.

Every `INTERVAL` a moment is due, and how long after it the loop came round to it is one sample. A loop that was blocked
over several of these moments gives one sample for each, each shorter than the one before: what something would have
waited that came at a random moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

#: Seconds between two moments. A sample costs 15 microseconds, so all of them 0.1 % of a processor.
INTERVAL = 0.02


async def watch_lag(
    observe: Callable[[float], None], interval: float = INTERVAL, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Tells `observe` the seconds by which the loop is late; runs until it is cancelled."""
    due = clock()
    while True:
        due += interval
        await asyncio.sleep(max(0.0, due - clock()))
        late = clock() - due
        observe(max(0.0, late))
        while late >= interval:
            due += interval
            late -= interval
            observe(late)

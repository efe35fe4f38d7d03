"""Memory of a service that never stops: when garbage is looked for, and when memory goes back to the system.

What a job leaves behind is freed without the garbage collector (`Job.dissolve`), which is there for what goes wrong in
circles. With hundreds of calls in flight it would find nothing several times a second: 80 ms for the objects that came
since it looked last, 500 ms for all of 10,000 jobs, and meanwhile the event loop stands still. So by itself it looks at
the youngest only, and at everything when the service is at rest, has grown by a quarter, or was not at rest for long.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path

#: Allocations after which the collector looks at what came since, in a millisecond.
YOUNG = 5_000
NEVER = 2**31 - 1
#: It looks at everything though there is work when the process has become so many times as large, or after so many
#: seconds.
GROWN, BUSY = 1.25, 900.0


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


async def look_after_memory(
    active: Callable[[], int],
    newest: Callable[[], int],
    size: Callable[[], int] = resident,
    interval: float = 2.0,
    busy: float = BUSY,
) -> None:
    """Collects and trims when a busy service has come to rest, for which it looks every `interval` seconds.

    active: jobs in the service; newest: number of the newest. A look between one call of an agent and the next finds no
    job, but the same number twice says that none came meanwhile: giving memory back takes as long as the calls that it
    would hold up. size: bytes of the process. Runs until it is cancelled; the collector has its own pace again then.
    """
    pace = gc.get_threshold()
    gc.set_threshold(YOUNG, NEVER, NEVER)
    loop = asyncio.get_running_loop()
    was_busy, last = False, newest()
    looked, large = loop.time(), size() * GROWN
    try:
        while True:
            await asyncio.sleep(interval)
            before, last = last, newest()
            at_rest = not active() and last == before
            is_due = was_busy if at_rest else size() > large or loop.time() - looked >= busy
            was_busy = not at_rest
            if is_due:
                gc.collect()
                if at_rest:
                    _trim()
                looked, large = loop.time(), size() * GROWN
    finally:
        gc.set_threshold(*pace)


def _trim() -> None:
    """Gives back what is free but kept by the C library; only glibc can be asked to.

    After 2,000 jobs in flight 380 MB were resident, and 200 MB after it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

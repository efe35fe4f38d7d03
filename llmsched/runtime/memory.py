"""Gives memory back to the system when the service has come to rest.

What thousands of jobs leave behind is free, but the C library keeps most of it: after 2,000 jobs in flight 380 MB of
memory were resident and 200 MB after `malloc_trim`.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable


async def trim_at_rest(active: Callable[[], int], newest: Callable[[], int], interval: float = 2.0) -> None:
    """Looks every `interval` seconds whether a busy service has come to rest; runs until it is cancelled.

    active: jobs in the service; newest: number of the newest. A look between one call of an agent and the next finds no
    job, but the same number twice says that none came meanwhile: giving memory back takes as long as the calls that it
    would hold up.
    """
    was_busy, last = False, newest()
    while True:
        await asyncio.sleep(interval)
        before, last = last, newest()
        if active() or last != before:
            was_busy = True
        elif was_busy:
            was_busy = False
            gc.collect()
            _trim()


def _trim() -> None:
    """Only glibc can be asked to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""Gives memory back to the system when the service has come to rest.

What thousands of jobs leave behind is free, but the C library keeps most of it: after 2,000 jobs in flight 380 MB of
memory were resident and 200 MB after `malloc_trim`.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable


async def trim_at_rest(is_busy: Callable[[], bool], interval: float = 2.0) -> None:
    """Looks every `interval` seconds whether a busy service has come to rest; runs until it is cancelled."""
    was_busy = False
    while True:
        await asyncio.sleep(interval)
        if is_busy():
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

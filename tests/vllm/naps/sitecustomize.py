"""Makes vLLM's processes nap where they would call `sched_yield` without end while they wait for each other.

On a machine with as few cores as it has processes, all other processes stood still for up to seconds. The interpreter
of the server imports this at its start, by its PYTHONPATH; nothing here does.
"""

import os
import time


def _nap() -> None:
    time.sleep(0.00005)


os.sched_yield = _nap

"""`llmsched`, unchanged, in a process that can be asked how many asyncio tasks it has: SIGUSR1 writes them to a file.

    python benchmarks/soak/served.py COUNTS serve …

COUNTS appears anew, as JSON from name to number, after each SIGUSR1.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter

from llmsched.cli.main import main


def count(file: str) -> None:
    """Writes the tasks of the running loop; nothing where none runs."""
    loop = asyncio._get_running_loop()  # of a signal handler: it runs in the thread, and inside the loop
    if loop is None:
        return
    names = Counter(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks(loop))
    with open(f"{file}.new", "w") as out:
        json.dump(names, out)
    os.replace(f"{file}.new", file)


if __name__ == "__main__":
    counts = sys.argv.pop(1)
    signal.signal(signal.SIGUSR1, lambda *_: count(counts))
    main()

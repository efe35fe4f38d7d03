"""One emulated engine as a process of its own that plays every installed application, and writes down who asked what.

    python benchmarks/soak/engine.py PORT HEARD [SPEED]

HEARD is a file to which a line `unix seconds, request id` is appended for every generating request, before anything of
it is done: it survives a `kill -9`, and shows afterwards whether work that was over ran again. The engine ends with its
standard input.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections import deque

from llmsched.runtime.emulator.answers import read_script
from llmsched.runtime.emulator.engine import EmulatedEngine
from llmsched.runtime.emulator.settings import EmulatorSettings
from llmsched.testing import Call

SLOTS = 8

_installed = read_script("apps")


def answer(call: Call) -> str:
    """As the application that asks wants it; whoever asks to count to a number hears the numbers up to it."""
    if counts := re.search(r"Count to (\d+)", call.last):
        return counted(int(counts[1]))
    return _installed(call)


def counted(numbers: int) -> str:
    """Text of which one can see whether a piece is missing or came twice."""
    return " ".join(map(str, range(numbers)))


class Heard(deque[str]):
    """The last request ids, all of which are also appended to a file."""

    def __init__(self, file: str) -> None:
        super().__init__(maxlen=100)
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def append(self, id: str) -> None:
        super().append(id)
        os.write(self._file, b"%.6f %s\n" % (time.time(), id.encode()))


async def main(port: str, heard: str, speed: str = "20") -> None:
    engine = EmulatedEngine(EmulatorSettings(max_batch=SLOTS, speed=float(speed), answer=answer))
    engine._request_ids = Heard(heard)  # the engine itself remembers them in memory only, which a kill takes along
    await engine.start(port=int(port))
    print(engine.url, flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    await engine.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""What goes wrong during a soak, and when: drawn beforehand from its seed, so that the same seed has the same plan.

The service is killed as often as there are minutes, all in the first half: the process that lives through the second
half is the one whose memory is looked at. Engines, workers and single answers fail all the time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from random import Random

import aiohttp
import psutil
from processes import Engine, Service
from verdict import Fault

#: Seconds between two faults of a kind, on average.
EVERY = {"engine": 12.0, "worker": 6.0, "answer": 5.0}
#: How an engine disappoints without dying, as its `POST /emulator/fault` knows it.
ANSWERS = ("http_500", "garbage", "half_stream", "stall")
#: Seconds without faults at the beginning, so that there is something to break.
CALM_S = 3.0


def plan(seconds: float, rng: Random) -> list[Fault]:
    """Faults in order; `at` counts from the beginning of the load. The target of an answer is how it fails."""
    kills = max(1, round(seconds / 60))
    slot = max(seconds / 2 - CALM_S, 0.0) / kills
    found = [Fault(CALM_S + slot * (k + rng.uniform(0.3, 1.0)), "gateway") for k in range(kills)]
    for kind, every in EVERY.items():
        at = CALM_S + rng.expovariate(1 / every)
        while at < seconds:
            found.append(Fault(at, kind, rng.choice(ANSWERS) if kind == "answer" else ""))
            at += rng.expovariate(1 / every)
    return sorted(found)


class Faults:
    """Carries out a plan. `done` has what was really done, with its moment."""

    def __init__(self, engines: Sequence[Engine], service: Service, rng: Random) -> None:
        self.done: list[Fault] = []
        self.restarts = 0
        self._engines = engines
        self._service = service
        self._rng = rng
        self._returning: set[asyncio.Task[None]] = set()

    async def run(self, planned: Sequence[Fault]) -> None:
        began = time.monotonic()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as session:
            for fault in planned:
                await asyncio.sleep(max(0.0, began + fault.at - time.monotonic()))
                await self._do(fault, session)

    async def _do(self, fault: Fault, session: aiohttp.ClientSession) -> None:
        """One fault, unless what it needs is away at the moment."""
        living = [e for e in self._engines if e.pid is not None]
        at = time.time()
        match fault.kind:
            case "gateway" if self._service.pid is not None:
                self._service.kill()
                self.done.append(Fault(at, "gateway"))
            case "engine" if len(living) > 1:
                engine = self._rng.choice(living)
                engine.kill()
                self.done.append(Fault(at, "engine", engine.name))
                task = asyncio.create_task(self._bring_back(engine, self._rng.uniform(0.5, 3.0)))
                self._returning.add(task)
                task.add_done_callback(self._returning.discard)
            case "worker" if workers := self._service.workers():
                worker = self._rng.choice(workers)
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
                    self.done.append(Fault(at, "worker", str(worker.pid)))
            case "answer" if living:
                engine = self._rng.choice(living)
                wish = {"kind": fault.target, "count": self._rng.randint(1, 2)}
                with suppress(aiohttp.ClientError, TimeoutError):  # it was killed a moment ago, and starts
                    async with session.post(f"{engine.url}/emulator/fault", json=wish):
                        self.done.append(Fault(at, fault.target, engine.name))

    async def _bring_back(self, engine: Engine, delay: float) -> None:
        await asyncio.sleep(delay)
        engine.start()
        self.restarts += 1

    async def heal(self) -> None:
        """Ends what still goes wrong: every engine runs, and answers."""
        if self._returning:
            await asyncio.wait(self._returning)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as session:
            for engine in self._engines:
                if engine.pid is None:
                    engine.start()
                with suppress(aiohttp.ClientError, TimeoutError):  # one that starts has no fault either
                    async with session.delete(f"{engine.url}/emulator/fault"):
                        pass

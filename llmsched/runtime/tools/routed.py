"""Two worker pools as one: some pools of regular tasks run elsewhere, the others here."""

from __future__ import annotations

import asyncio

from llmsched.runtime.tools.work import WorkerTask
from llmsched.runtime.tools.workers import WorkerPool


class RoutedWorkers:
    """elsewhere: runs the tasks of `pools`; here: all others."""

    def __init__(self, here: WorkerPool, elsewhere: WorkerPool, pools: frozenset[str]) -> None:
        self._here = here
        self._elsewhere = elsewhere
        self._pools = pools

    @property
    def slots(self) -> int:
        return self._here.slots + self._elsewhere.slots

    async def start(self) -> None:
        await self._here.start()
        await self._elsewhere.start()

    async def run(self, task: WorkerTask) -> object:
        return await self._of(task.pool).run(task)

    async def hold(self, seconds: float, *, pool: str = "cpu") -> None:
        await self._of(pool).hold(seconds, pool=pool)

    async def close(self, grace: float = 5.0) -> None:
        await asyncio.gather(self._here.close(grace), self._elsewhere.close(grace))

    def _of(self, pool: str) -> WorkerPool:
        return self._elsewhere if pool in self._pools else self._here

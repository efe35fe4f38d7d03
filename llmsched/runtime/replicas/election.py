"""A gateway's part among several: it leads while it holds the lease, and else knows who does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from llmsched.errors import BackendError
from llmsched.model.records import Leader

log = logging.getLogger(__name__)

#: Looks at the lease, or renewals of it, in the time it lasts.
LOOKS = 5


class Lease(Protocol):
    """What is asked of the store's lease; see there."""

    seconds: float
    epoch: int | None

    async def take(self) -> bool: ...

    async def renew(self, active_jobs: int) -> bool: ...

    async def look(self) -> Leader: ...

    async def close(self) -> None: ...


class Election:
    """`start` it with the gateway, `stop` it when nothing is written any more.

    rise: begins everything that only a leader does; from then on this gateway leads. active_jobs: of this leader.
    fall: called with the reason when it can lead no more, which is for ever.
    """

    def __init__(
        self,
        lease: Lease,
        *,
        rise: Callable[[int], Awaitable[None]],
        active_jobs: Callable[[], int],
        fall: Callable[[BaseException], None],
    ) -> None:
        self.lease = lease
        #: Whether this gateway leads, and has begun with it.
        self.leads = False
        #: The other gateway that leads, as far as is known.
        self.leader: Leader | None = None
        #: Active jobs of the leader, when it was looked at last.
        self._jobs = 0
        self._rise = rise
        self._active_jobs = active_jobs
        self._fall = fall
        self._run: asyncio.Task[None] | None = None
        self._rising: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Leads already when it returns, unless somebody else does. Raises BackendError, and what `rise` raises."""
        took = await self._look()
        self._run = asyncio.create_task(self._keep_looking(), name="election")
        if took:
            await self._lead()

    def known_jobs(self) -> int:
        """Active jobs of whoever leads, as far as is known here."""
        return self._active_jobs() if self.leads else self._jobs

    async def stop(self) -> None:
        """Gives the lease back."""
        tasks = [task for task in (self._run, self._rising) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.lease.close()

    async def hold(self) -> None:
        """Rises no more."""
        if self._rising is not None:
            self._rising.cancel()
            await asyncio.wait([self._rising])

    async def _look(self) -> bool:
        """Whether this gateway has just got the lease."""
        if await self.lease.take():
            self.leader = None
            return True
        found = await self.lease.look()
        if found.is_alive and (self.leader is None or found.epoch != self.leader.epoch):
            log.info("another gateway leads", extra={"leader": found.url, "epoch": found.epoch})
        self.leader = found if found.is_alive else None
        self._jobs = found.active_jobs
        return False

    async def _keep_looking(self) -> None:
        is_away = False
        while True:
            await asyncio.sleep(self.lease.seconds / LOOKS)
            try:
                if self.lease.epoch is None:
                    if await self._look():
                        self._rising = asyncio.create_task(self._lead(), name="rise")
                elif not await self.lease.renew(self._active_jobs()):
                    self._fall(BackendError("another gateway leads: this one was away for longer than its lease lasts"))
                    return
                is_away = False
            except BackendError as error:
                if not is_away:
                    log.warning("the lease could not be looked at", extra={"error": str(error)})
                is_away = True

    async def _lead(self) -> None:
        assert self.lease.epoch is not None, self.lease
        log.info("this gateway leads", extra={"epoch": self.lease.epoch})
        try:
            await self._rise(self.lease.epoch)
        except Exception as error:  # whatever it is: who holds the lease and does not lead keeps all others from it
            if self._rising is None:
                raise
            self._fall(error)
        else:
            self.leads = True

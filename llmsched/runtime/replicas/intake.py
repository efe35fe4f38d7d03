"""Jobs that one gateway accepts and another one runs, and how they come from here to there.

Intake ──job and arrival, one transaction──▶ database ──told at once, or found within `SWEEP` seconds──▶ Arrivals
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from llmsched.errors import BackendError
from llmsched.model.application import Application
from llmsched.model.records import JobRecord
from llmsched.runtime.admission import Claims, accept
from llmsched.runtime.applications import Applications
from llmsched.runtime.clock import Clock
from llmsched.runtime.numbers import Numbers
from llmsched.runtime.observer import Observer
from llmsched.runtime.ports import Journal, Memory
from llmsched.runtime.submission import Limits, NewJob, check_healthy, check_room

log = logging.getLogger(__name__)

#: Seconds after which the leader looks for arrivals nobody told it of.
SWEEP = 1.0


class Intake:
    """Takes jobs in while another gateway leads, or nobody does.

    active_jobs: of the leader, as far as is known. Jobs with a deadline, and of tenants with a quota, do not come here:
    what they are judged by is known to the leader alone.
    """

    def __init__(
        self,
        store: Memory,
        journal: Journal,
        applications: Applications,
        clock: Clock,
        numbers: Numbers,
        observer: Observer,
        limits: Limits,
        active_jobs: Callable[[], int],
    ) -> None:
        self._journal = journal
        self._applications = applications
        self._clock = clock
        self._numbers = numbers
        self._observer = observer
        self._limits = limits
        self._active_jobs = active_jobs
        self._claims = Claims(store)

    async def submit(self, new: NewJob) -> tuple[JobRecord, bool]:
        """As `Service.submit`."""
        return await asyncio.shield(asyncio.ensure_future(self._claims.once(new, self._admit)))

    async def _admit(self, new: NewJob) -> JobRecord:
        check_healthy(self._journal)
        check_room(self._limits, self._journal, self._active_jobs())
        application: Application = await self._applications.read(new.application)
        number = self._numbers.after(self._clock.now())
        run, _, writes = accept(new, application, number, longest_context=None, clock=self._clock)
        record = run.record
        self._numbers.last = record.number
        writes.arrivals.append(record.id)
        await self._journal.append(writes)
        for used in writes.usage:
            self._observer.used(used)
        self._observer.job_submitted(record.application, record.job_class.label)
        return record


class Arrivals:
    """The leader's end. take_up: what becomes of jobs that arrived."""

    def __init__(self, store: Memory, take_up: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        self._store = store
        self._take_up = take_up
        self._due = asyncio.Event()

    def look(self) -> None:
        """Something has arrived, or may have."""
        self._due.set()

    async def run(self) -> None:
        """Takes up what arrives; runs until it is cancelled."""
        while True:
            self._due.clear()
            try:
                if ids := await self._store.arrivals():
                    await self._take_up(ids)
            except BackendError as error:
                log.warning("arrivals could not be read", extra={"error": str(error)})
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP):
                    await self._due.wait()

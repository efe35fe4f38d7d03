"""Jobs from their acceptance to the commit of their last event, and what they have done that is not durable yet.

Rows and events of a turn are collected by job, go to the journal as one entry per job (it makes them one transaction,
and refuses no more than the job at fault), and are told to whoever watches once they are durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from llmsched.model.records import EventRecord, JobRecord, Writes
from llmsched.runtime.hub import Hub
from llmsched.runtime.observer import Observer
from llmsched.runtime.ports import Journal
from llmsched.runtime.run import JobRun
from llmsched.runtime.tenants import Owners, usage_of

#: Seconds that news nobody depends on (a job or stage was started, a task failed) may wait for a transaction of others:
#: one of its own costs as much processor time as what it tells about.
NEWS_PATIENCE = 0.02


class Ledger:
    """Every job from `owned` to `committed`. refused: called with what the journal did not take of a job, and why."""

    def __init__(
        self, journal: Journal, hub: Hub, observer: Observer, refused: Callable[[str, Writes, BaseException], None]
    ) -> None:
        #: Active jobs.
        self.runs: dict[str, JobRun] = {}
        #: Jobs that are over, until that is committed.
        self.leaving: dict[str, JobRun] = {}
        #: Tenants of jobs whose last event is not committed yet.
        self.tenants = Owners()
        #: What the next commit takes, by job.
        self.unwritten: dict[str, Writes] = {}
        self._journal = journal
        self._hub = hub
        self._observer = observer
        self._refused = refused

    def enter(self, run: JobRun) -> None:
        """The job is active."""
        self.runs[run.record.id] = run
        self.owned(run.record)

    def owned(self, record: JobRecord) -> None:
        """The job's tenant hears of it until its last event is committed, active or not."""
        self.tenants[record.id] = record.tenant

    def leave(self, job: str) -> JobRun:
        """The job is over; what is written of it from now on is written at once."""
        run = self.leaving[job] = self.runs.pop(job)
        self.release(run)
        return run

    def release(self, run: JobRun) -> bool:
        """What is to be written of a job waits for its end no longer. Whether there was something that did."""
        if run.unwritten is None:
            return False
        self.unwritten[run.record.id], run.unwritten = run.unwritten, None
        return True

    def of(self, job: str) -> Writes:
        """Where a job's rows and events of this turn belong."""
        run = self.runs.get(job)
        if run is not None and run.unwritten is not None:
            return run.unwritten
        return self.unwritten.setdefault(job, Writes())

    def commit(self, now: float) -> None:
        """Hands the journal what there is."""
        for job, writes in self.unwritten.items():
            writes.usage = usage_of(writes, self.tenants.get(job, ""), now)
            for used in writes.usage:
                self._observer.used(used)
            # Nobody waits either for what is written all at once of an observed job: its client has the answer.
            is_news = not writes.stages and all(update.finished_at is None for update in writes.updates)
            done = self._journal.append(writes, patience=NEWS_PATIENCE if is_news or writes.jobs else 0.0)
            done.add_done_callback(partial(self._written, job, writes))
        self.unwritten = {}

    def _written(self, job: str, writes: Writes, done: asyncio.Future[None]) -> None:
        if (error := done.exception()) is not None:
            self._refused(job, writes, error)

    def committed(self, writes: Writes) -> None:
        """The journal's news that these writes are durable: now others may see them."""
        self.publish(writes.events)
        for update in writes.updates:
            if update.finished_at is not None:
                self.tenants.pop(update.id, None)
                self.leaving.pop(update.id, None)

    def publish(self, events: Sequence[EventRecord]) -> None:
        """Tells durable events to whoever watches."""
        self._hub.publish(events, lambda job: self.tenants.get(job, ""))

"""How a job comes in: from a client, once per idempotency key, or from what the last process stored of it.

Either way it comes out as a `JobRun` with the events that bring it before the scheduler. Nothing here writes, posts or
keeps a job, nor asks whether there is room for it: that is the service's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple

import orjson

from llmsched.errors import Conflict, InvalidInput
from llmsched.model.application import Application
from llmsched.model.events import Event, JobSubmitted
from llmsched.model.job import JobStatus
from llmsched.model.recording import Recording
from llmsched.model.records import JobRecord, StageRecord, TraceRecord, Writes
from llmsched.runtime.applications import Applications
from llmsched.runtime.clock import Clock
from llmsched.runtime.inputs import check_input
from llmsched.runtime.ports import Memory
from llmsched.runtime.run import JobRun
from llmsched.runtime.scripts.observed import is_observed
from llmsched.runtime.submission import NewJob, features_of, new_job_id, read_recording, script_of
from llmsched.runtime.tenants import usage_of
from llmsched.runtime.tracing.context import TraceContext


class Claims:
    """Idempotency keys (with their tenants) that are being looked at; who comes second waits."""

    def __init__(self, store: Memory) -> None:
        self._store = store
        self._open: dict[tuple[str, str], asyncio.Future[None]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._open)

    async def once(self, new: NewJob, admit: Callable[[NewJob], Awaitable[JobRecord]]) -> tuple[JobRecord, bool]:
        """The job, admitted unless its key was used before, and whether it is new.

        Raises Conflict if the key was used for another request or its job is deleted, and whatever `admit` raises.
        """
        if new.idempotency_key is None:
            return await admit(new), True
        claim = (new.tenant, new.idempotency_key)
        while claim in self._open:
            await asyncio.wait((self._open[claim],))
        done = self._open[claim] = asyncio.get_running_loop().create_future()
        try:
            known = await self._known(new, claim)
            if known is not None:
                return known, False
            try:
                return await admit(new), True
            except Conflict:
                known = await self._known(new, claim)  # another gateway may have been faster
                if known is None:
                    raise
                return known, False
        finally:
            del self._open[claim]
            done.set_result(None)

    async def _known(self, new: NewJob, claim: tuple[str, str]) -> JobRecord | None:
        found = await self._store.find_idempotent(*claim)
        if found is None:
            return None
        id, digest = found
        if digest != new.request_digest:
            raise Conflict(
                f"idempotency key {new.idempotency_key!r} was used for another request (job {id}); use a new key",
                field="Idempotency-Key",
            )
        record = await self._store.job(id)
        if record is None:
            raise Conflict(f"idempotency key {new.idempotency_key!r} belongs to a deleted job; use a new key")
        return record


class Accepted(NamedTuple):
    """A new job, nothing of it written yet. writes: to be durable before anybody is told."""

    run: JobRun
    submitted: JobSubmitted
    writes: Writes


class Restored(NamedTuple):
    """A job that goes on where its stored stages end."""

    run: JobRun
    events: list[Event]


class Hopeless(NamedTuple):
    """A job that could once run and no longer can. seq: of its last event."""

    record: JobRecord
    seq: int
    reason: str


class Orphan(NamedTuple):
    """An observed job, whose calls ended with their connections. ended_at: of the last call that was answered."""

    record: JobRecord
    seq: int
    ended_at: float | None


class Found(NamedTuple):
    """What the last process left unfinished, each in the order of the store."""

    restored: list[Restored]
    hopeless: list[Hopeless]
    orphans: list[Orphan]


def accept(
    new: NewJob,
    application: Application,
    number: int,
    *,
    longest_context: int | None,
    clock: Clock,
    describes: Callable[[], bool] = lambda: False,
) -> Accepted:
    """Turns a submission into job `number`. longest_context: tokens the engines can hold (None: not known).

    describes: asked whenever something is revealed, whether live jobs shall say what their prompts are like.

    Raises InvalidInput if its input or recording is not one of the application.
    """
    recording = None
    if new.recording is None:
        check_input(application, new.input)
    else:
        recording = read_recording(new.recording, application, longest_context)
    id = new_job_id(clock.now())
    script = script_of(id, application, new.input, recording, describes)
    unfolded = script.begin()
    at = clock.now()
    record = JobRecord(
        id=id,
        number=number,
        application=application.name,
        version=application.version,
        status=JobStatus.QUEUED,
        job_class=new.job_class,
        tenant=new.tenant,
        submitted_at=at,
        started_at=None,
        finished_at=None,
        input=new.input,
        has_recording=recording is not None,
        metadata=dict(new.metadata),
        deadline_s=new.deadline_s,
        callback_url=new.callback_url,
        idempotency_key=new.idempotency_key,
        request_digest=new.request_digest,
        off_profile=script.off_profile,
        result=None,
        error=None,
    )
    run = JobRun(record, application, script, features=features_of(new.input, recording))
    writes = Writes(
        jobs=[(record, None if recording is None else orjson.dumps(new.recording))], events=[run.submission()]
    )
    if new.trace is not None:
        run.trace = new.trace
        writes.traces.append(TraceRecord(id, *new.trace))
    rows, events = run.unfold(unfolded, at)
    writes.stages.extend(rows)
    writes.events.extend(events)
    writes.usage = usage_of(writes, record.tenant, at)
    return Accepted(run, run.submitted(unfolded), writes)


async def restore(
    store: Memory,
    applications: Applications,
    describes: Callable[[], bool] = lambda: False,
    *,
    traced: bool = False,
    ids: Sequence[str] | None = None,
) -> Found:
    """Every job the last process did not finish. describes: as in `accept`. traced: they go on in their traces.

    ids: only these of them.
    """
    traces = await store.traces() if traced else {}
    restored: list[Restored] = []
    failed: list[tuple[JobRecord, str]] = []
    observed: list[tuple[JobRecord, float | None]] = []
    async for record, recording, rows in store.unfinished(ids):
        try:
            application = await applications.at(record.application, record.version)
            if recording is None and is_observed(application):
                observed.append((record, max((row.finished_at for row in rows if row.state == "done"), default=None)))
                continue
            restored.append(_revive(record, application, recording, rows, describes))
        except InvalidInput as error:
            failed.append((record, str(error)))
    found = [*(run.record.id for run, _ in restored), *(job.id for job, _ in failed), *(job.id for job, _ in observed)]
    seqs = await store.last_seq(found)
    for run, _ in restored:
        if (trace := traces.get(run.record.id)) is not None:
            run.trace = TraceContext(trace.parent, trace.state)
        run.seq = seqs.get(run.record.id, 0)
    return Found(
        restored,
        [Hopeless(record, seqs.get(record.id, 0), reason) for record, reason in failed],
        [Orphan(record, seqs.get(record.id, 0), ended_at) for record, ended_at in observed],
    )


def _revive(
    record: JobRecord,
    application: Application,
    recording: bytes | None,
    rows: Sequence[StageRecord],
    describes: Callable[[], bool],
) -> Restored:
    """Raises InvalidInput if the job, which could once run, no longer can."""
    parsed = None if recording is None else Recording.from_json(orjson.loads(recording))
    script = script_of(record.id, application, record.input, parsed, describes)
    run = JobRun(record, application, script, features=features_of(record.input, parsed))
    unfolded = script.begin()
    run.unfold(unfolded, record.submitted_at)
    return Restored(run, [run.submitted(unfolded), *run.restore(rows)])

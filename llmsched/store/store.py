"""The memory of llmsched, in SQLite or PostgreSQL: jobs, their committed stages, what clients were told, applications.

Writes go through one connection in durable transactions (see `writer.py`; the `Journal` groups them), reads through a
small pool beside it. A restart reads `unfinished()` and goes on: a stage that is stored never runs again.

One service works with a SQLite file; any number share a PostgreSQL database, and one of them leads (see `lease.py`).

Every read that takes `tenant` sees only that tenant's jobs; None sees all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Self

from sqlalchemy import (
    ColumnElement,
    Delete,
    Dialect,
    Insert,
    Select,
    Table,
    Update,
    bindparam,
    delete,
    exists,
    func,
    insert,
    null,
    select,
    update,
)
from sqlalchemy import Row as SqlRow
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from llmsched.errors import BackendError, InvalidSetting
from llmsched.model.job import JobStatus
from llmsched.model.jsontext import to_json
from llmsched.model.records import (
    UNFINISHED,
    ApplicationRecord,
    CallbackRecord,
    EventRecord,
    JobRecord,
    Json,
    KeyRecord,
    StageRecord,
    StoredJob,
    TraceRecord,
    Usage,
    Writes,
)
from llmsched.store import rows
from llmsched.store.lease import ARRIVALS, Lease
from llmsched.store.location import Location
from llmsched.store.migrate import upgrade
from llmsched.store.reader import PostgresReader, Reader, SqliteReader
from llmsched.store.schema import (
    applications,
    arrivals,
    callbacks,
    events,
    jobs,
    keys,
    profiles,
    recordings,
    stages,
    traces,
    usage,
)
from llmsched.store.writer import (
    POSTGRES_FAILURES,
    PostgresWriter,
    SqliteWriter,
    Statement,
    Writer,
)

#: The state of a callback that is not over.
OWED = "delivering"
#: Jobs that a stream holds in memory at a time.
CHUNK = 100
#: Profiles of an application that are kept.
KEPT_PROFILES = 5
#: The largest number a database takes; whatever clients send is cut to it.
MAX_NUMBER = 2**63 - 1
MAX_DAY = 2**31 - 1

_READ_FAILURES = (SQLAlchemyError, *POSTGRES_FAILURES)

#: Applied to what a row holds: None leaves it.
_UPDATE = (
    update(jobs)
    .where(jobs.c.id == bindparam("job"))
    .values(
        status=bindparam("status"),
        **{
            c: func.coalesce(bindparam(c), jobs.c[c])
            for c in ("started_at", "finished_at", "error", "result", "off_profile")
        },
    )
)
_PURGE = delete(jobs).where(jobs.c.id == bindparam("job"))
_HIDE = (
    update(applications)
    .where(applications.c.name == bindparam("of"), applications.c.deleted_at.is_(None))
    .values(deleted_at=bindparam("deleted_at"))
)
_SHOW = (
    update(applications)
    .where(applications.c.name == bindparam("of"), applications.c.version == bindparam("v"))
    .values(deleted_at=null())
)
_MEET = delete(arrivals).where(arrivals.c.job == bindparam("arrived"))
_OUTDATE = delete(profiles).where(
    profiles.c.application == bindparam("of"), profiles.c.number <= bindparam("last_outdated")
)
_REVOKE = (
    update(keys).where(keys.c.id == bindparam("key"), keys.c.revoked_at.is_(None)).values(revoked_at=bindparam("at"))
)
#: The columns of a listing.
_BRIEF = [c for c in jobs.c if c.name != "input"]


class Store:
    """An opened database; `async with await Store.open(url) as store`."""

    def __init__(self, location: Location, reader: Reader, writer: Writer, dialect: Dialect) -> None:
        self._location = location
        self._reader = reader
        self._writer = writer
        self._sql = _Sql(dialect)
        self._reads: set[asyncio.Task[Sequence[SqlRow[Any]]]] = set()

    @classmethod
    async def open(cls, url: str, *, create: bool = True) -> Store:
        """The store at `url`, brought to the newest schema.

        create: whether a SQLite file that does not exist is made. PostgreSQL databases have to exist.
        Raises InvalidSetting for a bad URL or a database of a newer llmsched, BackendError if it cannot be reached.
        """
        location = Location.parse(url)
        if location.path is None:
            store = cls(location, PostgresReader(location), PostgresWriter(location), _asyncpg_dialect())
        else:
            if not create and not location.path.exists():
                raise InvalidSetting(f"there is no store at {location.shown}", field="store")
            writer = SqliteWriter(location, location.path)
            store = cls(location, SqliteReader(location.path), writer, sqlite.dialect(paramstyle="qmark"))
        try:
            await store._reader.call(lambda connection: upgrade(connection, location.shown))
        except BaseException as error:
            await store.close()
            if isinstance(error, _READ_FAILURES):
                raise BackendError(f"the store {location.shown} cannot be opened: {store._reason(error)}") from error
            raise
        return store

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<store {self._location.shown}>"

    async def close(self) -> None:
        """Closes every connection and gives the service's lock back."""
        if self._reads:
            await asyncio.wait(self._reads)
        await self._writer.close()
        await self._reader.close()

    async def ping(self) -> None:
        """Raises BackendError if the database does not answer."""
        await self._read(select(1))

    async def acquire_service_lock(self) -> None:
        """Makes this process the one service that works with a SQLite file. Whoever only reads needs no lock.

        Raises Conflict if another process is that.
        """
        assert isinstance(self._writer, SqliteWriter), self
        await self._writer.lock_service()

    @property
    def is_shared(self) -> bool:
        """Whether several services may work with this store, one of which holds its lease."""
        return isinstance(self._writer, PostgresWriter)

    def lease(self, url: str, seconds: float, on_arrivals: Callable[[], None] = lambda: None) -> Lease:
        """This service's side of the lease of a store that is shared; arguments as `Lease` has them."""
        return Lease(self._location, url, seconds, on_arrivals)

    def lead(self, epoch: int) -> None:
        """From now on nothing is written unless the lease still has this epoch; if not, `fenced` is true for ever."""
        assert isinstance(self._writer, PostgresWriter), self
        self._writer.epoch = epoch

    @property
    def fenced(self) -> bool:
        """Another service leads; this one has to stop."""
        return self._writer.fenced

    # ------------------------------------------------------------------------------------------------ writing

    async def write(self, writes: Writes, *, again: bool = False) -> None:
        """All of `writes` in one durable transaction, or nothing.

        again: an earlier attempt may have been committed although it was reported as failed; rows that are there
        already are then left alone.
        Raises Conflict, InvalidInput or BackendError as `writer.py` says.
        """
        sql = self._sql
        new = [(job.id, rows.pack(recording)) for job, recording in writes.jobs if recording is not None]
        work = [
            Statement(sql.insert(jobs, again), [rows.job_row(*job) for job in writes.jobs]),
            Statement(sql.insert(recordings, again), list(new)),
            Statement(sql.insert(stages, again), [rows.stage_row(stage) for stage in writes.stages]),
            Statement(sql.insert(events, again), [rows.event_row(event) for event in writes.events]),
            Statement(sql.update, [rows.update_row(change) for change in writes.updates]),
            Statement(sql.insert(traces, again), list(writes.traces)),
            Statement(sql.callback, [rows.callback_row(callback) for callback in writes.callbacks]),
            Statement(sql.insert(arrivals, again), [(job,) for job in writes.arrivals]),
            Statement(sql.meet, [(job,) for job in writes.met]),
        ]
        if writes.arrivals and self.is_shared:
            work.append(Statement(f"NOTIFY {ARRIVALS}", [()]))
        if writes.usage and not (again and await self._is_there(writes.events[0])):
            work.append(Statement(sql.use, _by_day(writes.usage)))
        if any(statement.rows for statement in work):
            await self._writer.run([statement for statement in work if statement.rows])

    async def _is_there(self, event: EventRecord) -> bool:
        """Whether an event is stored; then everything of its transaction is."""
        query = select(events.c.seq).where(events.c.job == event.job, events.c.seq == event.seq)
        return bool(await self._read(query))

    async def add_key(self, key: KeyRecord) -> None:
        """Raises Conflict for an id that is taken."""
        row = (key.id, key.tenant, key.digest, key.is_admin, key.created_at, key.revoked_at, key.note)
        await self._writer.run([Statement(self._sql.insert(keys, False), [row])])

    async def revoke_key(self, id: str) -> bool:
        """From now on the key opens nothing. False if there is none that does."""
        return await self._writer.run([Statement(self._sql.revoke, [(time.time(), id)])]) > 0

    async def purge(self, finished_before: float, limit: int = 500) -> int:
        """Forgets at most `limit` of the jobs that finished before a moment, oldest first; how many it were.

        One whose callback is still owed waits for that.
        """
        owed = exists().where(callbacks.c.job == jobs.c.id, callbacks.c.state == OWED)
        old = select(jobs.c.id).where(jobs.c.finished_at < finished_before, ~owed).order_by(jobs.c.finished_at)
        ids = [(row.id,) for row in await self._read(old.limit(limit))]
        if ids:
            await self._writer.run([Statement(self._sql.purge, ids)])
        return len(ids)

    async def put_application(self, name: str, definition: Mapping[str, Json], digest: str) -> int:
        """The version under which this definition is known: a new one unless `digest` is that of the newest."""
        found = await self._read(_versions(name))
        newest: int = found[0].version if found else 0
        if found and found[0].digest == digest:
            await self._writer.run([Statement(self._sql.show, [(name, newest)])])
            return newest
        row = (name, newest + 1, digest, time.time(), None, to_json(dict(definition)))
        await self._writer.run([Statement(self._sql.insert(applications, False), [row])])
        return newest + 1

    async def delete_application(self, name: str) -> bool:
        """Hides every version of an application; jobs that use one keep it. False if there was none."""
        return await self._writer.run([Statement(self._sql.hide, [(time.time(), name)])]) > 0

    async def save_profile(self, application: str, version: int, learned_at: float, jobs: int, body: bytes) -> int:
        """The number under which a profile is known from now on. The last `KEPT_PROFILES` of an application are kept.

        body: zlib-compressed JSON.
        """
        found = await self._read(
            select(func.max(profiles.c.number).label("last")).where(profiles.c.application == application)
        )
        number: int = (found[0].last or 0) + 1
        row = (application, number, version, learned_at, jobs, body)
        insertion = Statement(self._sql.insert(profiles, False), [row])
        await self._writer.run([insertion, Statement(self._sql.outdate, [(application, number - KEPT_PROFILES)])])
        return number

    # ----------------------------------------------------------------------------------------------- reading

    async def applications(self) -> list[ApplicationRecord]:
        """The newest version of every application that was not deleted, by name."""
        found = await self._read(
            select(applications)
            .where(applications.c.deleted_at.is_(None))
            .order_by(applications.c.name, applications.c.version)
        )
        return [rows.application_of(list(group)[-1]) for _, group in groupby(found, lambda row: row.name)]

    async def application(self, name: str, version: int | None = None) -> ApplicationRecord | None:
        """One version of an application, deleted or not; without `version` the newest if it was not deleted."""
        query = _versions(name)
        if version is None:
            query = query.where(applications.c.deleted_at.is_(None))
        else:
            query = query.where(applications.c.version == version)
        found = await self._read(query)
        return rows.application_of(found[0]) if found else None

    async def knows_digest(self, name: str, digest: str) -> bool:
        """Whether any version of an application, deleted or not, was registered with this digest."""
        query = select(applications.c.version).where(applications.c.name == name, applications.c.digest == digest)
        return bool(await self._read(query))

    async def job(self, id: str, *, tenant: str | None = None) -> JobRecord | None:
        found = await self._read(select(jobs).where(jobs.c.id == id, *_of(tenant)))
        return rows.job_of(found[0]) if found else None

    async def recording(self, id: str, *, tenant: str | None = None) -> bytes | None:
        """The recording a job was submitted with, byte for byte."""
        query = select(recordings.c.body).join(jobs, jobs.c.id == recordings.c.job)
        found = await self._read(query.where(jobs.c.id == id, *_of(tenant)))
        return rows.unpack(found[0].body) if found else None

    async def find_idempotent(self, tenant: str, key: str) -> tuple[str, str] | None:
        """(job id, request digest) of the job that a tenant submitted under a key."""
        query = select(jobs.c.id, jobs.c.request_digest)
        found = await self._read(query.where(jobs.c.tenant == tenant, jobs.c.idempotency_key == key))
        return (found[0].id, found[0].request_digest or "") if found else None

    async def jobs(
        self,
        *,
        status: JobStatus | None = None,
        application: str | None = None,
        tenant: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[JobRecord]:
        """The newest jobs first, `before` a number (exclusive). Inputs, which can be large, are left out (None)."""
        wanted = _of(tenant)
        if status is not None:
            wanted.append(jobs.c.status == status.value)
        if application is not None:
            wanted.append(jobs.c.application == application)
        if before is not None:
            wanted.append(jobs.c.number < max(-MAX_NUMBER, min(before, MAX_NUMBER)))
        found = await self._read(select(*_BRIEF).where(*wanted).order_by(jobs.c.number.desc()).limit(limit))
        return [rows.job_of(row) for row in found]

    async def counts(self, *, tenant: str | None = None) -> dict[JobStatus, int]:
        """Stored jobs by status; every status is a key."""
        query = select(jobs.c.status, func.count().label("n")).where(*_of(tenant)).group_by(jobs.c.status)
        found = {row.status: row.n for row in await self._read(query)}
        return {status: found.get(status.value, 0) for status in JobStatus}

    async def stages(self, job: str, *, tenant: str | None = None) -> list[StageRecord]:
        """The committed stages of a job, by position."""
        query = select(stages).join(jobs, jobs.c.id == stages.c.job)
        found = await self._read(query.where(stages.c.job == job, *_of(tenant)).order_by(stages.c.position))
        return [rows.stage_of(row) for row in found]

    async def events(
        self, job: str, after_seq: int = 0, limit: int = 1000, *, tenant: str | None = None
    ) -> list[EventRecord]:
        """What clients were told of a job after event `after_seq`, in order."""
        after = max(-MAX_NUMBER, min(after_seq, MAX_NUMBER))
        query = select(events).where(events.c.job == job, events.c.seq > after)
        if tenant is not None:
            query = query.join(jobs, jobs.c.id == events.c.job).where(jobs.c.tenant == tenant)
        return [rows.event_of(row) for row in await self._read(query.order_by(events.c.seq).limit(limit))]

    async def last_number(self) -> int:
        """The highest number a stored job has; 0 if there is none."""
        found = await self._read(select(func.max(jobs.c.number).label("last")))
        return found[0].last or 0

    async def last_seq(self, ids: Iterable[str]) -> dict[str, int]:
        """The last event's number of each of these jobs that has one."""
        last: dict[str, int] = {}
        for some in _chunks(list(ids), 5 * CHUNK):
            query = select(events.c.job, func.max(events.c.seq).label("last")).where(events.c.job.in_(some))
            last |= {row.job: row.last for row in await self._read(query.group_by(events.c.job))}
        return last

    async def profiles(self) -> list[rows.StoredProfile]:
        """The newest profile of every application that has one, by name."""
        newest = select(profiles.c.application, func.max(profiles.c.number).label("number"))
        last = newest.group_by(profiles.c.application).subquery()
        is_last = (profiles.c.application == last.c.application) & (profiles.c.number == last.c.number)
        found = await self._read(select(profiles).join(last, is_last).order_by(profiles.c.application))
        return [rows.profile_of(row) for row in found]

    async def completed_since(self, application: str, moment: float, newest: int) -> int:
        """How many of the newest completed jobs of an application completed after a moment."""
        wanted = (jobs.c.application == application, jobs.c.status == JobStatus.COMPLETED.value)
        query = select(jobs.c.finished_at).where(*wanted).order_by(jobs.c.number.desc()).limit(newest)
        return sum(row.finished_at > moment for row in await self._read(query))

    async def callback(self, job: str) -> CallbackRecord | None:
        """What became of a job's callback; None before its end, and of a job without one."""
        found = await self._read(select(callbacks).where(callbacks.c.job == job))
        return rows.callback_of(found[0]) if found else None

    async def callbacks_owed(self) -> dict[str, int]:
        """How many callbacks are not over, by host."""
        query = select(callbacks.c.host, func.count().label("n")).where(callbacks.c.state == OWED)
        return {row.host: row.n for row in await self._read(query.group_by(callbacks.c.host))}

    async def callbacks_of(self, host: str, limit: int) -> list[CallbackRecord]:
        """The callbacks of a host that are not over and are due first."""
        query = select(callbacks).where(callbacks.c.state == OWED, callbacks.c.host == host)
        found = await self._read(query.order_by(callbacks.c.due_at, callbacks.c.job).limit(limit))
        return [rows.callback_of(row) for row in found]

    async def traces(self) -> dict[str, TraceRecord]:
        """Where the traces of unfinished jobs go on, by job, of those whose clients said so."""
        query = select(traces).join(jobs, jobs.c.id == traces.c.job)
        found = await self._read(query.where(jobs.c.status.in_([s.value for s in UNFINISHED])))
        return {row.job: TraceRecord(row.job, row.parent, row.state) for row in found}

    async def keys(self) -> list[KeyRecord]:
        """Every key that was given out, also revoked ones, oldest first."""
        found = await self._read(select(keys).order_by(keys.c.created_at, keys.c.id))
        return [KeyRecord(r.id, r.tenant, r.digest, r.is_admin, r.created_at, r.revoked_at, r.note) for r in found]

    async def usage(self, tenant: str, since: int, until: int) -> list[Usage]:
        """What a tenant used on each day from `since` up to and with `until`; days without use are left out."""
        days = usage.c.day.between(max(-MAX_DAY, since), min(until, MAX_DAY))
        found = await self._read(select(usage).where(usage.c.tenant == tenant, days).order_by(usage.c.day))
        return [Usage(*tuple(row)) for row in found]

    async def users(self) -> list[str]:
        """The tenants that have ever used anything, in alphabetical order."""
        return [row.tenant for row in await self._read(select(usage.c.tenant).distinct().order_by(usage.c.tenant))]

    async def arrivals(self) -> list[str]:
        """Jobs that the leader has not taken up."""
        return [row.job for row in await self._read(select(arrivals.c.job))]

    async def told(self, ids: Sequence[str]) -> list[EventRecord]:
        """Everything that clients were told of these jobs, each in order."""
        found = []
        for some in _chunks(list(ids), CHUNK):
            query = select(events).where(events.c.job.in_(some)).order_by(events.c.job, events.c.seq)
            found += [rows.event_of(row) for row in await self._read(query)]
        return found

    async def unfinished(self, ids: Iterable[str] | None = None) -> AsyncIterator[StoredJob]:
        """Every job that is neither completed, failed nor cancelled, in order of submission. ids: only of these."""
        wanted = [jobs.c.status.in_([s.value for s in UNFINISHED])]
        numbers = []
        for some in [None] if ids is None else _chunks(list(ids), 5 * CHUNK):
            theirs = wanted if some is None else [*wanted, jobs.c.id.in_(some)]
            numbers += [row.number for row in await self._read(select(jobs.c.number).where(*theirs))]
        numbers.sort()
        for some in _chunks(numbers, CHUNK):
            for stored in await self._whole(jobs.c.number.in_(some)):
                yield stored

    async def history(
        self,
        *,
        application: str | None = None,
        since: float | None = None,
        until: float | None = None,
        newest: int | None = None,
    ) -> AsyncIterator[StoredJob]:
        """Completed jobs in order of submission.

        since: those that finished at that moment or later. until: before that one. newest: of all these, so many that
        were submitted last.
        """
        wanted = [jobs.c.status == JobStatus.COMPLETED.value]
        if application is not None:
            wanted.append(jobs.c.application == application)
        if since is not None:
            wanted.append(jobs.c.finished_at >= since)
        if until is not None:
            wanted.append(jobs.c.finished_at < until)
        last = 0
        if newest is not None:
            query = select(jobs.c.number).where(*wanted).order_by(jobs.c.number.desc()).limit(newest)
            last = min((row.number for row in await self._read(query)), default=MAX_NUMBER) - 1
        while some := await self._whole(*wanted, jobs.c.number > last):
            for stored in some:
                yield stored
            last = some[-1].job.number

    async def _whole(self, *wanted: ColumnElement[bool]) -> list[StoredJob]:
        """The first of the wanted jobs, with everything that belongs to them."""
        query = select(jobs, recordings.c.body).outerjoin(recordings, recordings.c.job == jobs.c.id)
        found = await self._read(query.where(*wanted).order_by(jobs.c.number).limit(CHUNK))
        theirs: dict[str, list[StageRecord]] = {row.id: [] for row in found}
        if theirs:
            of_them = select(stages).where(stages.c.job.in_(theirs)).order_by(stages.c.job, stages.c.position)
            for row in await self._read(of_them):
                theirs[row.job].append(rows.stage_of(row))
        return [StoredJob(rows.job_of(row), rows.unpack(row.body), theirs[row.id]) for row in found]

    async def _read(self, query: Select[Any]) -> Sequence[SqlRow[Any]]:
        """The rows of a query, read to the end even if the caller goes away: stopping would cost a connection."""
        read = asyncio.create_task(self._fetch(query))
        self._reads.add(read)
        read.add_done_callback(self._reads.discard)
        return await asyncio.shield(read)

    async def _fetch(self, query: Select[Any]) -> Sequence[SqlRow[Any]]:
        """The rows of a query; none where it asks for what the database cannot represent (NUL, half a surrogate pair).

        A broken connection is replaced once: the database may have been restarted since the last read.
        """
        for attempt in (1, 2):
            try:
                return await self._reader.call(lambda connection: connection.execute(query).all())
            except (UnicodeEncodeError, OverflowError):
                return []
            except _READ_FAILURES as error:
                if _is_unrepresentable(error):
                    return []
                if attempt == 2 or not (isinstance(error, DBAPIError) and error.connection_invalidated):
                    raise BackendError(f"the store {self._location.shown} failed: {self._reason(error)}") from error
        raise AssertionError("unreachable")

    def _reason(self, error: BaseException) -> str:
        """The driver's own words, without SQL and password."""
        words = error.orig if isinstance(error, DBAPIError) else error
        return self._location.scrub(words).split("\n")[0] or type(error).__name__


class _Sql:
    """The statements of the writer, compiled for one database."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._inserts: dict[tuple[str, bool], str] = {}
        self.update = self._compiled(_UPDATE)
        self.callback = self._compiled(self._put(callbacks))
        self.purge = self._compiled(_PURGE)
        self.hide = self._compiled(_HIDE)
        self.show = self._compiled(_SHOW)
        self.outdate = self._compiled(_OUTDATE)
        self.revoke = self._compiled(_REVOKE)
        self.meet = self._compiled(_MEET)
        self.use = self._compiled(self._add_usage())

    def _add_usage(self) -> Insert:
        """Adds to the row of a tenant and day, or makes it: correct from several services at once."""
        own = sqlite.insert if self._dialect.name == "sqlite" else postgresql.insert
        key, added = list(usage.primary_key), own(usage)
        sums = {c.name: c + added.excluded[c.name] for c in usage.c if c not in key}
        return added.on_conflict_do_update(index_elements=key, set_=sums)

    def insert(self, table: Table, again: bool) -> str:
        if (table.name, again) not in self._inserts:
            own = sqlite.insert if self._dialect.name == "sqlite" else postgresql.insert
            key = [jobs.c.id] if table is jobs else list(table.primary_key)
            statement = own(table).on_conflict_do_nothing(index_elements=key) if again else insert(table)
            self._inserts[table.name, again] = self._compiled(statement)
        return self._inserts[table.name, again]

    def _put(self, table: Table) -> Insert:
        """A row that takes the place of the one with its key."""
        own = (sqlite.insert if self._dialect.name == "sqlite" else postgresql.insert)(table)
        key = list(table.primary_key)
        changed = {column.name: own.excluded[column.name] for column in table.c if not column.primary_key}
        return own.on_conflict_do_update(index_elements=key, set_=changed)

    def _compiled(self, statement: Insert | Update | Delete) -> str:
        return str(statement.compile(dialect=self._dialect))


def _asyncpg_dialect() -> Dialect:
    dialect: Dialect = asyncpg.dialect()  # type: ignore[no-untyped-call]
    return dialect


def _by_day(used: Iterable[Usage]) -> rows.Rows:
    """One row per tenant and day, sorted: services that write at once do not wait for each other in a circle."""
    total: dict[tuple[str, int], Usage] = {}
    for each in used:
        known = total.get((each.tenant, each.day))
        total[each.tenant, each.day] = each if known is None else known.plus(each)
    return [tuple(total[key]) for key in sorted(total)]


def _of(tenant: str | None) -> list[ColumnElement[bool]]:
    return [] if tenant is None else [jobs.c.tenant == tenant]


def _versions(name: str) -> Select[Any]:
    return select(applications).where(applications.c.name == name).order_by(applications.c.version.desc()).limit(1)


def _chunks(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _is_unrepresentable(error: BaseException) -> bool:
    """SQLSTATE class 22: data exception."""
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    return state is not None and state.startswith("22")

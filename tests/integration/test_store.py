"""The store on both databases, its journal, its migrations and its export; with real processes that are killed."""

from __future__ import annotations

import asyncio
import gzip
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from llmsched.errors import BackendError, Conflict, InvalidInput, InvalidSetting
from llmsched.model.events import JobClass, TaskResult
from llmsched.model.job import JobStatus
from llmsched.model.kinds import StageKind
from llmsched.model.recording import Recording
from llmsched.model.records import EventRecord, JobRecord, JobUpdate, StageRecord, StoredJob, Writes
from llmsched.store.export import export, trace_of
from llmsched.store.journal import Journal
from llmsched.store.lease import Lease
from llmsched.store.location import Location
from llmsched.store.migrate import VERSION_TABLE
from llmsched.store.rows import StoredProfile
from llmsched.store.schema import metadata
from llmsched.store.store import Store
from tests.integration.databases import postgres, postgres_url, store_url  # noqa: F401  (fixtures)

#: Text that databases and JSON libraries stumble over: NUL, half a surrogate pair, an astral character, a quote.
ODD = "a\x00b\ud800c😀'\"\\u0000"

RECORDING = b'{"app": "sorting", "job_id": "q#1", "length": 32, "stages": []}'


def job(number: int, **changes: Any) -> JobRecord:
    """A queued job, submitted `number` seconds after the epoch."""
    return replace(JobRecord(f"job_{number}", number, "sorting", 1, submitted_at=float(number)), **changes)


def stage(of: str, name: str = "split", position: int = 1, **changes: Any) -> StageRecord:
    done = StageRecord(of, name, position, "done", StageKind.LLM, 5.0, pool="llm", results=(TaskResult(1.5, 10, 20),))
    return replace(done, **changes)


def event(of: str, seq: int) -> EventRecord:
    return EventRecord(of, seq, "stage.completed", 5.0 + seq, {"stage": "split"})


def completed(number: int, **changes: Any) -> JobRecord:
    return job(number, status=JobStatus.COMPLETED, finished_at=number + 100.0, **changes)


async def everything(stream: AsyncIterator[StoredJob]) -> list[StoredJob]:
    return [stored async for stored in stream]


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:  # noqa: F811
    async with await Store.open(store_url) as opened:
        yield opened


async def fill(store: Store, jobs: Iterable[JobRecord]) -> None:
    await store.write(Writes(jobs=[(record, None) for record in jobs]))


# --------------------------------------------------------------------------------------------- jobs and stages


async def test_a_job_comes_back_as_it_was_written(store: Store) -> None:
    full = JobRecord(
        id="job_1",
        number=7,
        application="sorting",
        version=3,
        submitted_at=1.25,
        status=JobStatus.FAILED,
        job_class=JobClass.INTERACTIVE,
        tenant="ann",
        started_at=2.5,
        finished_at=1700000000.123456,
        input={"list": [1, 2.5, None, True], "deep": {"ü": "😀"}},
        has_recording=True,
        metadata={"team": "blue", "n": 1},
        deadline_s=60.0,
        callback_url="https://example.org/hook",
        idempotency_key="k",
        request_digest="abc",
        off_profile=("stage 'x' is not in the template",),
        result=[1, 2],
        error="engine said 500",
    )
    await store.write(Writes(jobs=[(full, RECORDING)]))

    assert await store.job("job_1") == full
    assert await store.recording("job_1") == RECORDING
    assert await store.jobs() == [replace(full, input=None)]
    assert await store.job("job_2") is None
    assert await store.recording("job_2") is None


async def test_stages_and_events_come_back_in_order(store: Store) -> None:
    full = StageRecord(
        job="job_1",
        name="tools",
        position=2,
        state="done",
        kind=StageKind.REGULAR,
        finished_at=9.5,
        started_at=8.0,
        after=("plan", "other"),
        parent="dyn",
        iteration=4,
        pool="cpu",
        executors=("workers-cpu", ""),
        results=(TaskResult(1.5), TaskResult(0.25, 3, 4)),
        tools=("search", None),
        outputs=[{"found": ["x"]}, "text"],
    )
    skipped = stage("job_1", "late", 3, state="skipped", results=(), kind=StageKind.LLM)
    events = [event("job_1", seq) for seq in range(1, 8)]
    await fill(store, [job(1), job(2)])
    await store.write(Writes(stages=[skipped, full], events=[events[3], *events[:3], *events[4:]]))
    await store.write(Writes(stages=[stage("job_1"), stage("job_2")], events=[event("job_2", 1)]))

    assert await store.stages("job_1") == [stage("job_1"), full, skipped]
    assert await store.events("job_1") == events
    assert await store.events("job_1", 2, 3) == events[2:5]
    assert await store.events("job_1", 7) == []
    assert await store.last_seq(["job_1", "job_2", "job_3"]) == {"job_1": 7, "job_2": 1}


async def test_an_update_leaves_alone_what_it_does_not_name(store: Store) -> None:
    await fill(store, [job(1), job(2)])
    await store.write(Writes(updates=[JobUpdate("job_1", JobStatus.RUNNING, started_at=3.0)]))
    await store.write(Writes(updates=[JobUpdate("job_1", JobStatus.RUNNING, off_profile=("a longer plan",))]))
    late = JobUpdate("job_1", JobStatus.FAILED, finished_at=4.0, result={"a": 1}, error="why")
    await store.write(Writes(updates=[late]))

    told = {"result": {"a": 1}, "error": "why", "off_profile": ("a longer plan",)}
    changed = job(1, status=JobStatus.FAILED, started_at=3.0, finished_at=4.0, **told)
    assert [await store.job("job_1"), await store.job("job_2")] == [changed, job(2)]


async def test_one_transaction_may_submit_run_and_finish_a_job(store: Store) -> None:
    running, done = JobUpdate("job_1", JobStatus.RUNNING, 2.0), JobUpdate("job_1", JobStatus.COMPLETED, None, 3.0)
    await store.write(Writes([(job(1), RECORDING)], [stage("job_1")], [event("job_1", 1)], [running, done]))

    finished = job(1, status=JobStatus.COMPLETED, started_at=2.0, finished_at=3.0, has_recording=True)
    assert await everything(store.history()) == [StoredJob(finished, RECORDING, [stage("job_1")])]


async def test_a_refused_write_leaves_nothing_behind(store: Store) -> None:
    await fill(store, [job(1)])
    with pytest.raises(Conflict):
        await store.write(Writes([(job(2), None)], [stage("job_2")], [event("job_2", 1), event("job_2", 1)]))
    with pytest.raises(Conflict):
        await store.write(Writes(jobs=[(job(3), None), (job(1), None)]))
    with pytest.raises(Conflict):
        await store.write(Writes(stages=[stage("nobody")]))

    assert await store.jobs() == [job(1)]
    assert await store.events("job_2") == []


async def test_a_stage_is_committed_once(store: Store) -> None:
    await fill(store, [job(1)])
    await store.write(Writes(stages=[stage("job_1")]))
    with pytest.raises(Conflict):
        await store.write(Writes(stages=[stage("job_1", position=2)]))
    assert await store.stages("job_1") == [stage("job_1")]


async def test_writing_again_leaves_alone_what_is_there(store: Store) -> None:
    first = Writes([(job(1, idempotency_key="k"), RECORDING)], [stage("job_1")], [event("job_1", 1)])
    await store.write(first)
    both = first + Writes([(job(2), None)], [stage("job_2")], [event("job_2", 1)])

    await store.write(both, again=True)

    assert [j.id for j in await store.jobs()] == ["job_2", "job_1"]
    assert await store.stages("job_2") == [stage("job_2")]
    with pytest.raises(Conflict):  # another job under the same key is no repetition
        await store.write(Writes(jobs=[(job(3, idempotency_key="k"), None)]), again=True)


async def test_odd_text_survives_wherever_clients_and_engines_put_it(store: Store) -> None:
    record = job(1, input={"x": ODD, "big": 2**80, "deep": [[ODD]]}, metadata={"k": ODD}, off_profile=(ODD,))
    done = JobUpdate("job_1", JobStatus.FAILED, None, 2.0, {"r": ODD}, ODD)
    outputs = stage("job_1", outputs=[ODD, -(2**70)], tools=(ODD,))
    note = EventRecord("job_1", 1, "job.failed", 1.0, {"error": ODD})
    await store.write(Writes([(record, ODD.encode(errors="surrogatepass"))], [outputs], [note], [done]))

    stored = await store.job("job_1")
    assert stored == replace(
        record, status=JobStatus.FAILED, finished_at=2.0, result={"r": ODD}, error=ODD, has_recording=True
    )
    assert await store.recording("job_1") == ODD.encode(errors="surrogatepass")
    assert await store.stages("job_1") == [outputs]
    assert await store.events("job_1") == [note]


@pytest.mark.parametrize("name", ["a\x00b", "a\ud800b"])
async def test_what_no_name_can_be_is_not_found(store: Store, name: str) -> None:
    await fill(store, [job(1)])
    assert await store.job(name) is None
    assert await store.jobs(application=name) == []
    assert await store.jobs(tenant=name) == []
    assert await store.stages(name) == []
    assert await store.events(name) == []
    assert await store.find_idempotent("", name) is None
    assert await store.application(name) is None
    assert await store.job("job_1") == job(1)


async def test_a_name_that_cannot_be_stored_is_refused_and_the_store_goes_on(store: Store) -> None:
    with pytest.raises(InvalidInput):
        await store.write(Writes(jobs=[(job(1, callback_url="a\ud800b"), None)]))
    with pytest.raises(InvalidInput):
        await store.write(Writes(jobs=[(job(2**70), None)]))
    await fill(store, [job(3)])
    assert await store.jobs() == [job(3)]


async def test_a_key_too_long_for_an_index_does_not_stop_the_journal(store: Store) -> None:
    journal = Journal(store)
    key = random.Random(0).randbytes(20_000).hex()
    first, second = journal.append(one(1)), journal.append(one(2))
    keyed = journal.append(Writes(jobs=[(job(3, idempotency_key=key), None)]))
    await journal.close()
    assert (first.exception(), second.exception()) == (None, None)
    assert keyed.exception() is None or isinstance(keyed.exception(), InvalidInput)  # SQLite takes it


async def test_a_reader_that_goes_away_leaves_the_store_as_it_was(store: Store) -> None:
    await fill(store, (job(n) for n in range(1, 301)))
    for wait in range(20):
        readers = [asyncio.create_task(store.jobs(limit=300)) for _ in range(6)]
        for _ in range(wait):
            await asyncio.sleep(0)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    assert len(await store.jobs(limit=300)) == 300


async def test_a_writer_that_goes_away_leaves_the_store_as_it_was(store: Store) -> None:
    for wait in range(0, 40, 2):
        writer = asyncio.create_task(store.write(one(wait + 1)))
        for _ in range(wait):
            await asyncio.sleep(0)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        await fill(store, [job(wait + 2)])
    found = [record.number for record in await store.jobs()]
    assert set(range(2, 42, 2)) <= set(found)


async def test_huge_payloads_survive(store: Store) -> None:
    blob = random.Random(0).randbytes(4_000_000).hex()
    record = job(1, input={"document": blob}, has_recording=True)
    await store.write(Writes([(record, blob.encode())], [stage("job_1", outputs=[blob])]))

    assert await store.job("job_1") == record
    assert await everything(store.unfinished()) == [StoredJob(record, blob.encode(), [stage("job_1", outputs=[blob])])]


# ------------------------------------------------------------------------------------------------------- lists


async def test_pages_neither_repeat_nor_skip_while_jobs_arrive(store: Store) -> None:
    await fill(store, (job(n) for n in range(1, 26)))
    seen: list[int] = []
    before = None
    for extra in itertools.count(100):
        page = await store.jobs(before=before, limit=10)
        if not page:
            break
        seen += [record.number for record in page]
        before = page[-1].number
        await fill(store, [job(extra)])  # newer than every page
    assert seen == list(range(25, 0, -1))


async def test_lists_and_counts_are_filtered(store: Store) -> None:
    apps, tenants, states = ("sorting", "search"), ("ann", "bob", ""), list(JobStatus)
    made = [
        job(n, application=apps[n % 2], tenant=tenants[n % 3], status=states[n % 5], finished_at=None)
        for n in range(1, 61)
    ]
    await fill(store, made)

    newest = made[::-1]
    failed = JobStatus.FAILED
    assert await store.jobs(status=failed) == [j for j in newest if j.status is failed]
    assert await store.jobs(application="search", limit=7) == [j for j in newest if j.application == "search"][:7]
    assert await store.jobs(tenant="ann", before=31) == [j for j in newest if j.tenant == "ann" and j.number < 31]
    assert await store.jobs(status=failed, tenant="", application="sorting", limit=1) == [
        next(j for j in newest if j.status is failed and j.tenant == "" and j.application == "sorting")
    ]
    assert await store.jobs(application="nobody") == []
    assert await store.counts() == dict.fromkeys(JobStatus, 12)
    assert sum((await store.counts(tenant="bob")).values()) == 20


@pytest.mark.parametrize("number", [10**30, -(10**30)])
async def test_a_cursor_beyond_every_number_is_no_error(store: Store, number: int) -> None:
    await fill(store, [job(1)])
    await store.write(Writes(events=[event("job_1", 1)]))
    assert await store.jobs(before=number) == ([job(1)] if number > 0 else [])
    assert await store.events("job_1", number) == ([event("job_1", 1)] if number < 0 else [])


async def test_a_tenant_sees_only_what_is_his(store: Store) -> None:
    await store.write(
        Writes([(job(1, tenant="ann", has_recording=True), RECORDING)], [stage("job_1")], [event("job_1", 1)])
    )
    for tenant in ("ann", "bob"):
        is_hers = tenant == "ann"
        assert (await store.job("job_1", tenant=tenant) is not None) is is_hers
        assert (await store.recording("job_1", tenant=tenant) is not None) is is_hers
        assert bool(await store.stages("job_1", tenant=tenant)) is is_hers
        assert bool(await store.events("job_1", tenant=tenant)) is is_hers
        assert bool(await store.jobs(tenant=tenant)) is is_hers
        assert (await store.counts(tenant=tenant))[JobStatus.QUEUED] == is_hers


async def test_an_idempotency_key_belongs_to_one_job_of_a_tenant(store: Store) -> None:
    await fill(store, [job(1, tenant="ann", idempotency_key="k", request_digest="d"), job(2, tenant="ann")])
    await fill(store, [job(3, tenant="bob", idempotency_key="k"), job(4, tenant="ann", idempotency_key="other")])

    assert await store.find_idempotent("ann", "k") == ("job_1", "d")
    assert await store.find_idempotent("bob", "k") == ("job_3", "")
    assert await store.find_idempotent("", "k") is None
    with pytest.raises(Conflict) as refused:
        await fill(store, [job(5, tenant="ann", idempotency_key="k")])
    assert refused.value.field == "idempotency_key"
    assert await store.job("job_5") is None


# --------------------------------------------------------------------------------------- restart, history, purge


async def test_a_restart_finds_every_unfinished_job_with_its_stages_in_order(store: Store) -> None:
    made = [job(n, status=list(JobStatus)[n % 5]) for n in range(1, 301)]
    recorded = [(record, RECORDING if record.number % 2 else None) for record in made]
    rows = [stage(record.id, f"s{k}", k) for record in made for k in (3, 1, 2)]
    await store.write(Writes(recorded, rows))

    restored = await everything(store.unfinished())

    assert restored == [
        StoredJob(
            replace(record, has_recording=body is not None), body, [stage(record.id, f"s{k}", k) for k in (1, 2, 3)]
        )
        for record, body in recorded
        if record.status in (JobStatus.QUEUED, JobStatus.RUNNING)
    ]
    assert await store.last_number() == 300


async def test_an_empty_store_has_nothing_to_restore(store: Store) -> None:
    assert await everything(store.unfinished()) == []
    assert await everything(store.history()) == []
    assert await store.last_number() == 0
    assert await store.last_seq([]) == {}


async def test_two_thousand_jobs_are_restored_in_time(store: Store) -> None:
    """A restart has 5 s for 2,000 jobs, most of which the scheduler needs; the store takes 0.3 to 0.8 s here."""
    body = orjson.dumps({"app": "sorting", "stages": ["x" * 50] * 50})
    for first in range(1, 2001, 500):
        numbers = range(first, first + 500)
        rows = [stage(f"job_{n}", f"s{k}", k) for n in numbers for k in range(1, 5)]
        notes = [event(f"job_{n}", seq) for n in numbers for seq in range(1, 7)]
        await store.write(Writes([(job(n, status=JobStatus.RUNNING), body) for n in numbers], rows, notes))

    began = time.perf_counter()
    restored = await everything(store.unfinished())
    last = await store.last_seq([stored.job.id for stored in restored])
    seconds = time.perf_counter() - began

    assert [stored.job.number for stored in restored] == list(range(1, 2001))
    assert all(len(stored.stages) == 4 and stored.recording == body for stored in restored)
    assert set(last.values()) == {6}
    assert len(last) == 2000
    assert seconds < 4.0  # twice what the restart leaves to it, because test machines are busy


async def test_history_is_what_completed(store: Store) -> None:
    made = [completed(n, application="sorting" if n % 2 else "search") for n in range(1, 251)]
    failed = job(251, status=JobStatus.FAILED, finished_at=1e6)
    await store.write(Writes([(j, None) for j in (*made, failed, job(252))], [stage(j.id) for j in made]))

    assert await everything(store.history()) == [StoredJob(j, None, [stage(j.id)]) for j in made]
    recent = [stored.job for stored in await everything(store.history(application="search", since=300.0))]
    assert recent == [j for j in made if j.application == "search" and j.number >= 200]


async def test_history_may_be_cut_to_what_was_submitted_last(store: Store) -> None:
    other = {"application": "other"}
    await fill(store, [completed(n, **(other if n % 2 else {})) for n in range(1, 251)])
    await fill(store, [job(300)])
    assert [s.job.number for s in await everything(store.history(newest=3))] == [248, 249, 250]
    mine = [s.job.number for s in await everything(store.history(application="sorting", newest=120))]
    assert mine == list(range(12, 251, 2))
    assert len(await everything(store.history(newest=1_000))) == 250
    assert await everything(store.history(application="none", newest=5)) == []


async def test_what_completed_since_a_moment_is_counted(store: Store) -> None:
    await fill(store, [completed(1), completed(2), completed(3, application="other"), job(4)])
    assert await store.completed_since("sorting", 0.0, 10) == 2
    assert await store.completed_since("sorting", 0.0, 1) == 1
    assert await store.completed_since("sorting", 101.0, 10) == 1  # finished at 101 and 102
    assert await store.completed_since("none", 0.0, 10) == 0


async def test_the_newest_profile_of_every_application_comes_back(store: Store) -> None:
    assert await store.profiles() == []
    body = bytes(range(256)) * 2_000
    assert await store.save_profile("sorting", 1, 10.5, 60, b"old") == 1
    assert await store.save_profile("sorting", 2, 20.5, 110, body) == 2
    assert await store.save_profile("other", 1, 15.0, 30, b"other") == 1
    assert await store.profiles() == [
        StoredProfile("other", 1, 1, 15.0, 30, b"other"),
        StoredProfile("sorting", 2, 2, 20.5, 110, body),
    ]


async def test_the_last_five_profiles_of_an_application_are_kept(store: Store) -> None:
    await store.save_profile("other", 1, 0.0, 1, b"")
    for number in range(1, 9):
        assert await store.save_profile("sorting", 1, float(number), 1, b"") == number
    kept = "SELECT application, number FROM profiles ORDER BY application, number"
    found = await store._reader.call(lambda connection: connection.execute(text(kept)).all())
    assert [tuple(row) for row in found] == [("other", 1), *(("sorting", n) for n in range(4, 9))]


async def test_retention_forgets_finished_jobs_oldest_first_and_whatever_belongs_to_them(store: Store) -> None:
    made = [completed(n, has_recording=True) for n in range(1, 8)]
    old_but_running = job(8, status=JobStatus.RUNNING)
    everyone = [*made, old_but_running]
    await store.write(
        Writes([(j, RECORDING) for j in everyone], [stage(j.id) for j in everyone], [event(j.id, 1) for j in everyone])
    )

    assert await store.purge(finished_before=105.0, limit=3) == 3
    assert [j.number for j in await store.jobs()] == [8, 7, 6, 5, 4]
    assert await store.purge(finished_before=105.0, limit=3) == 1
    assert await store.purge(finished_before=105.0, limit=3) == 0
    assert [j.number for j in await store.jobs()] == [8, 7, 6, 5]
    for gone in ("job_1", "job_4"):
        assert await store.recording(gone) is None
        assert await store.stages(gone) == []
        assert await store.events(gone) == []
    assert await store.events("job_5") == [event("job_5", 1)]


# ------------------------------------------------------------------------------------------------ applications


async def test_an_application_gets_a_new_version_when_its_digest_changes(store: Store) -> None:
    one, two = {"name": "sorting", "stages": [1]}, {"name": "sorting", "stages": [1, 2]}
    assert await store.put_application("sorting", one, "d1") == 1
    assert await store.put_application("sorting", one, "d1") == 1
    assert await store.put_application("sorting", two, "d2") == 2
    assert await store.put_application("sorting", one, "d1") == 3
    assert await store.put_application("search", two, "d2") == 1

    assert [(a.name, a.version) for a in await store.applications()] == [("search", 1), ("sorting", 3)]
    newest, second = await store.application("sorting"), await store.application("sorting", 2)
    assert newest is not None
    assert second is not None
    assert (newest.version, newest.digest, newest.definition) == (3, "d1", one)
    assert (second.version, second.digest, second.definition) == (2, "d2", two)
    assert await store.application("sorting", 4) is None
    assert await store.application("nobody") is None
    assert await store.knows_digest("sorting", "d2")
    assert not await store.knows_digest("search", "d1")


async def test_a_deleted_application_is_hidden_but_its_jobs_keep_it(store: Store) -> None:
    await store.put_application("sorting", {"v": 1}, "d1")
    await store.put_application("sorting", {"v": 2}, "d2")

    assert await store.delete_application("sorting")
    assert not await store.delete_application("sorting")
    assert await store.applications() == []
    assert await store.application("sorting") is None
    kept = await store.application("sorting", 2)
    assert kept is not None
    assert kept.definition == {"v": 2}
    assert await store.knows_digest("sorting", "d1")

    assert await store.put_application("sorting", {"v": 2}, "d2") == 2
    assert [a.version for a in await store.applications()] == [2]
    await store.delete_application("sorting")
    assert await store.put_application("sorting", {"v": 3}, "d3") == 3
    assert [a.version for a in await store.applications()] == [3]


# ----------------------------------------------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("jobs.db", "no scheme"),
        ("mysql://root@localhost/x", "unknown kind of store 'mysql'"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "nothing would survive"),
        ("sqlite:///jobs.db?mode=ro", "must be a plain file"),
        ("sqlite+aiosqlite:///jobs.db", "unknown kind of store"),
        ("postgresql:/host/x", "not readable"),
        ("postgresql://ann:sec/ret@host/x", "percent-encode"),
        ("postgresql://ann:se@cret@host/x", "percent-encode"),
        ("postgresql://ann:secret#1@host/x", "percent-encode"),
    ],
)
async def test_a_bad_url_gets_one_sentence(url: str, words: str) -> None:
    with pytest.raises(InvalidSetting, match=words) as refused:
        await Store.open(url)
    assert "cret" not in str(refused.value).replace("password", "")
    assert refused.value.field == "store"


def test_sqlite_paths_are_relative_or_absolute() -> None:
    assert Location.parse("sqlite:///jobs.db").path == Path.cwd() / "jobs.db"
    assert Location.parse("sqlite:////var/lib/my jobs.db").path == Path("/var/lib/my jobs.db")


async def test_an_unreachable_database_is_told_without_its_password(unused_tcp_port: int) -> None:
    url = f"postgresql://ann:top%40secret@127.0.0.1:{unused_tcp_port}/llmsched?sslmode=disable"
    with pytest.raises(BackendError) as refused:
        await Store.open(url)
    message = str(refused.value)
    assert message.startswith(f"the store postgresql://ann@127.0.0.1:{unused_tcp_port}/llmsched cannot be opened: ")
    assert "secret" not in message + repr(Location.parse(url))


async def test_a_database_that_does_not_exist_is_told(postgres: str) -> None:  # noqa: F811
    with pytest.raises(BackendError, match=r'cannot be opened: database "nobody" does not exist$'):
        await Store.open(postgres.replace("/postgres?", "/nobody?"))


async def test_a_file_that_is_no_database_is_told_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database, although it is long enough to be looked at" * 100)
    before = file.read_bytes()
    with pytest.raises(BackendError, match="cannot be opened: file is not a database"):
        await Store.open(f"sqlite:///{file}")
    assert file.read_bytes() == before
    with pytest.raises(BackendError, match="unable to open database file"):
        await Store.open(f"sqlite:///{tmp_path}/no/such/folder/jobs.db")


async def test_a_store_that_is_only_read_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="there is no store at sqlite:///"):
        await Store.open(f"sqlite:///{tmp_path}/typo.db", create=False)
    assert os.listdir(tmp_path) == []


async def test_the_path_may_hold_any_characters(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/my jobs #1 100%.db"
    async with await Store.open(url) as store:
        await fill(store, [job(1)])
    async with await Store.open(url, create=False) as store:
        assert await store.jobs() == [job(1)]
    assert (tmp_path / "my jobs #1 100%.db").exists()


# -------------------------------------------------------------------------------------------------- migrations


async def test_the_migrations_make_exactly_the_schema(store: Store) -> None:
    def differences(connection: Any) -> Any:
        return compare_metadata(MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}), metadata)

    assert await store._reader.call(differences) == []


async def test_a_database_of_the_first_version_keeps_what_it_has(store_url: str) -> None:  # noqa: F811
    async with await Store.open(store_url) as store:
        await fill(store, [completed(1)])

        def as_it_was(connection: Any) -> None:
            connection.execute(text("DROP TABLE lease"))
            connection.execute(text("DROP TABLE arrivals"))
            connection.execute(text("CREATE TABLE services (id INTEGER PRIMARY KEY)"))
            connection.execute(text("DROP TABLE keys"))
            connection.execute(text("DROP TABLE usage"))
            connection.execute(text("DROP TABLE callbacks"))
            connection.execute(text("DROP TABLE traces"))
            connection.execute(text("DROP TABLE profiles"))
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0001'"))

        await store._reader.call(as_it_was)
    async with await Store.open(store_url) as store:
        assert await store.job("job_1") == completed(1)
        assert await store.save_profile("sorting", 1, 1.0, 10, b"x") == 1
        assert await store.callback("job_1") is None


async def test_opening_again_changes_nothing(store_url: str) -> None:  # noqa: F811
    async with await Store.open(store_url) as store:
        await fill(store, [job(1)])
    async with await Store.open(store_url) as store:
        assert await store.jobs() == [job(1)]


async def test_a_database_of_a_newer_llmsched_is_refused(store_url: str) -> None:  # noqa: F811
    async with await Store.open(store_url) as store:
        await fill(store, [job(1)])
        newer = text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        await store._reader.call(lambda connection: connection.execute(newer))
    with pytest.raises(InvalidSetting, match=r"has schema 9999, made by a newer llmsched; this one knows \d+: upgrade"):
        await Store.open(store_url)


async def test_many_may_open_an_empty_database_at_once(store_url: str) -> None:  # noqa: F811
    stores = await asyncio.gather(*(Store.open(store_url) for _ in range(8)))
    await fill(stores[0], [job(1)])
    assert [await store.jobs() for store in stores] == [[job(1)]] * 8
    for store in stores:
        await store.close()


# ------------------------------------------------------------------------------------------- one service only


def child(program: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that runs `program` with the store's names at hand."""
    head = "import asyncio, sys\nfrom tests.integration.test_store import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + program, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


HOLD = """
async def main():
    store = await Store.open(sys.argv[1])
    await store.acquire_service_lock()
    print("held", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


async def test_a_second_service_is_refused_until_the_first_is_gone_even_by_kill(sqlite_url: str) -> None:
    with child(HOLD, sqlite_url) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        async with await Store.open(sqlite_url) as store:
            with pytest.raises(Conflict, match=f"another llmsched service .process {first.pid} on ") as refused:
                await store.acquire_service_lock()
            assert refused.value.field == "store"
            assert await store.jobs() == []  # who only reads is welcome
            first.kill()
            first.wait()
            await store.acquire_service_lock()
            await fill(store, [job(1)])


async def test_a_closed_store_gives_the_lock_back(sqlite_url: str) -> None:
    async with await Store.open(sqlite_url) as first, await Store.open(sqlite_url) as second:
        await first.acquire_service_lock()
        with pytest.raises(Conflict, match="another llmsched service"):
            await second.acquire_service_lock()
        await first.close()
        await second.acquire_service_lock()


# ----------------------------------------------------------------------------------------------------- the lease


async def disconnect(url: str) -> None:
    """Cuts every connection to a PostgreSQL database but our own."""
    admin = await asyncpg.connect(url)
    await admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await admin.close()


@asynccontextmanager
async def leased(url: str, name: str, seconds: float = 60.0) -> AsyncIterator[tuple[Store, Lease]]:
    async with await Store.open(url) as store:
        lease = store.lease(f"http://{name}", seconds)
        yield store, lease
        await lease.close()


async def test_one_leads_and_the_others_know_whom_to_ask(postgres_url: str) -> None:  # noqa: F811
    async with leased(postgres_url, "a") as (_, a), leased(postgres_url, "b") as (_, b):
        assert (await a.look())[:4] == (0, "", "", "")
        assert not (await a.look()).is_alive
        assert await a.take()
        assert not await b.take()
        assert await a.renew(active_jobs=7)
        assert await b.look() == (1, a.holder, "http://a", a.secret, 7, True)
        assert a.number != b.number
        await a.close()
        assert await b.take()
        assert b.epoch == 2


async def age(url: str, seconds: float) -> None:
    """So many seconds pass for the lease."""
    admin = await asyncpg.connect(url)
    await admin.execute("UPDATE lease SET renewed_at = renewed_at - $1::float8", seconds)
    await admin.close()


async def test_a_lease_runs_out_while_its_session_lives_and_sooner_without(postgres_url: str) -> None:  # noqa: F811
    async with leased(postgres_url, "a") as (_, a), leased(postgres_url, "b") as (_, b):
        assert await a.take()
        await age(postgres_url, 45)
        assert not await b.take()
        await age(postgres_url, 15)
        assert await b.take()
        assert not await a.renew(0)
        async with leased(postgres_url, "c") as (_, c):
            await disconnect(postgres_url)
            with suppress(BackendError):
                await a.take()
            await age(postgres_url, 30)
            assert not await a.take()  # its own connection has broken just now: perhaps the database was away
            with suppress(BackendError):
                await c.look()
        async with leased(postgres_url, "d") as (_, d):
            assert await d.take()  # b had no session any more, and did not renew


async def test_a_lost_connection_costs_nobody_the_lead(postgres_url: str) -> None:  # noqa: F811
    async with leased(postgres_url, "a") as (store, a), leased(postgres_url, "b") as (_, b):
        assert await a.take()
        assert a.epoch is not None
        store.lead(a.epoch)
        await fill(store, [job(1)])
        await disconnect(postgres_url)
        with suppress(BackendError):
            await a.renew(0)
        assert await store.jobs() == [job(1)]  # reads notice nothing
        journal = Journal(store, retry_delays=(0.0,))
        await journal.append(Writes(jobs=[(job(2), None)]))
        assert await store.jobs() == [job(2), job(1)]
        assert await a.renew(0)
        with suppress(BackendError):
            await b.take()
        assert not await b.take()
        await journal.close()


async def test_a_leader_that_was_replaced_writes_nothing_more(postgres_url: str) -> None:  # noqa: F811
    async with leased(postgres_url, "a") as (old, a), leased(postgres_url, "b") as (new, b):
        assert await a.take()
        assert a.epoch is not None
        old.lead(a.epoch)
        await fill(old, [job(1)])
        await age(postgres_url, 60)
        assert await b.take()
        assert b.epoch is not None
        new.lead(b.epoch)
        await fill(new, [job(2)])
        journal = Journal(old, retry_delays=(0.0,))
        with pytest.raises(BackendError, match="taken over by another llmsched service"):
            await journal.append(Writes(jobs=[(job(3), None)]))
        assert old.fenced
        assert not journal.healthy
        with pytest.raises(BackendError, match="taken over"):
            await journal.append(Writes(jobs=[(job(4), None)]))
        assert await old.jobs() == [job(2), job(1)]
        await journal.close()


async def test_a_transaction_in_progress_comes_before_the_next_leader(postgres_url: str) -> None:  # noqa: F811
    """What a leader began to write while it led is committed before another one leads, or not at all."""
    async with leased(postgres_url, "a") as (_, a), leased(postgres_url, "b") as (_, b):
        assert await a.take()
        await age(postgres_url, 60)
        frozen = await asyncpg.connect(postgres_url)
        await frozen.execute("SET idle_in_transaction_session_timeout = 1000")
        transaction = frozen.transaction()
        await transaction.start()
        await frozen.fetchval("SELECT epoch FROM lease WHERE id = 1 FOR SHARE")
        began = time.monotonic()
        assert await b.take()
        assert time.monotonic() - began > 0.5  # it waited for the transaction, which PostgreSQL gave up
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
            await frozen.execute("SELECT 1")
        frozen.terminate()


async def test_jobs_that_arrive_are_announced_until_they_are_met(postgres_url: str) -> None:  # noqa: F811
    heard = asyncio.Event()
    async with await Store.open(postgres_url) as leader, await Store.open(postgres_url) as other:
        lease = leader.lease("http://a", 5.0, heard.set)
        await lease.take()
        heard.clear()
        await other.write(Writes(jobs=[(job(1), None)], events=[event("job_1", 1)], arrivals=["job_1"]))
        async with asyncio.timeout(5):
            await heard.wait()
        assert await leader.arrivals() == ["job_1"]
        assert [stored.job.id async for stored in leader.unfinished(["job_1", "job_2"])] == ["job_1"]
        assert await leader.told(["job_1"]) == [event("job_1", 1)]
        await leader.write(Writes(met=["job_1"]))
        assert await leader.arrivals() == []
        await lease.close()


# ------------------------------------------------------------------------------------------------- the journal


class Memory:
    """A store in memory that fails as it is told; an unknown outcome is written and reported as failed."""

    def __init__(self) -> None:
        self.fenced = False
        self.transactions: list[Writes] = []
        self.attempts: list[bool] = []
        self.failures: list[Exception] = []
        self.refused: dict[str, Exception] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.called = asyncio.Event()
        self.failed_twice = asyncio.Event()

    async def write(self, writes: Writes, *, again: bool = False) -> None:
        self.called.set()
        await self.gate.wait()
        self.attempts.append(again)
        if self.failures:
            if len(self.attempts) == 2:
                self.failed_twice.set()
            raise self.failures.pop(0)
        for record, _ in writes.jobs:
            if record.id in self.refused:
                raise self.refused[record.id]
        self.transactions.append(writes)


def one(number: int) -> Writes:
    return Writes(jobs=[(job(number), None)])


def numbers(writes: Writes) -> list[int]:
    return [record.number for record, _ in writes.jobs]


async def test_what_queues_up_during_a_transaction_becomes_the_next_one() -> None:
    memory, seen = Memory(), []
    journal = Journal(memory, lambda writes: seen.append(numbers(writes)))
    memory.gate.clear()
    first = journal.append(one(1))
    await memory.called.wait()
    others = [journal.append(one(n)) for n in range(2, 6)]
    assert journal.pending == 5
    memory.gate.set()
    await asyncio.gather(first, *others)

    assert seen == [[1], [2, 3, 4, 5]]
    assert journal.pending == 0
    await journal.close()


async def test_patient_writes_wait_for_others_to_share_a_transaction_with() -> None:
    memory, seen = Memory(), []
    journal = Journal(memory, lambda writes: seen.append(numbers(writes)))
    journal.append(one(1), patience=60.0)
    await journal.append(one(2))
    assert seen == [[1, 2]]
    await journal.append(one(3), patience=0.001)
    assert seen == [[1, 2], [3]]
    await journal.close()


async def test_a_transaction_is_bounded() -> None:
    memory = Memory()
    journal = Journal(memory)
    for _ in range(4):
        journal.append(Writes(events=[event("job_1", seq) for seq in range(2_000)]))
    await journal.flush()
    assert [len(writes) for writes in memory.transactions] == [4_000, 4_000]
    await journal.close()


async def test_one_refused_write_does_not_take_the_others_with_it() -> None:
    memory, seen = Memory(), []
    memory.refused["job_2"] = Conflict("clashes")
    memory.refused["job_3"] = ValueError("a bug of ours")
    journal = Journal(memory, lambda writes: seen.append(numbers(writes)))
    results = await asyncio.gather(*(journal.append(one(n)) for n in range(1, 6)), return_exceptions=True)

    assert results == [None, memory.refused["job_2"], memory.refused["job_3"], None, None]
    assert seen == [[1], [4], [5]]
    assert journal.healthy
    await journal.close()


async def test_nothing_is_dropped_while_the_database_is_away() -> None:
    memory, seen = Memory(), []
    memory.failures = [BackendError("the store is away")] * 3
    journal = Journal(memory, lambda writes: seen.append(numbers(writes)), retry_delays=(0.0, 0.0))
    first = journal.append(one(1))
    await memory.failed_twice.wait()
    assert (journal.healthy, journal.last_error, journal.pending) == (False, "the store is away", 1)
    await asyncio.gather(first, journal.append(one(2)))

    assert seen == [[1], [2]]
    assert memory.attempts == [False, True, True, True, False]
    assert journal.healthy
    await journal.close()


async def test_closing_writes_what_is_left_but_does_not_wait_for_ever() -> None:
    memory = Memory()
    journal = Journal(memory)
    last = journal.append(one(1))
    await journal.close()
    assert last.done()
    assert numbers(memory.transactions[0]) == [1]
    with pytest.raises(BackendError, match="the journal is closed"):
        await journal.append(one(2))

    memory.failures = [BackendError("away")] * 100
    hopeless = Journal(memory, retry_delays=(60.0,))
    stuck = hopeless.append(one(3))
    await hopeless.close(timeout=0.05)
    with pytest.raises(BackendError, match="perhaps not stored: the journal is closed"):
        await stuck


async def test_a_bug_in_the_listener_stops_the_journal_visibly() -> None:
    def listener(_: Writes) -> None:
        raise KeyError("job_1")

    memory = Memory()
    journal = Journal(memory, listener)
    await journal.append(one(1))  # it is durable, whoever failed to hear of it
    await journal.flush()
    assert not journal.healthy
    assert journal.last_error == "the journal has stopped: 'job_1'"
    with pytest.raises(BackendError, match="the journal has stopped"):
        await journal.append(one(2))
    await journal.close()


async def test_a_caller_that_goes_away_changes_nothing() -> None:
    memory = Memory()
    journal = Journal(memory)
    memory.gate.clear()
    journal.append(one(1)).cancel()
    kept = journal.append(one(2))
    memory.gate.set()
    await kept
    assert [numbers(writes) for writes in memory.transactions] == [[1, 2]]
    await journal.close()


async def test_the_journal_of_a_real_store_keeps_order(store: Store) -> None:
    seen: list[tuple[str, int]] = []
    journal = Journal(store, lambda writes: seen.extend((e.job, e.seq) for e in writes.events))
    for n in range(1, 6):
        journal.append(Writes([(job(n), RECORDING)], events=[event(f"job_{n}", 1)]))
    twin = journal.append(one(3))
    for seq, n in itertools.product(range(2, 20), range(1, 6)):
        journal.append(Writes(events=[event(f"job_{n}", seq)]))
        if seq % 3 == 0:
            await asyncio.sleep(0)
    await journal.flush()

    assert isinstance(twin.exception(), Conflict)
    assert seen == [(f"job_{n}", seq) for seq in range(1, 20) for n in range(1, 6)]
    assert await store.last_seq([f"job_{n}" for n in range(1, 6)]) == {f"job_{n}": 19 for n in range(1, 6)}
    await journal.close()


# --------------------------------------------------------------------------------------------------- kill -9


WRITE = """
async def main():
    store = await Store.open(sys.argv[1])
    journal = Journal(store)
    async def submit(n):
        rows = [stage(f"job_{n}", f"s{k}", k, outputs=["x" * 2000]) for k in range(1, 6)]
        await journal.append(Writes([(job(n), RECORDING)], rows, [event(f"job_{n}", 1)]))
        print(n, flush=True)
    n = await store.last_number()
    while True:
        await asyncio.gather(*(submit(n + k) for k in range(1, 9)))
        n += 8
asyncio.run(main())
"""


async def test_kill_in_mid_write_loses_nothing_that_was_acknowledged(store_url: str) -> None:  # noqa: F811
    acknowledged: list[int] = []
    for least in (3, 20, 41):
        with child(WRITE, store_url) as writer:
            assert writer.stdout is not None
            acknowledged += [int(writer.stdout.readline()) for _ in range(least)]
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
        async with await Store.open(store_url) as store:
            restored = await everything(store.unfinished())
        found = [stored.job.number for stored in restored]
        assert set(acknowledged) <= set(found)
        assert found == sorted(set(found))
        for stored in restored:  # each job is there with all of its transaction
            assert stored.recording == RECORDING
            assert [s.name for s in stored.stages] == ["s1", "s2", "s3", "s4", "s5"]


def test_two_processes_may_start_on_an_empty_database(store_url: str) -> None:  # noqa: F811
    program = "store = asyncio.run(Store.open(sys.argv[1]))\nprint('open')"
    # Closed by the end of the process: what is tested is the opening.
    first, second = child(program, store_url), child(program, store_url)
    with first, second:
        assert [first.communicate()[0], second.communicate()[0]] == ["open\n", "open\n"]


async def test_commits_survive_a_power_cut(tmp_path: Path) -> None:
    """Nobody can pull a plug here; but this is what SQLite promises it for."""
    async with await Store.open(f"sqlite:///{tmp_path}/jobs.db") as store:
        await fill(store, [job(1)])
        writer: Any = store._writer
        pragma = {name: writer._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS}
    assert pragma == PRAGMAS


PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


# ------------------------------------------------------------------------------------------------------ export


def lived(recording: Recording, number: int = 1, *, skipped: Iterable[StageRecord] = ()) -> StoredJob:
    """What the service would have stored of a recorded job whose tasks took 0.5 s (LLM) or as long as recorded."""
    record = completed(number, application=recording.application)
    rows = []
    inner_first = sorted(recording.stages, key=lambda s: s.kind is StageKind.DYNAMIC)  # a placeholder is done last
    for position, s in enumerate(inner_first, 1):
        is_llm = s.kind is StageKind.LLM
        rows.append(
            StageRecord(
                record.id,
                s.name,
                position,
                "done",
                s.kind,
                9.0,
                after=s.after,
                parent=s.parent,
                iteration=s.iteration,
                results=tuple(TaskResult(t.duration or 0.5, t.prompt_tokens, t.output_tokens) for t in s.tasks),
                tools=() if is_llm else tuple(t.tool for t in s.tasks),
            )
        )
    return StoredJob(record, orjson.dumps(recording.to_json()), [*rows, *skipped])


PLANNED = Recording.from_json(
    {
        "app": "planner",
        "job_id": "q#1",
        "variant": "single",
        "stages": [
            {
                "name": "plan",
                "kind": "llm",
                "iteration": 0,
                "deps": [],
                "tasks": [{"prompt_tokens": 9, "output_tokens": 4}],
            },
            {"name": "tools", "kind": "dynamic", "deps": ["plan"], "tasks": [], "generates": ["search", "sum"]},
            {
                "name": "search",
                "kind": "regular",
                "deps": ["plan"],
                "tasks": [{"tool": "search", "duration_s": 0.25}, {"duration_s": 0.5}],
                "parent": "tools",
            },
            {
                "name": "sum",
                "kind": "llm",
                "deps": ["search"],
                "tasks": [{"prompt_tokens": 5, "output_tokens": 6}],
                "parent": "tools",
            },
            {"name": "join", "kind": "llm", "deps": ["tools"], "tasks": [{"prompt_tokens": 1, "output_tokens": 2}]},
        ],
    }
)


def replayed(stored: StoredJob, features: dict[str, Any] | None = None) -> Recording:
    """What the exported line of a job says, after a trip through JSON."""
    return Recording.from_json(json.loads(orjson.dumps(trace_of(stored.job, stored.stages, features))))


def test_a_traced_job_is_the_job_that_ran() -> None:
    assert replayed(lived(PLANNED), {"variant": "single"}) == replace(PLANNED, job_id="job_1#live")


def test_a_placeholder_that_was_not_stored_is_told_by_its_inner_stages() -> None:
    stored = lived(PLANNED)
    rows = [row for row in stored.stages if row.kind is not StageKind.DYNAMIC]
    assert replayed(stored._replace(stages=rows)).stages == PLANNED.stages


def test_what_waited_for_a_skipped_stage_waits_for_its_parents() -> None:
    rows = [
        stage("job_1", "code", 1),
        stage("job_1", "fix_1", 2, state="skipped", results=(), after=("code",)),
        stage("job_1", "fix_2", 3, state="skipped", results=(), after=("fix_1",)),
        stage("job_1", "report", 4, after=("code", "fix_1", "fix_2"), results=(TaskResult(0.0, 3, 0),)),
    ]
    recording = replayed(StoredJob(completed(1), None, rows))
    assert [(s.name, s.after) for s in recording.stages] == [("code", ()), ("report", ("code",))]
    assert recording.stages[1].tasks[0].output_tokens == 1  # no engine can be asked for fewer


@pytest.mark.skipif("LLMSCHED_TRACES" not in os.environ, reason="needs the traces")
def test_every_traced_job_survives_the_round_trip() -> None:
    for file in sorted(Path(os.environ["LLMSCHED_TRACES"]).glob("*.jsonl.gz")):
        for line in gzip.decompress(file.read_bytes()).splitlines()[::20]:
            recording = Recording.from_json(json.loads(line))
            live = replayed(lived(recording), dict(recording.features))
            assert live == replace(recording, job_id="job_1#live", stages=tuple(plain(s) for s in recording.stages))


def plain(recorded: Any) -> Any:
    """Without the name of the candidate set, which the template knows."""
    return replace(recorded, candidates=None)


@pytest.mark.parametrize("name", ["history.jsonl", "history.jsonl.gz"])
async def test_export_writes_completed_jobs(store: Store, tmp_path: Path, name: str) -> None:
    mine, other = lived(PLANNED, 1), lived(replace(PLANNED, application="other"), 2)
    jobs = [(mine.job, mine.recording), (other.job, None), (job(3), None)]
    await store.write(Writes(jobs, [*mine.stages, *other.stages]))
    file = tmp_path / name

    assert await export(store, file) == 2
    lines = (gzip.decompress(file.read_bytes()) if name.endswith(".gz") else file.read_bytes()).splitlines()
    assert [orjson.loads(line)["job_id"] for line in lines] == ["job_1#live", "job_2#live"]
    assert Recording.from_json(orjson.loads(lines[0])) == replace(PLANNED, job_id="job_1#live")
    assert [found for found in os.listdir(tmp_path) if found.startswith(".")] == []

    stream = io.BytesIO()
    assert await export(store, stream, application="other", since=102.0) == 1
    assert orjson.loads(stream.getvalue())["app"] == "other"
    assert await export(store, io.BytesIO(), since=103.0) == 0


async def test_the_size_of_an_input_is_exported_and_read_again(store: Store) -> None:
    question = {"text": "Grüße 😀", "n": [1, 2]}
    live = replace(lived(PLANNED, 1).job, input=question)
    await store.write(Writes([(live, None)], lived(PLANNED, 1).stages))
    stream = io.BytesIO()
    assert await export(store, stream) == 1
    recording = Recording.from_json(orjson.loads(stream.getvalue()))
    assert recording.features == {"input_chars": len('{"text":"Grüße 😀","n":[1,2]}')}
    assert Recording.from_json(recording.to_json()) == recording


async def test_an_export_reads_beside_a_service_that_writes(store: Store, store_url: str) -> None:  # noqa: F811
    await fill(store, (completed(n) for n in range(1, 251)))
    async with await Store.open(store_url, create=False) as reader:
        seen = 0
        async for stored in reader.history():
            seen += 1
            if stored.job.number % 50 == 0:
                await fill(store, [job(1000 + stored.job.number)])
    assert seen == 250

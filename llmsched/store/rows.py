"""Records to rows and back. A row to be written is a tuple in the order of its table's columns."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

from sqlalchemy import Row as SqlRow

from llmsched.model.events import JobClass, TaskResult
from llmsched.model.job import JobStatus
from llmsched.model.jsontext import from_json, to_json
from llmsched.model.kinds import StageKind
from llmsched.model.records import (
    ApplicationRecord,
    CallbackRecord,
    EventRecord,
    JobRecord,
    JobUpdate,
    Json,
    StageRecord,
)

Row = tuple[Any, ...]
Rows = list[Row]


def _optional(value: Json) -> str | None:
    return None if value is None else to_json(value)


def _read(text: str | None) -> Json:
    return None if text is None else from_json(text)


def pack(recording: bytes) -> bytes:
    return zlib.compress(recording)


def unpack(body: bytes | None) -> bytes | None:
    return None if body is None else zlib.decompress(body)


class StoredProfile(NamedTuple):
    """What was learned of an application. number: 1, 2, … per application. body: zlib-compressed JSON."""

    application: str
    number: int
    version: int
    learned_at: float
    jobs: int
    body: bytes


# ------------------------------------------------------------------------------------------------- to rows


def job_row(job: JobRecord, recording: bytes | None) -> Row:
    return (
        job.number,
        job.id,
        job.application,
        job.version,
        job.status.value,
        job.job_class.label,
        job.tenant,
        job.submitted_at,
        job.started_at,
        job.finished_at,
        recording is not None,
        job.deadline_s,
        job.callback_url,
        job.idempotency_key,
        job.request_digest,
        to_json(job.off_profile),
        _optional(job.error),  # JSON as well: an engine's words may hold NUL, which PostgreSQL has no text for
        to_json(dict(job.metadata)),
        _optional(job.input),
        _optional(job.result),
    )


def stage_row(stage: StageRecord) -> Row:
    return (
        stage.job,
        stage.name,
        stage.position,
        stage.state,
        stage.kind.value,
        stage.parent,
        stage.iteration,
        stage.pool,
        stage.started_at,
        stage.finished_at,
        to_json(stage.after),
        to_json(stage.executors),
        to_json([(r.duration, r.prompt_tokens, r.output_tokens) for r in stage.results]),
        to_json(stage.tools),
        _optional(stage.outputs),
    )


def event_row(event: EventRecord) -> Row:
    return (event.job, event.seq, event.type, event.at, to_json(dict(event.data)))


def update_row(update: JobUpdate) -> Row:
    return (
        update.status.value,
        update.started_at,
        update.finished_at,
        _optional(update.off_profile),
        _optional(update.error),
        _optional(update.result),
        update.id,
    )


def callback_row(callback: CallbackRecord) -> Row:
    return (
        callback.job,
        callback.host,
        callback.owed_at,
        callback.due_at,
        callback.state,
        callback.attempts,
        callback.ended_at,
        _optional(callback.error),
    )


# ----------------------------------------------------------------------------------------------- from rows


def job_of(row: SqlRow[Any]) -> JobRecord:
    return JobRecord(
        id=row.id,
        number=row.number,
        application=row.application,
        version=row.version,
        submitted_at=row.submitted_at,
        status=JobStatus(row.status),
        job_class=JobClass[row.job_class.upper()],
        tenant=row.tenant,
        started_at=row.started_at,
        finished_at=row.finished_at,
        input=_read(getattr(row, "input", None)),  # a listing leaves it out
        has_recording=row.has_recording,
        metadata=from_json(row.metadata),
        deadline_s=row.deadline_s,
        callback_url=row.callback_url,
        idempotency_key=row.idempotency_key,
        request_digest=row.request_digest,
        off_profile=tuple(from_json(row.off_profile)),
        result=_read(row.result),
        error=_read(row.error),
    )


def stage_of(row: SqlRow[Any]) -> StageRecord:
    return StageRecord(
        job=row.job,
        name=row.name,
        position=row.position,
        state=row.state,
        kind=StageKind(row.kind),
        finished_at=row.finished_at,
        started_at=row.started_at,
        after=tuple(from_json(row.after)),
        parent=row.parent,
        iteration=row.iteration,
        pool=row.pool,
        executors=tuple(from_json(row.executors)),
        results=tuple(TaskResult(*result) for result in from_json(row.results)),
        tools=tuple(from_json(row.tools)),
        outputs=_read(row.outputs),
    )


def event_of(row: SqlRow[Any]) -> EventRecord:
    return EventRecord(row.job, row.seq, row.type, row.at, from_json(row.data))


def callback_of(row: SqlRow[Any]) -> CallbackRecord:
    return CallbackRecord(
        row.job, row.host, row.owed_at, row.due_at, row.state, row.attempts, row.ended_at, _read(row.error)
    )


def application_of(row: SqlRow[Any]) -> ApplicationRecord:
    return ApplicationRecord(row.name, row.version, row.digest, from_json(row.definition), row.created_at)


def profile_of(row: SqlRow[Any]) -> StoredProfile:
    return StoredProfile(row.application, row.number, row.version, row.learned_at, row.jobs, row.body)

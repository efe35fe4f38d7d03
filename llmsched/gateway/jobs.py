"""`/v1/jobs`: submit, list, look, cancel and follow."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from llmsched.errors import InvalidInput, LlmschedError, Overloaded
from llmsched.gateway.context import Context, context_of, tenant_of
from llmsched.gateway.problems import NotFound, responses
from llmsched.gateway.schemas import (
    BatchForm,
    BatchItem,
    BatchView,
    ClassName,
    JobForm,
    JobPage,
    JobSummary,
    JobView,
    StageView,
)
from llmsched.gateway.stream import all_stream, job_stream
from llmsched.model.job import JobStatus
from llmsched.model.records import JobRecord, StageRecord
from llmsched.runtime.service import NewJob, digest_of

router = APIRouter(prefix="/v1", tags=["jobs"])

Here = Annotated[Context, Depends(context_of)]
Tenant = Annotated[str, Depends(tenant_of)]

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


@router.post(
    "/jobs", status_code=202, response_model=JobSummary, responses=responses(400, 401, 409, 413, 422, 429, 503)
)
async def submit(
    form: JobForm,
    response: Response,
    here: Here,
    tenant: Tenant,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="a second request with the same key and body is the same job"),
    ] = None,
) -> JobSummary:
    """Accept a job. The answer comes when the job is durable: from then on it is never lost."""
    record, is_new = await here.service.submit(_new_job(form, tenant, idempotency_key))
    response.headers["Location"] = f"/v1/jobs/{record.id}"
    if not is_new:
        response.headers["Idempotent-Replay"] = "true"
    return summary(record)


@router.post("/jobs:batch", status_code=202, response_model=BatchView, responses=responses(400, 401, 413, 422))
async def submit_batch(form: BatchForm, here: Here, tenant: Tenant) -> BatchView:
    """Accept many jobs in one request; each is accepted or refused on its own, in order."""
    items = []
    for job in form.jobs:
        try:
            record, _ = await here.service.submit(_new_job(job, tenant, None))
            items.append(BatchItem(status=202, id=record.id))
        except Overloaded as error:
            items.append(BatchItem(status=429, detail=str(error)))
        except InvalidInput as error:
            items.append(BatchItem(status=422, detail=str(error)))
        except LlmschedError as error:
            items.append(BatchItem(status=503, detail=str(error)))
    return BatchView(items=items)


@router.get("/jobs", response_model=JobPage, responses=responses(400, 401, 422))
async def jobs(
    here: Here,
    tenant: Tenant,
    status: Annotated[JobStatus | None, Query(description="only jobs in this state")] = None,
    application: Annotated[str | None, Query(max_length=64, pattern="^[A-Za-z0-9_.-]*$")] = None,
    cursor: Annotated[str | None, Query(max_length=64, description="`next_cursor` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> JobPage:
    """Jobs, newest first."""
    before = None if cursor is None else read_cursor(cursor)
    found = await here.store.jobs(
        status=status, application=application, tenant=tenant or None, before=before, limit=limit + 1
    )
    page = found[:limit]
    more = write_cursor(page[-1].number) if len(found) > limit else None
    return JobPage(items=[summary(record) for record in page], next_cursor=more)


@router.get("/jobs/{id}", response_model=JobView, responses=responses(401, 404))
async def job(id: str, here: Here, tenant: Tenant) -> JobView:
    """A job with its stages: what is committed, and what runs right now."""
    record = await find(here, id, tenant)
    rows = await here.store.stages(id)
    live = here.service.stages(id) if record.finished_at is None else {}
    application = await here.service.applications.at(record.application, record.version)
    template = {s.name: {"kind": s.kind.value, "after": s.after, "pool": s.pool} for s in application.stages}
    return JobView(**summary(record).model_dump(), stages=_stages(template, rows, live))


@router.post("/jobs/{id}/cancel", status_code=202, response_model=JobSummary, responses=responses(401, 404, 409))
async def cancel(id: str, here: Here, tenant: Tenant) -> JobSummary:
    """Stop a job. Its calls are aborted; the job ends as cancelled."""
    record = await find(here, id, tenant)
    if record.finished_at is not None and record.status is not JobStatus.CANCELLED:
        raise HTTPException(409, f"job {id} is already {record.status.value}; there is nothing to cancel")
    here.service.cancel(id)
    return summary(record)


@router.get(
    "/jobs/{id}/events",
    responses=_STREAM | responses(400, 401, 404),
    response_class=StreamingResponse,
)
async def events(
    id: str,
    here: Here,
    tenant: Tenant,
    last_event_id: Annotated[str | None, Header(description="number of the last event seen")] = None,
) -> StreamingResponse:
    """Follow a job (server-sent events): everything since `Last-Event-ID`, then what happens, until it ends."""
    await find(here, id, tenant)
    after = 0
    if last_event_id:
        if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 16):
            raise HTTPException(
                400, f"Last-Event-ID is {last_event_id!r}; it must be the number of an event seen before"
            )
        after = int(last_event_id)
    return _stream(job_stream(here.store, here.service.hub, id, after))


@router.get(
    "/events",
    responses=_STREAM | responses(401),
    response_class=StreamingResponse,
)
async def all_events(here: Here, tenant: Tenant) -> StreamingResponse:
    """Follow every job from now on (server-sent events)."""
    return _stream(all_stream(here.service.hub, tenant))


def _stream(body: Any) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(body, media_type="text/event-stream", headers=headers)


async def find(here: Context, id: str, tenant: str) -> JobRecord:
    """The job, if this tenant may see it."""
    known = id.isascii() and id.isalnum() is False and id.startswith("job_") and id[4:].isalnum()
    record = await here.store.job(id) if known else None
    if record is None or (tenant and record.tenant != tenant):
        raise NotFound(f"there is no job {id[:64]!r}; GET /v1/jobs lists those there are")
    return record


def _new_job(form: JobForm, tenant: str, key: str | None) -> NewJob:
    body = form.model_dump(by_alias=True, exclude_unset=True, mode="json") if key is not None else None
    return NewJob(
        application=form.application,
        input=form.input,
        recording=form.recording,
        job_class=form.class_.job_class,
        tenant=tenant,
        metadata=form.metadata,
        idempotency_key=key,
        request_digest=None if body is None else digest_of(body),
    )


def summary(record: JobRecord) -> JobSummary:
    return JobSummary(
        id=record.id,
        application=record.application,
        version=record.version,
        status=record.status.value,
        class_=ClassName[record.job_class.name].value,
        submitted_at=record.submitted_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        metadata=dict(record.metadata),
        recorded=record.has_recording,
        off_profile=list(record.off_profile),
        result=record.result,
        error=record.error,
    )


def _stages(
    template: Mapping[str, dict[str, Any]], rows: Sequence[StageRecord], live: Mapping[str, dict[str, Any]]
) -> list[StageView]:
    """Template order first, then generated stages in order of appearance; committed rows win over what runs."""
    committed = {row.name: row for row in rows}
    names = dict.fromkeys([*template, *live, *committed])
    views = []
    for name in names:
        if name in committed:
            views.append(_committed(committed[name]))
        elif name in live:
            views.append(StageView(**live[name]))
        else:
            views.append(StageView(name=name, state="waiting", **template[name]))
    return views


def _committed(row: StageRecord) -> StageView:
    is_llm = row.kind.value == "llm"
    return StageView(
        name=row.name,
        kind=row.kind.value,
        state=row.state,
        after=list(row.after),
        parent=row.parent,
        pool=row.pool,
        tasks=len(row.results),
        done=len(row.results),
        started_at=row.started_at,
        finished_at=row.finished_at,
        prompt_tokens=sum(r.prompt_tokens for r in row.results) if is_llm else None,
        output_tokens=sum(r.output_tokens for r in row.results) if is_llm else None,
        executors=list(dict.fromkeys(row.executors)),
    )


def write_cursor(number: int) -> str:
    return base64.urlsafe_b64encode(b"n%d" % number).decode().rstrip("=")


def read_cursor(cursor: str) -> int:
    """Raises 400 for a cursor that no page ever gave out."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        if not (text.startswith(b"n") and text[1:].isdigit() and len(text) < 17):
            raise ValueError(text)
        return int(text[1:])
    except (ValueError, binascii.Error):
        raise HTTPException(400, f"cursor {cursor!r} is not one a page gave out; leave it out to start anew") from None

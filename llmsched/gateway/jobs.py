"""`/v1/jobs`: submit, list, look, cancel and follow."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from llmsched.errors import BackendError, Conflict, InvalidInput, Overloaded
from llmsched.gateway.body import JsonRoute
from llmsched.gateway.context import Context, context_of, tenant_of
from llmsched.gateway.problems import BODY, NotFound, responses, status_of
from llmsched.gateway.schemas import (
    AcceptedJob,
    BatchForm,
    BatchItem,
    BatchView,
    Eta,
    JobForm,
    JobPage,
    JobQuery,
    JobSummary,
    JobView,
)
from llmsched.gateway.stream import all_stream, job_stream
from llmsched.gateway.views import callback, forecast, read_cursor, stages, summary, write_cursor
from llmsched.model.job import JobStatus
from llmsched.model.records import JobRecord
from llmsched.runtime.submission import NewJob, digest_of
from llmsched.runtime.tracing.context import TraceContext

router = APIRouter(prefix="/v1", tags=["jobs"], route_class=JsonRoute, responses=responses(401, 503))

Here = Annotated[Context, Depends(context_of)]
Tenant = Annotated[str, Depends(tenant_of)]

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="a second request with the same key and body is answered with the job of the first",
    ),
]


async def trace_of(
    here: Here,
    traceparent: Annotated[
        str | None, Header(description="W3C trace context that the job's trace goes on from, while traces are on")
    ] = None,
    tracestate: Annotated[str | None, Header()] = None,
) -> TraceContext | None:
    """Where the client's trace goes on; None where it sent nothing valid, or nothing is traced."""
    return TraceContext.read(traceparent, tracestate) if here.service.tracing.is_on else None


Trace = Annotated[TraceContext | None, Depends(trace_of)]

_EVENT_ID = re.compile(r"[0-9]{1,15}")

_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "number of the event, of one job's stream"},
        "event": {"type": "string", "description": "type of the event"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
    "examples": [
        {
            "id": "4",
            "event": "stage.completed",
            "data": '{"job":"job_01m7y7nf5pk8qby37hnf","at":1795237264.61,"stage":"test_gen","seconds":0.03,'
            '"eta":{"p50":1795237267.81,"p90":1795237272.4}}',
        }
    ],
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events", "content": {"text/event-stream": {"schema": _EVENT}}}
}


@router.post("/jobs", status_code=202, responses=responses(*BODY, 409, 429))
async def submit(
    form: JobForm, response: Response, here: Here, tenant: Tenant, trace: Trace, key: IdempotencyKey = None
) -> AcceptedJob:
    """Accept a job. The answer comes when the job is durable: from then on it is never lost."""
    record, is_new = await here.submit(_new_job(here, form, tenant, key, trace))
    response.headers["Location"] = f"/v1/jobs/{record.id}"
    if not is_new:
        response.headers["Idempotent-Replay"] = "true"
    said = forecast(here.service.forecast(record.id))
    return AcceptedJob(**summary(record).model_dump(), forecast=said)


@router.post("/jobs:batch", status_code=202, responses=responses(*BODY))
async def submit_batch(
    form: BatchForm, here: Here, tenant: Tenant, trace: Trace, key: IdempotencyKey = None
) -> BatchView:
    """Accept many jobs in one request; each is accepted or refused on its own, and numbered in this order.

    A body with a field of the wrong type is refused as a whole.
    """

    async def accept(job: JobForm, number: int) -> BatchItem:
        try:
            record, _ = await here.submit(_new_job(here, job, tenant, key and f"{key}/{number}", trace))
        except (InvalidInput, Overloaded, BackendError) as error:
            return BatchItem(status=status_of(error), detail=str(error), field=getattr(error, "field", None))
        return BatchItem(status=202, id=record.id, forecast=forecast(here.service.forecast(record.id)))

    return BatchView(items=await asyncio.gather(*(accept(job, number) for number, job in enumerate(form.jobs))))


@router.get("/jobs", responses=responses(400))
async def jobs(query: Annotated[JobQuery, Query()], here: Here, tenant: Tenant) -> JobPage:
    """Jobs, newest first."""
    found = await here.store.jobs(
        status=query.status,
        application=query.application,
        tenant=tenant or None,
        before=None if query.cursor is None else read_cursor(query.cursor),
        limit=query.limit + 1,
    )
    page = found[: query.limit]
    more = write_cursor(page[-1].number) if len(found) > query.limit else None
    return JobPage(items=[summary(record) for record in page], next_cursor=more)


@router.get("/jobs/{id}", responses=responses(404))
async def job(id: str, here: Here, tenant: Tenant) -> JobView:
    """A job with its stages: what is committed, and what runs right now."""
    record = await find(here, id, tenant)
    # First what runs: a stage that is committed in between is then seen twice, not lost, and what is committed wins.
    live = await here.live(id) if record.finished_at is None else {}
    rows = await here.store.stages(id)
    application = await here.service.applications.at(record.application, record.version)
    views = stages(application, rows, live.get("stages", {}), is_completed=record.status is JobStatus.COMPLETED)
    believed = None if live.get("eta") is None else Eta(**live["eta"])
    told = await callback(here.store, record)
    return JobView(**summary(record).model_dump(), stages=views, eta=believed, callback=told)


@router.post("/jobs/{id}/cancel", status_code=202, responses=responses(404, 409))
async def cancel(id: str, here: Here, tenant: Tenant) -> JobSummary:
    """Stop a job. Its calls are aborted; the job ends as cancelled."""
    record = await find(here, id, tenant)
    if record.finished_at is not None and record.status is not JobStatus.CANCELLED:
        raise Conflict(f"job {id} is already {record.status.value}; there is nothing to cancel")
    if not here.service.cancel(id) and here.replica is not None and record.finished_at is None:
        await here.service.take_up([id])  # another gateway has just accepted it
        here.service.cancel(id)
    return summary(record)


@router.get("/jobs/{id}/events", responses=_STREAM | responses(400, 404), response_class=StreamingResponse)
async def events(
    id: str,
    here: Here,
    tenant: Tenant,
    last_event_id: Annotated[
        str | None, Header(alias="Last-Event-ID", description="number of the last event seen", examples=["17"])
    ] = None,
) -> StreamingResponse:
    """Follow a job (server-sent events): everything since `Last-Event-ID`, then what happens, until it ends."""
    owner = here.service.open_tenant(id)
    if owner is None or (tenant and owner != tenant):
        await find(here, id, tenant)
    if last_event_id and not _EVENT_ID.fullmatch(last_event_id):
        raise HTTPException(
            400, f"Last-Event-ID is {last_event_id[:64]!r}; it must be the number of an event seen before"
        )
    after, service = int(last_event_id or 0), here.service
    return _stream(job_stream(here.store, service.hub, id, after, lambda id: service.open_tenant(id) is not None))


@router.get("/events", responses=_STREAM, response_class=StreamingResponse)
async def all_events(here: Here, tenant: Tenant) -> StreamingResponse:
    """Follow every job from now on (server-sent events)."""
    hears = None if here.leads or here.replica is None else here.replica.peer.hears
    return _stream(all_stream(here.service.hub, tenant, hears))


def _stream(body: AsyncIterator[bytes]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(body, media_type="text/event-stream", headers=headers)


async def find(here: Context, id: str, tenant: str) -> JobRecord:
    """The job, if this tenant may see it. Raises NotFound."""
    record = await here.store.job(id, tenant=tenant or None)
    if record is None:
        raise NotFound(f"there is no job {id[:64]!r}; GET /v1/jobs lists those there are")
    return record


def _new_job(here: Context, form: JobForm, tenant: str, key: str | None, trace: TraceContext | None) -> NewJob:
    """Raises InvalidInput for fields that do not go together, or not with this version."""
    has_input = "input" in form.model_fields_set
    if has_input and form.recording is not None:
        raise InvalidInput("a job has either an input or a recording, not both; leave one out", field="recording")
    if not has_input and form.recording is None:
        raise InvalidInput("a job needs an input or a recording; both are missing", field="input")
    if form.callback_url is not None:
        here.callbacks.check(form.callback_url, tenant)
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
        callback_url=form.callback_url,
        trace=trace,
        deadline_s=form.deadline_s,
    )

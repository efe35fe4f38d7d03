"""`/v1/overview`, `/v1/trends`, `/v1/jobs/{id}/why` and `/timeline`, `/v1/whatif`: for whoever watches the service."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query, Response

from llmsched import __version__
from llmsched.errors import InvalidInput
from llmsched.gateway.body import JsonRoute
from llmsched.gateway.context import Context, context_of, tenant_of
from llmsched.gateway.jobs import find
from llmsched.gateway.operation_schemas import (
    AheadView,
    BackOffView,
    BlockedView,
    ExecutorView,
    JobCounts,
    Overview,
    PlaceView,
    PoolView,
    Recent,
    RunningView,
    SpanView,
    TimelineView,
    TrendsQuery,
    TrendsView,
    WhatIfForm,
    WhatIfPage,
    WhatIfView,
    WhyView,
)
from llmsched.gateway.problems import BODY, NotFound, responses
from llmsched.gateway.schemas import Eta
from llmsched.gateway.views import why as reasons
from llmsched.model.job import Job, JobStatus
from llmsched.model.kinds import StageKind
from llmsched.policies import POLICIES
from llmsched.runtime.whatifs import WhatIf
from llmsched.scheduler.waiting import Ahead, Place, waiting
from llmsched.simulator.experiment import parse_policies

router = APIRouter(
    prefix="/v1", route_class=JsonRoute, dependencies=[Depends(tenant_of)], responses=responses(401, 503)
)

Here = Annotated[Context, Depends(context_of)]
Tenant = Annotated[str, Depends(tenant_of)]

#: Days that may be asked about.
_LONGEST = 31 * 86_400.0

# -------------------------------------------------------------------------------------------------- how it goes


@router.get("/overview", tags=["operations"])
async def overview(here: Here) -> Overview:
    """How the service is right now: jobs, queues, slots, the policy and what it costs. Sums over all tenants."""
    service = here.service
    view, now = service.scheduler.view, service.clock.now()
    counts: dict[str, JobCounts] = {}
    for application, ends in here.trends.finished.items():
        counts[application] = JobCounts(**ends)
    for job in view.jobs.values():
        of = counts.setdefault(job.application.name, JobCounts())
        if job.status is JobStatus.RUNNING:
            of.running += 1
        else:
            of.queued += 1
    pools: dict[str, PoolView] = {}
    for executor in view.executors.values():
        pool = pools.setdefault(executor.pool, PoolView(name=executor.pool))
        pool.slots += executor.slots
        pool.running += len(executor.running)
    for name, stages in view.ready.items():
        pool = pools.setdefault(name, PoolView(name=name))
        pool.ready = sum(len(stage.ready) for stage in stages.values())
    return Overview(
        at=now,
        version=__version__,
        started_at=service.started_at,
        policy=service.policy_name,
        active=len(view.jobs),
        jobs=dict(sorted(counts.items())),
        pools=list(pools.values()),
        executors=_executors(here),
        recent=Recent.model_validate(here.trends.recent()),
        trouble=_trouble(here),
    )


def _executors(here: Context) -> list[ExecutorView]:
    view = here.service.scheduler.view
    listed = []
    for engine in here.service.engines:
        known = view.executors.get(engine.id)
        own = ExecutorView(id=engine.id, pool=engine.spec.pool, slots=engine.slots, running=0)
        own.running = len(known.running) if known else 0
        own.state = "draining" if engine.draining else "up" if engine.is_healthy else "down"
        listed.append(own)
    for executor in view.executors.values():
        if executor.id not in here.service.engines:
            own = ExecutorView(id=executor.id, pool=executor.pool, slots=executor.slots, running=len(executor.running))
            own.is_engine = False
            listed.append(own)
    return listed


def _trouble(here: Context) -> list[str]:
    """What somebody should look at, in sentences."""
    service, found = here.service, []
    if not here.journal.healthy:
        found.append(f"the database does not take writes: {here.journal.last_error}")
    engines = list(service.engines)
    if not engines:
        found.append("no engine is configured: jobs are accepted and wait")
    down = [engine for engine in engines if not engine.is_healthy and not engine.draining]
    found += [f"engine {engine.id} is down: {engine.last_error or 'it did not answer yet'}" for engine in down]
    served = {e.pool for e in service.scheduler.view.executors.values() if e.slots}
    for pool, stages in service.scheduler.view.ready.items():
        if stages and pool not in served:
            found.append(f"tasks wait in pool {pool}, which nobody serves")
    drifted = [name for name in service.foresight.knowledge.profiles if service.foresight.has_drifted(name)]
    found += [f"{name} is unlike what was learned of it; plain means are used" for name in drifted]
    return found


@router.get("/trends", tags=["operations"], response_model=TrendsView)
async def trends(query: Annotated[TrendsQuery, Query()], here: Here) -> Response:
    """How the service has been doing, in 180 steps: columns of equal length. Sums over all tenants; not kept over
    restarts."""
    return Response(orjson.dumps(here.trends.to_json(query.span)), media_type="application/json")  # 3,000 numbers


# ------------------------------------------------------------------------------------------------- about a job


@router.get("/jobs/{id}/why", responses=responses(404), tags=["jobs"])
async def why(id: str, here: Here, tenant: Tenant) -> WhyView:
    """Why a job is not further: what runs, its place in the order of each pool, and who goes before it."""
    record = await find(here, id, tenant)
    service, now = here.service, here.service.clock.now()
    job = service.scheduler.view.jobs.get(id)
    policy = service.policy_name
    if job is None:
        said = f"the job is over: {record.status.value}" if record.finished_at else "the job is about to be scheduled"
        return WhyView(job=id, policy=policy, line=POLICIES[policy].line, sentences=[said])
    found = waiting(service.scheduler, job)
    eta = service.foresight.eta(id, now)
    view = WhyView(
        job=id,
        policy=policy,
        line=POLICIES[policy].line,
        places=[_place(p, tenant) for p in found.places],
        running=[
            RunningView(stage=t.stage.name, task=t.index, executor=t.executor or "", started_at=t.started_at)
            for t in found.running
        ],
        backing_off=[
            BackOffView(stage=t.stage.name, task=t.index, failures=t.failures, losses=t.losses)
            for t in found.backing_off
        ],
        blocked=[BlockedView(stage=stage.name, waits_for=list(names)) for stage, names in found.blocked],
        remaining=_remaining(here, job),
        eta=None if eta is None else Eta(**eta.to_json()),
    )
    view.sentences = list(_sentences(view))
    return view


def _place(place: Place, tenant: str) -> PlaceView:
    return PlaceView(
        pool=place.pool,
        ready=place.ready,
        place=place.place,
        is_exact=place.is_exact,
        jobs_ahead=place.jobs_ahead,
        ahead=[_ahead(a, tenant) for a in place.ahead],
        why=reasons(place.why),
        slots=place.slots,
        running=place.running,
    )


def _ahead(ahead: Ahead, tenant: str) -> AheadView:
    """A job of another tenant is only said to be there."""
    is_ours = tenant in ("", ahead.job.tenant)
    return AheadView(
        job=ahead.job.id if is_ours else None,
        application=ahead.job.application.name if is_ours else None,
        class_=ahead.job.job_class.label,
        tasks=ahead.tasks,
        why=reasons(ahead.why),
    )


def _remaining(here: Context, job: Job) -> dict[str, float]:
    """Expected seconds of work left, by pool, alone on an engine."""
    left = here.service.foresight.knowledge.remaining(job)
    return {pool: round(work.total, 3) for pool, work in left.items() if work.total > 0}


def _sentences(view: WhyView) -> Iterable[str]:
    """For people: what runs, what waits behind whom, what failed."""
    if view.running:
        where = ", ".join(dict.fromkeys(t.executor for t in view.running))
        yield f"{_n(len(view.running), 'task')} of it {'runs' if len(view.running) == 1 else 'run'} now, on {where}"
    for place in view.places:
        tasks = f"{_n(place.ready, 'task')} {'waits' if place.ready == 1 else 'wait'} for pool {place.pool}"
        if not place.slots:
            yield f"{tasks}, which nobody serves right now: its engines are down or drained"
        elif place.place is None and place.jobs_ahead:
            yield f"{tasks} behind at least {_n(place.jobs_ahead, 'other job')}"
        elif place.place is None:
            yield f"{tasks}; the policy places {'it' if place.ready == 1 else 'them'} when the next slot gets free"
        elif place.place == 0:
            yield f"{tasks}, next in the order; {place.running} of {place.slots} slots are taken"
        else:
            yield (
                f"{tasks} behind {_n(place.place, 'task')} of {_n(place.jobs_ahead, 'other job')};"
                f" {place.running} of {place.slots} slots are taken"
            )
    for task in view.backing_off:
        yield f"{task.stage}[{task.task}] failed {_n(task.failures + task.losses, 'time')} and is tried again soon"
    if not view.running and not view.places and not view.backing_off:
        yield "nothing of it is ready: it waits for a stage to be worked out, or for its client's next call"


def _n(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


@router.get("/jobs/{id}/timeline", responses=responses(404), tags=["jobs"])
async def timeline(id: str, here: Here, tenant: Tenant) -> TimelineView:
    """When the tasks of a job ran where: attempt by attempt for the last 1,000 jobs, by stage for older ones."""
    record = await find(here, id, tenant)
    spans, job = here.service.timeline.of(id), here.service.scheduler.view.jobs.get(id)
    if spans and spans[0].started_at <= (record.started_at or spans[0].started_at) + 1e-3:
        views = [
            SpanView(
                stage=s.stage,
                task=s.task,
                attempt=s.attempt,
                executor=s.executor,
                started_at=s.started_at,
                ended_at=s.ended_at,
                outcome=s.outcome,
            )
            for s in spans
        ]
        return TimelineView(spans=views, is_exact=True, now=here.service.clock.now())
    rows = [row for row in await here.store.stages(id) if row.state == "done" and row.kind is not StageKind.DYNAMIC]
    views = []
    for row in rows:
        begin = row.started_at or row.finished_at
        for index, result in enumerate(row.results):
            end = row.finished_at if len(row.results) == 1 else min(row.finished_at, begin + result.duration)
            executor = row.executors[index] if index < len(row.executors) else ""
            views.append(
                SpanView(
                    stage=row.name,
                    task=index,
                    attempt=1,
                    executor=executor,
                    started_at=begin,
                    ended_at=end,
                    outcome="done",
                )
            )
    for ref, task in job.running.items() if job is not None else ():
        views.append(
            SpanView(
                stage=ref.stage,
                task=ref.index,
                attempt=task.attempt,
                executor=task.executor or "",
                started_at=task.started_at,
                outcome="running",
            )
        )
    return TimelineView(spans=views, is_exact=False, now=here.service.clock.now())


# --------------------------------------------------------------------------------------- another policy, last night


@router.get("/whatif", tags=["policies"])
async def whatifs(here: Here, tenant: Tenant) -> WhatIfPage:
    """The last questions of this kind, newest first, without their results."""
    return WhatIfPage(items=[_whatif(w, brief=True) for w in here.whatifs.of(tenant)])


@router.post("/whatif", status_code=202, responses=responses(*BODY, 409), tags=["policies"])
async def ask(form: WhatIfForm, here: Here, tenant: Tenant, response: Response) -> WhatIfView:
    """Simulate recorded jobs again, under other policies, in the background; one question at a time.

    The jobs arrive when they arrived and are what they were, on the engines and workers there are now, which run as
    fast as they were recorded to.
    """
    choices = parse_policies(",".join(form.policies))
    for choice in choices:
        choice.predicts  # noqa: B018 (raises InvalidInput for an option with a bad value)
    if form.last_s > _LONGEST:
        raise InvalidInput(f"last_s is {form.last_s:g}; it must be at most {_LONGEST:g}, a month", field="last_s")
    now = here.service.clock.now()
    request = here.whatif_request(form, now)
    asked = here.whatifs.ask(request, [choice.label for choice in choices], tenant, now)
    response.headers["Location"] = f"/v1/whatif/{asked.id}"
    return _whatif(asked)


@router.get("/whatif/{id}", responses=responses(404), tags=["policies"])
async def whatif(id: str, here: Here, tenant: Tenant) -> WhatIfView:
    """How far the answer is, and the answer: see docs/ui.md for the document."""
    return _whatif(_known(here, id, tenant))


@router.delete("/whatif/{id}", status_code=204, responses=responses(404), tags=["policies"])
async def forget(id: str, here: Here, tenant: Tenant) -> Response:
    """Forget a question; one that is being simulated is stopped."""
    await here.whatifs.cancel(_known(here, id, tenant))
    return Response(status_code=204)


def _known(here: Context, id: str, tenant: str) -> WhatIf:
    found = here.whatifs.get(id, tenant)
    if found is None:
        raise NotFound(f"there is no question {id[:64]!r}; GET /v1/whatif lists those that are remembered")
    return found


def _whatif(asked: WhatIf, *, brief: bool = False) -> WhatIfView:
    result: Any = None if brief else asked.result
    return WhatIfView(
        id=asked.id,
        status=asked.status,
        policies=asked.policies,
        since=asked.since,
        until=asked.until,
        asked_at=asked.asked_at,
        ended_at=asked.ended_at,
        done=asked.done,
        of=asked.of,
        error=asked.error,
        result=result,
    )

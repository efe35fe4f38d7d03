"""`/v1/applications`, `/v1/handlers`, `/v1/engines`, `/v1/policies`, `/v1/decisions`: what the service is made of."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Response

from llmsched.errors import InvalidInput, InvalidSetting, UnknownName
from llmsched.gateway.body import JsonRoute
from llmsched.gateway.context import Context, admin, context_of, tenant_of
from llmsched.gateway.problems import BODY, NotFound, responses
from llmsched.gateway.schemas import (
    EXAMPLE_APPLICATION,
    ApplicationPage,
    ApplicationView,
    DecisionPage,
    DecisionView,
    EngineForm,
    EnginePage,
    EngineView,
    HandlerPage,
    HandlerView,
    PolicyForm,
    PolicyPage,
    PolicyView,
)
from llmsched.gateway.views import profile, why
from llmsched.model.application import Application
from llmsched.policies import POLICIES
from llmsched.runtime.engines import Engine, EngineSpec
from llmsched.runtime.inputs import check_schema
from llmsched.runtime.scripts.live import check_templates

router = APIRouter(
    prefix="/v1", route_class=JsonRoute, dependencies=[Depends(tenant_of)], responses=responses(401, 503)
)

Here = Annotated[Context, Depends(context_of)]
Tenant = Annotated[str, Depends(tenant_of)]
#: Of routes that change the service.
ADMIN = [Depends(admin)]

# ---------------------------------------------------------------------------------------------- applications


@router.get("/applications", tags=["applications"])
async def applications(here: Here) -> ApplicationPage:
    """Every registered application in its newest version."""
    return ApplicationPage(items=[_application(here, a) for a in here.service.applications])


@router.get("/applications/{name}", responses=responses(404), tags=["applications"])
async def application(name: str, here: Here) -> ApplicationView:
    """One application in its newest version, with its padded DAG."""
    return _application(here, _known(here, name))


@router.put("/applications/{name}", responses=responses(*BODY, 403), dependencies=ADMIN, tags=["applications"])
async def put_application(
    name: str, definition: Annotated[dict[str, Any], Body(examples=[EXAMPLE_APPLICATION])], here: Here
) -> ApplicationView:
    """Register an application, or a new version of it: jobs keep the version they started with."""
    candidate = Application.parse({"name": name} | definition)
    if candidate.name != name:
        raise InvalidInput(f"the path says {name!r}, the body {candidate.name!r}; they must agree", field="name")
    check_templates(candidate, here.service.handlers)
    check_schema(candidate)
    return _application(here, await here.service.applications.put(candidate))


@router.delete(
    "/applications/{name}", status_code=204, responses=responses(404, 403), dependencies=ADMIN, tags=["applications"]
)
async def delete_application(name: str, here: Here) -> Response:
    """Take no new jobs of it; running ones finish."""
    await here.service.applications.delete(_known(here, name).name)
    return Response(status_code=204)


def _known(here: Context, name: str) -> Application:
    try:
        return here.service.applications.newest(name)
    except UnknownName as error:
        raise NotFound(str(error)) from None


def _application(here: Context, application: Application) -> ApplicationView:
    knowledge, name = here.service.foresight.knowledge, application.name
    return ApplicationView(
        name=application.name,
        version=application.version,
        digest=application.digest,
        description=application.description,
        executable=application.is_executable,
        stages=[
            {
                "name": s.name,
                "kind": s.kind.value,
                "after": list(s.after),
                "pool": s.pool,
                "max_tasks": s.max_tasks,
                "iteration": s.iteration,
                "loop": s.loop,
                "candidates": [c.name for c in s.candidates],
            }
            for s in application.stages
        ],
        definition=dict(application.definition),
        profile=profile(knowledge.profiles.get(name), application, knowledge.estimator_of(name)),
    )


# -------------------------------------------------------------------------------------------------- handlers


@router.get("/handlers", tags=["applications"])
async def handlers(here: Here) -> HandlerPage:
    """What regular stages and candidates of plans may name as their handler, in alphabetical order."""
    known = sorted(here.service.handlers, key=lambda handler: handler.name)
    return HandlerPage(
        items=[
            HandlerView(
                name=handler.name,
                kind=handler.kind,
                description=handler.description,
                schema_=None if handler.schema is None else dict(handler.schema),
            )
            for handler in known
        ]
    )


# --------------------------------------------------------------------------------------------------- engines


@router.get("/engines", tags=["engines"])
async def engines(here: Here) -> EnginePage:
    """Every engine, healthy or not."""
    return EnginePage(items=[_engine(here, e) for e in here.service.engines])


@router.post("/engines", status_code=201, responses=responses(*BODY, 409, 403), dependencies=ADMIN, tags=["engines"])
async def add_engine(form: EngineForm, here: Here) -> EngineView:
    """Add a running vLLM server. It takes work as soon as it answers its health check."""
    spec = EngineSpec(form.url, form.pool, form.model, form.slots, form.api_key)
    try:
        return _engine(here, here.service.engines.add(spec))
    except InvalidSetting as error:
        raise InvalidInput(str(error), field="url") from None


@router.delete("/engines/{id}", status_code=204, responses=responses(404, 403), dependencies=ADMIN, tags=["engines"])
async def remove_engine(id: str, here: Here) -> Response:
    """Forget an engine at once; its tasks are repeated elsewhere. Drain it first to let them finish."""
    await here.service.engines.remove(_engine_of(here, id).id)
    return Response(status_code=204)


@router.post("/engines/{id}/drain", responses=responses(404, 403), dependencies=ADMIN, tags=["engines"])
async def drain_engine(id: str, here: Here) -> EngineView:
    """Give an engine no new work; what runs there finishes."""
    engine = _engine_of(here, id)
    engine.drain(True)
    return _engine(here, engine)


@router.post("/engines/{id}/resume", responses=responses(404, 403), dependencies=ADMIN, tags=["engines"])
async def resume_engine(id: str, here: Here) -> EngineView:
    """Give a drained engine work again."""
    engine = _engine_of(here, id)
    engine.drain(False)
    return _engine(here, engine)


def _engine_of(here: Context, id: str) -> Engine:
    if id not in here.service.engines:
        raise NotFound(f"there is no engine {id[:64]!r}; GET /v1/engines lists those there are")
    return here.service.engines[id]


def _engine(here: Context, engine: Engine) -> EngineView:
    executor = here.service.scheduler.view.executors.get(engine.id)
    return EngineView(
        id=engine.id,
        url=engine.client.url,
        model=engine.model,
        pool=engine.spec.pool,
        slots=engine.slots,
        running=len(executor.running) if executor else 0,
        healthy=engine.is_healthy,
        draining=engine.draining,
        max_model_len=engine.info.max_model_len if engine.info else None,
        last_error=engine.last_error or None,
    )


# -------------------------------------------------------------------------------------- policies and decisions


@router.get("/policies", tags=["policies"])
async def policies(here: Here) -> PolicyPage:
    """Every policy a service can run, and which one is at work."""
    active = here.service.policy_name
    return PolicyPage(
        items=[
            PolicyView(name=name, line=policy.line, source=policy.source, active=name == active)
            for name, policy in POLICIES.items()
            if not policy.is_oracle
        ]
    )


@router.put("/policies/active", responses=responses(*BODY, 403), dependencies=ADMIN, tags=["policies"])
async def use_policy(form: PolicyForm, here: Here) -> PolicyView:
    """Order everything that waits by another policy from now on. It lasts until the service restarts."""
    if form.name not in POLICIES:
        raise UnknownName.of("policy", form.name, POLICIES, field="name")
    here.service.use_policy(form.name)
    known = POLICIES[form.name]
    return PolicyView(name=form.name, line=known.line, source=known.source, active=True)


@router.get("/decisions", tags=["policies"])
async def decisions(here: Here, tenant: Tenant, last: Annotated[int, Query(ge=1, le=1000)] = 100) -> DecisionPage:
    """The last decisions, newest first: what was dispatched where, in order of preference, and why."""
    return DecisionPage(items=[_decision(d, tenant) for d in islice(reversed(here.service.decisions), last)])


def _decision(decision: Mapping[str, Any], tenant: str) -> DecisionView:
    """A decision without what it did for other tenants."""
    dispatched = [{**d, "why": why(d["why"])} for d in decision["dispatched"] if tenant in ("", d["tenant"])]
    return DecisionView.model_validate({**decision, "dispatched": dispatched})

"""The ASGI application: routes, middleware, and the service's life bound to the server's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Receive, Scope, Send

from llmsched import __version__
from llmsched.errors import BackendError
from llmsched.gateway import jobs, management, openai, operation, problems, replicas, tenants, ui
from llmsched.gateway.context import Context
from llmsched.gateway.edge import Edge
from llmsched.gateway.openai import OpenAI
from llmsched.gateway.replicas import Relay
from llmsched.gateway.schemas import CallbackMessage, Status, Version

#: Seconds the database has to answer before the service calls itself not ready.
_PATIENCE = 2.0

_DESCRIPTION = """Submit jobs of compound LLM applications: they become DAGs of LLM and regular tasks, which are ordered
so that the average job completes as early as possible, and run on vLLM engines and workers.

Errors are RFC 9457 problem documents: 400 where a request cannot be read, 422 where it asks for something impossible,
429 and 503 with `Retry-After` where it may succeed later. Lists are `{items, next_cursor}`. Times are unix seconds."""


class Gateway(FastAPI):
    """The application, and beside it the OpenAI-compatible door, which needs nothing of what FastAPI does to a request.

    Passing through its middleware costs a tenth of all that happens to a call here.
    """

    door: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and openai.is_here(scope["path"]):
            await self.door(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


#: What the service sends of its own accord.
_WEBHOOKS = {
    "job-ended": {
        "post": {
            "summary": "The end of a job, sent to its callback_url",
            "description": "Signed as Standard Webhooks has it (`webhook-id`, `webhook-timestamp`, `webhook-signature`)"
            " and sent again until it is answered 2xx.",
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/CallbackMessage"}}},
            },
            "responses": {"2XX": {"description": "It has arrived."}},
        }
    }
}


def create_app(context: Context) -> FastAPI:
    """The gateway around a service; `context.start` and `context.stop` run with the server."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            if context.start is not None:
                await context.start()
            yield
        finally:
            if context.stop is not None:
                await context.stop()

    app = Gateway(
        title="llmsched",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    app.state.context = context
    problems.install(app)
    app.include_router(jobs.router)
    app.include_router(management.router)
    app.include_router(operation.router)
    app.include_router(tenants.router)
    _operations(app, context)
    if context.ui:
        ui.install(app)
    door: ASGIApp = OpenAI(context)
    if context.replica is not None:
        app.include_router(replicas.router)
        app.add_middleware(Relay, context=context)
        door = Relay(door, context)
    app.add_middleware(Edge, max_body=context.max_body)
    app.door = Edge(door, context.max_body)
    _document(app, context)
    return app


def _operations(app: FastAPI, context: Context) -> None:
    service = context.service

    @app.get("/health", tags=["operations"])
    async def health() -> Status:
        """Whether the process is alive: always ok while it answers."""
        return Status(status="ok")

    @app.get("/ready", tags=["operations"], response_model=Status, responses=problems.responses(503))
    async def ready(request: Request) -> Status | Response:
        """Whether work that is sent here gets done now; 503 with the reason otherwise."""
        if reason := await _not_ready(context):
            return problems.problem(request, 503, reason)
        return Status(status="ready")

    @app.get("/version", tags=["operations"])
    async def version() -> Version:
        """The version, the policy at work and since when the process runs."""
        leader = None if context.replica is None else context.replica.election.leader
        return Version(
            version=__version__,
            policy=service.policy_name,
            started_at=service.started_at,
            leads=context.leads,
            leader=None if leader is None else leader.url,
        )

    @app.get("/metrics", tags=["operations"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(context.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


async def _not_ready(context: Context) -> str | None:
    service = context.service
    if service.is_stopping:
        return "the service is shutting down"
    if context.leads and not service.is_ready:
        return "the service is starting"
    if context.replica is not None and not context.leads and context.replica.election.leader is None:
        return "no gateway leads at the moment; jobs are accepted and wait"
    if not context.journal.healthy:
        return f"the database does not take writes: {context.journal.last_error}"
    try:
        async with asyncio.timeout(_PATIENCE):
            await context.store.ping()
    except (BackendError, TimeoutError) as error:
        return f"the database does not answer: {str(error) or f'not within {_PATIENCE:g} seconds'}"
    if not context.leads:
        return None
    engines = list(service.engines)
    if not engines:
        return "no engine is configured; add one with POST /v1/engines or --engine URL"
    if not any(e.is_healthy for e in engines):
        return f"none of the {len(engines)} engines is healthy; jobs are accepted and wait"
    return None


def _document(app: FastAPI, context: Context) -> None:
    """Completes the OpenAPI document: problems in place of FastAPI's own validation errors, and the API key."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        document = original()
        components = document["components"]
        components["schemas"]["Problem"] = problems.Problem.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(unused, None)
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        message = CallbackMessage.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
        components["schemas"] = message.pop("$defs") | components["schemas"] | {"CallbackMessage": message}
        document["webhooks"] = _WEBHOOKS
        for path, operations in document["paths"].items():
            for described in operations.values():
                if "422" in described["responses"]:
                    described["responses"] |= {"422": problems.responses(422)[422]}
                described["responses"] = dict(sorted(described["responses"].items()))
                if path.startswith("/v1/") and context.keys.are_required:
                    described["security"] = [{"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]

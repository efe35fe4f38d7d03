"""The ASGI application: routes, middleware, and the service's life bound to the server's."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmsched import __version__
from llmsched.gateway import jobs, management, problems
from llmsched.gateway.context import Context

access = logging.getLogger("llmsched.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")

_DESCRIPTION = """Submit jobs of compound LLM applications; they are expanded into DAGs of LLM and regular tasks, ordered so
that the average job completes as early as possible, and run on vLLM engines and workers.

Errors are RFC 9457 problem documents. Lists are `{items, next_cursor}`. Times are unix seconds."""


def create_app(context: Context) -> FastAPI:
    """The gateway around a service; `context.start` and `context.stop` run with the server."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if context.start is not None:
            await context.start()
        try:
            yield
        finally:
            if context.stop is not None:
                await context.stop()

    app = FastAPI(
        title="llmsched",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    app.state.context = context
    problems.install(app)
    app.include_router(jobs.router)
    app.include_router(management.router)
    _operations(app, context)
    app.add_middleware(_Edge, max_body=context.max_body)
    _document(app)
    return app


def _operations(app: FastAPI, context: Context) -> None:
    service = context.service

    @app.get("/health", tags=["operations"])
    async def health() -> dict[str, str]:
        """Whether the process is alive: always ok while it answers."""
        return {"status": "ok"}

    @app.get("/ready", tags=["operations"], responses=problems.responses(503))
    async def ready() -> Response:
        """Whether work that is sent here gets done now; 503 with the reason otherwise."""
        if reason := _not_ready(context):
            return problems.problem(None, 503, reason)
        return JSONResponse({"status": "ready"})

    @app.get("/version", tags=["operations"])
    async def version() -> dict[str, Any]:
        """The version, the policy at work and since when the process runs."""
        return {"version": __version__, "policy": service.policy_name, "started_at": service.started_at}

    @app.get("/metrics", tags=["operations"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(context.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def _not_ready(context: Context) -> str | None:
    service = context.service
    if service.is_stopping:
        return "the service is shutting down"
    if not service.is_ready:
        return "the service is starting"
    if not context.journal.healthy:
        return f"the database does not answer: {context.journal.last_error}"
    engines = list(service.engines)
    if not engines:
        return "no engine is configured; add one with POST /v1/engines or --engine URL"
    if not any(e.is_healthy for e in engines):
        return f"none of the {len(engines)} engines is healthy; jobs are accepted and wait"
    return None


def _document(app: FastAPI) -> None:
    """Puts the problem schema into the OpenAPI document, in place of FastAPI's own validation errors."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        document = original()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["Problem"] = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        entry = problems.responses(422)[422]
        for path in document["paths"].values():
            for operation in path.values():
                if "422" in operation["responses"]:
                    operation["responses"]["422"] = entry
        return document

    app.openapi = openapi  # type: ignore[method-assign]


class _Edge:
    """What every request passes: a request id, the size limit, and one line in the access log."""

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        sent = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        scope["llmsched.request_id"] = request_id
        began, status, started = time.perf_counter(), 0, False

        async def sending(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        length = headers.get(b"content-length", b"0")
        try:
            if length.isdigit() and int(length) > self._max_body:
                raise _TooLarge
            await self._app(scope, self._counted(receive), sending)
        except _TooLarge:
            if started:
                raise
            detail = f"the body is larger than {self._max_body} bytes; send less at once"
            await problems.problem(None, 413, detail)(scope, receive, sending)
        finally:
            access.info(
                "request",
                extra={
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "milliseconds": round((time.perf_counter() - began) * 1000, 2),
                },
            )

    def _counted(self, receive: Receive) -> Receive:
        left = self._max_body

        async def receiving() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise _TooLarge
            return message

        return receiving


class _TooLarge(Exception):
    pass

"""Errors as RFC 9457 problem documents: one sentence, the field, the way out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from llmsched.errors import BackendError, Conflict, InvalidInput, Overloaded, UnknownName

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """A problem document. `field` names what was wrong in the request, where one thing was."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    field: str | None = None
    request_id: str | None = Field(default=None, description="the X-Request-Id of this exchange, also in the logs")


TITLES = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Request too large",
    415: "Unsupported media type",
    422: "Invalid request",
    429: "Too many requests",
    500: "Internal error",
    503: "Not ready",
}


def problem(
    request: Request | None,
    status: int,
    detail: str,
    *,
    field: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    body = {"type": "about:blank", "title": TITLES.get(status, "Error"), "status": status, "detail": detail}
    if field:
        body["field"] = field
    request_id = request.scope.get("llmsched.request_id") if request else None
    if request_id:
        body["request_id"] = request_id
    return JSONResponse(body, status, headers, media_type=MEDIA_TYPE)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entry for the problems a route may answer with."""
    return {
        status: {
            "description": TITLES[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


class NotFound(InvalidInput):
    """The path names something that does not exist."""


def install(app: FastAPI) -> None:
    """Every error the routes raise becomes a problem document; a bug is logged and says only that it is one."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            where = first["loc"][-1] if first["loc"] else 0
            return problem(request, 400, f"the body is no valid JSON: {first['ctx']['error']} at character {where}")
        return problem(request, 422, sentence(first), field=path(first["loc"]))

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> JSONResponse:
        return problem(request, 429, str(error), headers={"Retry-After": str(max(1, round(error.retry_after)))})

    @app.exception_handler(InvalidInput)
    async def refused(request: Request, error: InvalidInput) -> JSONResponse:
        status = 404 if isinstance(error, NotFound) else 409 if isinstance(error, Conflict) else 422
        if isinstance(error, UnknownName) and error.field is None:
            status = 404
        return problem(request, status, str(error), field=error.field)

    @app.exception_handler(BackendError)
    async def backend(request: Request, error: BackendError) -> JSONResponse:
        return problem(request, 503, str(error), headers={"Retry-After": "5"})

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        detail = error.detail
        if error.status_code == 404 and detail == "Not Found":
            detail = f"there is nothing at {request.url.path}; GET /openapi.json lists what there is"
        if error.status_code == 405:
            detail = f"{request.method} is not possible at {request.url.path}"
        return problem(request, error.status_code, detail, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return problem(request, 500, "the service failed on this request; its log has the story under the request id")


def path(loc: Sequence[int | str]) -> str:
    """`stages[3].name` from pydantic's location, the place (body, query, …) left out."""
    parts = [p for p in loc if p not in ("body", "query", "path", "header")] if len(loc) > 1 else list(loc)
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "body"


def sentence(error: Any) -> str:
    """One sentence with the field, what is wrong with it and the value."""
    where, message = path(error["loc"]), error["msg"]
    if error["type"] == "extra_forbidden":
        return f"unknown field {where!r}; see /docs for the fields there are"
    if error["type"] == "missing":
        return f"{where} is missing"
    message = message.removeprefix("Value error, ")
    value = repr(error.get("input"))
    value = value if len(value) <= 80 else value[:77] + "..."
    return f"{where}: {message[:1].lower()}{message[1:]}; it is {value}"

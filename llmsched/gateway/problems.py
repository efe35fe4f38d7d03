"""Errors as RFC 9457 problem documents: one sentence, the field, the way out.

400: the request cannot be read (JSON, a cursor, `Last-Event-ID`); 422: it can, and asks for something impossible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from llmsched.errors import BackendError, Conflict, InvalidInput, LlmschedError, Overloaded, show

MEDIA_TYPE = "application/problem+json"

#: What any request with a JSON body may be answered with.
BODY = (400, 413, 415, 422)


class Problem(BaseModel):
    """A problem document. `field` names what was wrong in the request, where one thing was."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Unprocessable Entity",
                    "status": 422,
                    "detail": "unknown application 'code_generatoin'; did you mean 'code_generation'? known: …",
                    "field": "application",
                    "request_id": "0f9c5a3be9a44f0f8a8b7a0c7be0a1d2",
                }
            ]
        }
    )

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    field: str | None = None
    request_id: str | None = Field(default=None, description="the X-Request-Id of this exchange, also in the logs")


class NotFound(InvalidInput):
    """The path names something that does not exist."""


#: The first class that fits decides.
_STATUS: Sequence[tuple[type[LlmschedError], int]] = (
    (NotFound, 404),
    (Conflict, 409),
    (InvalidInput, 422),
    (Overloaded, 429),
    (BackendError, 503),
)


def status_of(error: LlmschedError) -> int:
    """The HTTP status an error is answered with; 500 for one that is a bug of ours."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def problem(
    request: Request,
    status: int,
    detail: str,
    *,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    found = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        field=field,
        request_id=request.scope.get("llmsched.request_id"),
    )
    return JSONResponse(found.model_dump(exclude_none=True), status, headers, media_type=MEDIA_TYPE)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entry for the problems a route may answer with."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    entries: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        entries[status] = {"description": HTTPStatus(status).phrase, "content": content}
        if status in (429, 503):
            entries[status]["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return entries


def install(app: FastAPI) -> None:
    """Every error the routes raise on purpose becomes a problem document. (Bugs are the business of `edge.py`.)"""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return problem(request, 422, sentence(first), field=path(first["loc"]))

    @app.exception_handler(InvalidInput)
    @app.exception_handler(Overloaded)
    @app.exception_handler(BackendError)
    async def refused(request: Request, error: LlmschedError) -> JSONResponse:
        headers = {}
        if isinstance(error, Overloaded):
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        elif isinstance(error, BackendError):
            headers["Retry-After"] = "5"
        return problem(request, status_of(error), str(error), field=getattr(error, "field", None), headers=headers)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        detail = error.detail
        if error.status_code == 404 and detail == "Not Found":
            detail = f"there is nothing at {show(request.url.path)}; GET /openapi.json lists what there is"
        if error.status_code == 405:
            detail = f"{request.method} is not possible at {show(request.url.path)}"
        return problem(request, error.status_code, detail, headers=error.headers)


def path(loc: Sequence[int | str]) -> str:
    """`stages[3].name` from pydantic's location, the place (body, query, …) left out.

    >>> path(("body", "jobs", 3, "application")), path(("body",))
    ('jobs[3].application', 'body')
    """
    text = ""
    for part in loc[1:]:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "body"


def sentence(error: Mapping[str, Any]) -> str:
    """One sentence with the field, what is wrong with it and the value."""
    where, message = path(error["loc"]), error["msg"]
    if error["type"] == "extra_forbidden":
        return f"unknown field {where!r}; see /docs for the fields there are"
    if error["type"] == "missing":
        return f"{where} is missing"
    return f"{where}: {message[:1].lower()}{message[1:]}; it is {show(error['input'])}"

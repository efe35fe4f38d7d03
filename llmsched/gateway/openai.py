"""The OpenAI-compatible side door: `/v1/chat/completions`, `/v1/completions` and `/v1/models`, for agents as they are.

Plain ASGI beside the routes: between a client and its engine nothing is parsed that need not be. Answers are what
the engine says, errors are OpenAI's objects, and headers `x-llmsched-*` say what a call belongs to (docs/openai.md).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from llmsched.errors import BackendError, InvalidInput, LlmschedError, Overloaded, show
from llmsched.gateway.body import read_body
from llmsched.gateway.context import Context
from llmsched.gateway.problems import status_of
from llmsched.model.events import JobClass
from llmsched.runtime.door import Ask, UnknownModel
from llmsched.runtime.scripts.observed import Failure
from llmsched.runtime.tracing.context import TraceContext

COMPLETIONS = ("/v1/chat/completions", "/v1/completions")
MODELS = "/v1/models"
_MODEL = f"{MODELS}/"

#: Longest name that a client may give to a group of calls.
MOST_CHARACTERS = 128
_CLASSES = {job_class.label: job_class for job_class in JobClass}
_YES, _NO = ("true", "1", "yes"), ("", "false", "0", "no")

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_EVENT_HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


class OpenAI:
    """ASGI application that answers what OpenAI's clients ask for, at the paths of which `is_here` is true."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        try:
            headers = _headers(scope)
            caller = self._context.keys.behind(headers.get("authorization", ""), headers.get("x-api-key", ""))
            expected = "POST" if path in COMPLETIONS else "GET"
            if scope["method"] != expected:
                raise HTTPException(405, f"{scope['method']} is not possible at {path}; use {expected}")
            if path in COMPLETIONS:
                await self._complete(self._ask(path, await read_body(receive), headers, caller.tenant), receive, send)
            else:
                await _answer(send, 200, self._models(path))
        except HTTPException as error:
            await refuse(send, error.status_code, error.detail, headers=error.headers)
        except LlmschedError as error:
            await _refused(send, error)

    async def _complete(self, ask: Ask, receive: Receive, send: Send) -> None:
        door = self._context.service.door
        client = _Client(send)
        call = await door.open(ask, client)
        client.job = call.job
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((call.over, gone), return_when=asyncio.FIRST_COMPLETED)
            if call.over.done() and (failure := call.over.result()) is not None:
                await client.fail(failure)
        finally:
            gone.cancel()
            door.leave(call)  # nothing happens if it is over

    def _ask(self, path: str, body: bytes, headers: Mapping[str, str], tenant: str) -> Ask:
        ask = _ask(path, body, headers, tenant)
        if self._context.service.tracing.is_on:
            ask = ask._replace(trace=TraceContext.read(headers.get("traceparent"), headers.get("tracestate")))
        return ask

    def _models(self, path: str) -> bytes:
        models = self._context.service.door.models()
        cards = [_card(name, longest) for name, longest in models.items()]
        if path == MODELS:
            return orjson.dumps({"object": "list", "data": cards})
        name = path.removeprefix(_MODEL)
        found = next((card for card in cards if card["id"] == name), None)
        if found is None:
            raise UnknownModel.of("model", name[:200], models, field="model")
        return orjson.dumps(found)


def is_here(path: str) -> bool:
    """Whether a path is one of OpenAI's API, errors included."""
    return path in COMPLETIONS or path == MODELS or path.startswith(_MODEL)


async def refuse(
    send: Send,
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answers with an error object."""
    more = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    await _answer(send, status, _error(status, message, param, code), more)


def _error(status: int, message: str, param: str | None = None, code: str | None = None) -> bytes:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


async def _refused(send: Send, error: LlmschedError) -> None:
    """An error that the door raised on purpose."""
    status = 404 if isinstance(error, UnknownModel) else status_of(error)
    headers = {}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    elif isinstance(error, BackendError):
        headers["retry-after"] = "5"
    code = {404: "model_not_found", 429: "rate_limit_exceeded"}.get(status)
    param = error.field if isinstance(error, InvalidInput) else None
    await refuse(send, status, str(error), param=param, code=code, headers=headers)


async def _answer(send: Send, status: int, body: bytes, more: Iterable[tuple[bytes, bytes]] = ()) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Client:
    """The waiting end of a call (see `runtime.observed.Client`). job: its job's id, for a header."""

    def __init__(self, send: Send) -> None:
        self.job = ""
        self._send = send
        self._has_begun = False

    async def begin(self, content_type: str) -> None:
        self._has_begun = True
        headers = [(b"content-type", content_type.encode()), (b"x-llmsched-job-id", self.job.encode())]
        if content_type.startswith("text/event-stream"):
            headers += _EVENT_HEADERS
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(self, chunk: bytes, *, last: bool) -> None:
        await self._send({"type": "http.response.body", "body": chunk, "more_body": not last})

    async def fail(self, failure: Failure) -> None:
        """There is no answer, or no more of it."""
        body = failure.body or _error(failure.status, failure.message, code=failure.code)
        if self._has_begun:
            event = b"data: " + _error(failure.status, failure.message, code=failure.code) + b"\n\n"
            await self.send(event, last=True)
            return
        more = [(b"x-llmsched-job-id", self.job.encode())]
        if failure.retry_after is not None:
            more.append((b"retry-after", b"%d" % max(1, math.ceil(failure.retry_after))))
        await _answer(self._send, failure.status, body, more)


def _card(name: str, longest: int | None) -> dict[str, Any]:
    card = {"id": name, "object": "model", "created": 0, "owned_by": "llmsched"}
    return card if longest is None else card | {"max_model_len": longest}


# ----------------------------------------------------------------------------------------------- what is asked


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _ask(path: str, body: bytes, headers: Mapping[str, str], tenant: str) -> Ask:
    """What a request asks for. Raises 400 for a body that is no JSON object, InvalidInput for a header."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"the body is not JSON that can be accepted: {error}") from None
    if not isinstance(fields, dict):
        raise HTTPException(400, f"the body is {show(fields)}; it must be a JSON object")
    return Ask(
        path,
        body,
        fields,
        tenant,
        _group(headers.get("x-llmsched-job")),
        headers.get("x-llmsched-application", "").strip() or None,
        _job_class(headers.get("x-llmsched-class", "")),
        _flag("x-llmsched-job-end", headers.get("x-llmsched-job-end", "")),
    )


def _group(name: str | None) -> str | None:
    if name is None:
        return None
    name = _unicode(name).strip()
    if not (0 < len(name) <= MOST_CHARACTERS and name.isprintable()):
        raise InvalidInput(
            f"x-llmsched-job is {show(name)}; a group of calls is named by 1 to {MOST_CHARACTERS} printable characters",
            field="x-llmsched-job",
        )
    return name


def _unicode(header: str) -> str:
    """A header's text: UTF-8 where it is that, Latin-1 otherwise."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeDecodeError:
        return header


def _job_class(label: str) -> JobClass:
    label = label.strip().lower()
    if not label:
        return JobClass.INTERACTIVE
    if label not in _CLASSES:
        raise InvalidInput(
            f"x-llmsched-class is {show(label)}; it must be one of {', '.join(_CLASSES)}", field="x-llmsched-class"
        )
    return _CLASSES[label]


def _flag(name: str, value: str) -> bool:
    value = value.strip().lower()
    if value not in _YES + _NO:
        raise InvalidInput(f"{name} is {show(value)}; it must be true or false", field=name)
    return value in _YES

"""A gateway among several: what it answers itself, what it passes on to the leader, and what gateways ask each other.

While it follows, it answers what is in the database (jobs, their events) and about itself (`/ready`, `/metrics`, the
page), and accepts jobs. Everything else under `/v1`, and calls to the OpenAI-compatible door, go to the leader as they
are: so do submissions that only the leader can judge, by a deadline or a quota.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmsched.gateway import openai
from llmsched.gateway.body import read_body
from llmsched.gateway.context import Context, context_of
from llmsched.gateway.edge import refuse
from llmsched.model.records import Leader
from llmsched.runtime.replicas.peer import FAILURES, FEED, LIVE, RELAYED

#: What every gateway answers: the method, and the path.
_HERE = re.compile(r"GET /v1/(events|jobs|jobs/[^/]+|jobs/[^/]+/events)|POST /v1/jobs(:batch)?")
_SUBMISSION = re.compile(r"POST /v1/jobs(:batch)?")
#: Headers that belong to one connection, or that are made anew.
_OWN = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade host content-length expect"
    b" x-request-id date server".split()
)
#: Seconds until there is a leader again, as a rule.
RETRY_AFTER = "2"

router = APIRouter(include_in_schema=False)


class Relay:
    """ASGI middleware: passes on to the leader what `app` cannot answer while this gateway follows."""

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._context.leads:
            await self._app(scope, receive, send)
            return
        asked, is_call = f"{scope['method']} {scope['path']}", openai.is_here(scope["path"])
        if not is_call and (not scope["path"].startswith("/v1/") or _HERE.fullmatch(asked)):
            if not _SUBMISSION.fullmatch(asked):
                await self._app(scope, receive, send)
                return
            body = await read_body(receive)
            if not self._is_for_leader(body):
                await self._app(scope, _again(body, receive), send)
                return
        else:
            body = await read_body(receive)
        await self._pass_on(scope, body, receive, send)

    def _is_for_leader(self, body: bytes) -> bool:
        return bool(self._context.service.quotas) or b'"deadline_s"' in body

    async def _pass_on(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        replica = self._context.replica
        assert replica is not None, scope
        leader, reason = replica.election.leader, "no gateway leads at the moment"
        if any(name == RELAYED.encode() for name, _ in scope["headers"]):
            leader, reason = None, "this gateway does not lead"
        if leader is not None:
            answered = asyncio.create_task(self._answer(leader, scope, body, send))
            gone = asyncio.create_task(_gone(receive))
            await asyncio.wait((answered, gone), return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if not answered.done():
                answered.cancel()
                await asyncio.wait((answered,))
                return
            if answered.result():
                return
            reason = f"the gateway that leads, {leader.url}, does not answer"
        await refuse(scope, receive, send, 503, f"{reason}; retry in a few seconds", {"Retry-After": RETRY_AFTER})

    async def _answer(self, leader: Leader, scope: Scope, body: bytes, send: Send) -> bool:
        """Whether the leader was reached. Raises one of FAILURES where it breaks off in the middle."""
        assert self._context.replica is not None
        path = scope["raw_path"].decode("latin-1") + (
            f"?{scope['query_string'].decode()}" if scope["query_string"] else ""
        )
        headers = [(name, value) for name, value in scope["headers"] if name not in _OWN]
        headers.append((b"x-request-id", scope["llmsched.request_id"].encode()))
        try:
            response = await self._context.replica.peer.ask(leader, scope["method"], path, headers, body)
        except FAILURES:
            return False
        try:
            theirs = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in _OWN]
            await send({"type": "http.response.start", "status": response.status_code, "headers": theirs})
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()
        return True


def _again(body: bytes, receive: Receive) -> Receive:
    """The request once more, whose body was read."""
    was_read = False

    async def receiving() -> Message:
        nonlocal was_read
        if was_read:
            return await receive()
        was_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


async def _gone(receive: Receive) -> None:
    """Returns when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


# ------------------------------------------------------------------------------------------ asked by other gateways


async def gateway(request: Request) -> Context:
    """The parts behind this gateway, for another one. Raises 403 for others, 503 where this one does not lead."""
    context = await context_of(request)
    sent = request.headers.get("authorization", "").removeprefix("Bearer ")
    replica = context.replica
    if replica is None or not hmac.compare_digest(sent.encode(), replica.secret.encode()):
        raise HTTPException(403, "this path is for the other gateways of the same database")
    if not context.leads:
        raise HTTPException(503, "this gateway does not lead", headers={"Retry-After": RETRY_AFTER})
    return context


Gateway = Annotated[Context, Depends(gateway)]


@router.get(FEED)
async def feed(here: Gateway) -> StreamingResponse:
    """Committed events as they come, one JSON list a line."""
    assert here.replica is not None
    lines: AsyncIterator[bytes] = here.replica.feed.lines()
    return StreamingResponse(lines, media_type="application/x-ndjson")


@router.get(LIVE)
async def live(id: str, here: Gateway) -> dict[str, Any]:
    """What is in memory of a job: `stages` and `eta`."""
    return await here.live(id)

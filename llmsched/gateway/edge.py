"""What every request passes, whatever it asks for: an id, the size limit, the last net for bugs, and the access log."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from random import Random

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmsched.gateway import openai
from llmsched.gateway.problems import problem

access = logging.getLogger("llmsched.access")
log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
#: Asks the system for randomness once, not with every request. An id is no secret.
_random = Random()


class Edge:
    """ASGI middleware. max_body: largest body in bytes.

    A request keeps the `X-Request-Id` it came with if that is a sane one; every answer carries it.
    """

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        headers = dict(scope["headers"])  # in lower case, as ASGI has them
        sent = headers.get(b"x-request-id", b"").decode("latin-1")
        id = scope["llmsched.request_id"] = sent if _REQUEST_ID.fullmatch(sent) else f"{_random.getrandbits(128):032x}"

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", id.encode())]
            await send(message)

        try:
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length[:20]) > self._max_body:
                refusal = self._too_large()
                await refuse(scope, receive, sending, refusal.status_code, refusal.detail)
            else:
                await self._app(scope, self._counted(receive), sending)
        except Exception:
            log.exception("request failed", extra={"request_id": id})
            if status:  # half an answer is out: the server breaks the connection
                raise
            detail = "the service failed on this request; its log has the story under the request id"
            await refuse(scope, receive, sending, 500, detail)
        finally:
            if access.isEnabledFor(logging.INFO):
                fields = {
                    "request_id": id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "milliseconds": round((time.perf_counter() - began) * 1000, 2),
                }
                access.info("request", extra=fields)

    def _counted(self, receive: Receive) -> Receive:
        """For bodies that do not tell their length beforehand."""
        left = self._max_body

        async def receiving() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_large()
            return message

        return receiving

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than {self._max_body} bytes; send less at once")


async def refuse(
    scope: Scope, receive: Receive, send: Send, status: int, detail: str, headers: Mapping[str, str] | None = None
) -> None:
    """An error in the shape that clients of this path expect."""
    if openai.is_here(scope["path"]):
        await openai.refuse(send, status, detail, headers=headers)
    else:
        await problem(Request(scope), status, detail, headers=headers)(scope, receive, send)

"""Request bodies: strict JSON, and nothing the store could not keep as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from math import isfinite
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from llmsched.gateway.context import tenant_of


def read_json(body: bytes) -> Any:
    """The value of a JSON text.

    Raises 400 for what is no JSON (NaN and Infinity are none) and for what cannot be stored: numbers beyond 64 bits,
    halves of surrogate pairs, nesting without end.
    """
    try:
        value = json.loads(body, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
        orjson.dumps(value)
    except RecursionError:
        raise _refused("it is nested too deeply") from None
    except (ValueError, TypeError) as error:  # TypeError: of orjson, for what it cannot write
        raise _refused(str(error)) from None
    return value


async def read_body(receive: Receive) -> bytes:
    """All of the body. Raises what the size limit raises, and 400 for a client that goes away in the middle."""
    message: Message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        return body
    pieces = [body]
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the body ended before it was complete")
        pieces.append(message.get("body", b""))
    return b"".join(pieces)


class JsonRoute(APIRoute):
    """A route that reads its body, where it takes one, with `read_json`, and only of who has a key."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handler(request: Request) -> Response:
            await tenant_of(request)  # nothing is read for somebody without a key
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json" and await request.body():
                raise HTTPException(
                    415,
                    f"the body is {kind[:80] or 'of no named type'}; send JSON, with Content-Type: application/json",
                )
            return await handle(_JsonRequest(request.scope, request.receive))

        return handler


class _JsonRequest(Request):
    async def json(self) -> Any:
        return read_json(await self.body())


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (number := int(digits)) < 2**64:
        raise ValueError(f"the number {digits[:24]}… has more than 64 bits; send it as a text")
    return number


def _finite(text: str) -> float:
    if not isfinite(number := float(text)):
        raise ValueError(f"the number {text[:24]} is not finite")
    return number


def _refused(why: str) -> HTTPException:
    return HTTPException(400, f"the body is not JSON that can be accepted: {why}")

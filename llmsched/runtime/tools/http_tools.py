"""Tools that live elsewhere: one request per call, JSON out and JSON in, and one `WorkerError` for all that goes wrong.

```
POST /weather                          GET /weather?city=Oslo&days=3
Content-Type: application/json         (arguments as query: texts as they are, other values as JSON,
Idempotency-Key: job_1/forecast/0       a list as several, null not at all)
x-llmsched-job: job_1
x-llmsched-stage: forecast
x-llmsched-attempt: 1
traceparent: 00-…-01                   (while traces are on, with a tracestate)

{"city": "Oslo", "days": 3}

200, Content-Type: application/json    the body is the result
     Content-Type: text/…              the text is the result
     no body, or 204                   null is the result
anything else                          the task failed; see `WorkerError`
```

Connections that fail, 5xx and 429 are tried again within the call, after a short wait or as long as the tool asks us
to; a tool that works longer than its `timeout` is left to the scheduler, which may prefer other work. All requests of
one task carry the same Idempotency-Key, also those of later attempts, so a tool with side effects can tell. Redirects
are not followed and cookies are not kept: the URL is the operator's choice, and nobody else's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from itertools import count
from string import printable
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from llmsched import __version__
from llmsched.errors import BackendError, show
from llmsched.runtime.tools.handlers import HttpTool
from llmsched.runtime.tools.web import BodyTooLarge, read_body, tls
from llmsched.runtime.tools.work import WorkerError, WorkerTask
from llmsched.runtime.tracing.context import outgoing

#: Seconds to reach a tool.
CONNECT_TIMEOUT = 5.0
#: uvicorn drops idle connections after 5 s. We do earlier, so that no request meets a closing one.
KEEP_ALIVE_S = 2.0
#: Of an error's body, which may be anything.
MAX_ERROR_BYTES = 64 << 10

#: What a header may say; the rest is written as in URLs.
_HEADER = "".join(c for c in printable if c.isprintable() and c != "%")


class HttpTools:
    """Calls tools over HTTP, through one client that is made with the first call.

    backoff: seconds before the first further request, doubled each time. longest_wait: seconds to wait for a tool that
    asks us to; one that asks for more ends the call. sleep: waits, for tests.
    """

    def __init__(
        self,
        *,
        backoff: float = 0.2,
        longest_wait: float = 5.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._backoff = backoff
        self._longest_wait = longest_wait
        self._sleep = sleep
        self._session: aiohttp.ClientSession | None = None

    async def call(self, tool: HttpTool, task: WorkerTask) -> object:
        """The tool's answer, as JSON values. Raises WorkerError."""
        for tries in count():
            try:
                return await self._ask(tool, task)
            except WorkerError as error:
                is_passing = error.reason in ("connect", "http_429") or error.reason.startswith("http_5")
                wait = error.retry_after if error.retry_after is not None else self._backoff * 2**tries
                if not is_passing or tries >= tool.retries or wait > self._longest_wait:
                    raise
            await self._sleep(wait)
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Closes all connections; a later call opens new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _ask(self, tool: HttpTool, task: WorkerTask) -> object:
        try:
            async with asyncio.timeout(tool.timeout):
                async with self._request(tool, task) as response:
                    return await _read(tool, response)
        except TimeoutError as error:
            if isinstance(error, aiohttp.ServerTimeoutError):
                message = f"tool {tool.name!r} could not be reached within {CONNECT_TIMEOUT:g} s"
                raise WorkerError(message, reason="connect") from None
            raise WorkerError(
                f"tool {tool.name!r} did not answer within {tool.timeout:g} s", reason="timeout"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise WorkerError(
                f"tool {tool.name!r} at {tool.where} cannot be called: {type(error).__name__}: {error}",
                reason="connect",
            ) from None

    def _request(self, tool: HttpTool, task: WorkerTask) -> Any:
        headers = {
            **outgoing.get(),
            **tool.headers,
            "Idempotency-Key": _plain(task.context.idempotency_key),
            "x-llmsched-job": _plain(task.context.job_id),
            "x-llmsched-stage": _plain(task.context.stage),
            "x-llmsched-attempt": str(task.context.attempt),
        }
        try:
            body = _json(task.arguments).encode()
        except (TypeError, ValueError, RecursionError) as error:
            message = f"the arguments of tool {tool.name!r} are not JSON: {error}"
            raise WorkerError(message, reason="bad_arguments", retryable=False) from None
        url = URL(tool.url)
        if tool.method == "GET":
            url, data = url.extend_query(_query(task.arguments)), None
        else:
            data, headers["Content-Type"] = body, "application/json"
        is_secure = url.scheme == "https"
        return self._client().request(
            tool.method, url, data=data, headers=headers, allow_redirects=False, ssl=tls() if is_secure else True
        )

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
                headers={
                    "User-Agent": f"llmsched/{__version__}",
                    "Accept": "application/json, text/*",
                    "Accept-Encoding": "gzip",
                },
            )
        return self._session


async def _read(tool: HttpTool, response: aiohttp.ClientResponse) -> object:
    """The result an answer stands for. Raises WorkerError, and what aiohttp raises."""
    if not 200 <= response.status < 300:
        raise await _refusal(tool, response)
    try:
        body = await read_body(response, tool.max_bytes)
    except BodyTooLarge:
        message = f"the answer of tool {tool.name!r} has more than {tool.max_bytes} bytes; raise its max_bytes"
        raise WorkerError(message, reason="too_large", retryable=False) from None
    except BackendError as error:
        raise _unreadable(tool, str(error)) from None
    if not body:
        return None
    kind = response.content_type
    try:
        if kind == "application/json" or kind.endswith("+json"):
            return orjson.loads(body)
        if kind.startswith("text/"):
            return body.decode(response.charset or "utf-8")
    except (ValueError, LookupError) as error:
        raise _unreadable(tool, f"{error}; it begins with {show(body[:80])}") from None
    raise _unreadable(tool, f"its content type is {show(kind)}; only JSON and text/… can be")


def _unreadable(tool: HttpTool, why: str) -> WorkerError:
    message = f"the answer of tool {tool.name!r} cannot be a result: {why}"
    return WorkerError(message, reason="bad_result", retryable=False)


async def _refusal(tool: HttpTool, response: aiohttp.ClientResponse) -> WorkerError:
    """The error for a status that is no success."""
    status, reason = response.status, f"http_{response.status}"
    if 300 <= status < 400:
        target = show(response.headers.get("Location", "elsewhere"))
        message = f"tool {tool.name!r} redirects to {target}; put that URL into its settings"
        return WorkerError(message, reason=reason, retryable=False)
    said = b""
    with suppress(BackendError, aiohttp.ClientError, OSError):
        said = await read_body(response, MAX_ERROR_BYTES)
    text = " ".join(said.decode(errors="replace").split())[:200] or "nothing more"
    return WorkerError(
        f"tool {tool.name!r} answered {status}: {text}",
        reason=reason,
        retryable=status >= 500 or status in (408, 425, 429),
        retry_after=retry_after(response.headers.get("Retry-After")),
    )


def retry_after(value: str | None) -> float | None:
    """Seconds from a `Retry-After` header, which is a number or a date."""
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _query(arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Arguments as a query.

    >>> _query({"city": "Oslo", "days": 3, "exact": True, "near": None, "tags": ["a", {"b": 1}]})
    [('city', 'Oslo'), ('days', '3'), ('exact', 'true'), ('tags', 'a'), ('tags', '{"b":1}')]
    """
    pairs = ((name, v) for name, value in arguments.items() for v in (value if isinstance(value, list) else [value]))
    return [(n, v if isinstance(v, str) else _json(v)) for n, v in pairs if v is not None]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _plain(text: str) -> str:
    """A text as a header can have it: planned stages may be called anything."""
    return quote(text, safe=_HEADER)

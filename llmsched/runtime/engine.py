"""An asynchronous client of one OpenAI-compatible vLLM server: ask, watch the silence, say clearly what went wrong.

Every completion is a stream, so that an engine that hangs is told from one that is slow. Four clocks watch it:

```
start ──connect──▶ connected ──▶ first token ──between_tokens──▶ next token … ▶ [DONE]
  └────────────first_token───────────┘
  └──────────────────────────────total──────────────────────────────────────────────┘
```

Whatever goes wrong becomes one `EngineError` with a short reason for metrics and two verdicts: whether another
attempt can help, and whether it speaks against the engine (for its breaker). Cancelling a call closes its connection,
on which vLLM aborts the request. There are no retries and no limit of connections here: both are the scheduler's.

Requests go straight to the `httpx-aiohttp` transport. Against an instant engine on one core the plain
`httpx.AsyncClient` managed 300 streams/s, the client on this transport 2,500 and the transport alone 3,900; what the
client adds (redirects, cookies, proxies of the environment) must not happen here anyway. Unary replies were not faster.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import httpx
import orjson

from llmsched.errors import BackendError, InvalidInput, InvalidSetting
from llmsched.runtime.tracing.context import outgoing
from llmsched.runtime.transport import transport_for

#: How long the end of the HTTP body may take after `[DONE]`; waiting for it lets the connection be used again.
DRAIN_S = 1.0
#: Bounds on what a mad server can make us hold.
MAX_LINE_BYTES = 4 << 20
MAX_REPLY_BYTES = 256 << 20
MAX_ERROR_BYTES = 64 << 10

#: How vLLM says that a request does not fit its context. It lowers `max_tokens` to what fits, then finds that lacking.
_TOO_LONG = re.compile(
    r"maximum (context|model) length|context_length_exceeded|exceeds? (the )?(model's )?context"
    r"|max_tokens=\d+ cannot be greater than max_model_len"
    r"|min_tokens must be less than or equal to max_tokens|max_tokens must be at least 1, got 0",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds an engine may be silent: to connect, to the first token, between tokens, and in total."""

    connect: float = 5.0
    first_token: float = 120.0
    between_tokens: float = 30.0
    total: float = 3600.0


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One LLM call: either a `prompt` (text or token ids) or chat `messages`.

    priority: lower runs earlier; sent only to engines that take it. extra: further fields of the request body.
    request_id: sent as `X-Request-Id`; make it unique per attempt. keep_text: False drops the text as it comes.
    return_token_ids: asks for the ids of what is generated, which vLLM 0.10.2 and later tell.

    Raises InvalidInput when both or neither of `prompt` and `messages` are given.
    """

    prompt: str | Sequence[int] | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool = False
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    response_format: Mapping[str, Any] | None = None
    priority: int = 0
    request_id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeouts: Timeouts | None = None
    keep_text: bool = True
    return_token_ids: bool = False

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidInput("an LLM call needs either a prompt or messages, not both", field="prompt")
        if not (self.request_id.isascii() and (self.request_id.isprintable())):
            raise InvalidInput(f"request id {self.request_id!r} must be printable ASCII", field="request_id")


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. Both times are seconds since `complete` was called; `first_token_s` ends at the first token.

    token_ids: of what was generated, empty unless the request asked and the engine told.
    """

    text: str
    prompt_tokens: int
    output_tokens: int
    finish_reason: str
    first_token_s: float
    duration_s: float
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a server tells about itself.

    slots: its maximum batch, where it tells (`/server_info` of vLLM's development mode and of our emulator).
    priority: whether it accepts a non-zero `priority`; vLLM 0.11 and later accept it under every scheduling
    policy and heed it under `--scheduling-policy priority` only, which `/server_info` reveals.
    """

    models: tuple[str, ...]
    max_model_len: int | None
    slots: int | None
    priority: bool
    version: str | None


class EngineError(BackendError):
    """An engine failed one request.

    | reason | retryable | engine_fault |
    |---|---|---|
    | connect, timeout_connect, timeout_first_token, timeout_between_tokens | yes | yes |
    | bad_response, broken_stream, http_5xx, http_401, http_403, http_404 | yes | yes |
    | timeout_total, http_408, http_409, http_425, http_429 | yes | no |
    | context_too_long, every other http_4xx | no | no |
    | client_stalled (of a relayed call) | no | no |

    retryable: another attempt, perhaps elsewhere, can succeed. engine_fault: counts for the engine's breaker.
    retry_after: seconds the server asked us to wait (429 and 503), or None. status and body: of an HTTP answer that was
    an error.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        retryable: bool = True,
        engine_fault: bool = True,
        retry_after: float | None = None,
        status: int | None = None,
        body: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable
        self.engine_fault = engine_fault
        self.retry_after = retry_after
        self.status = status
        self.body = body


class Relayed(Protocol):
    """Takes an answer as it comes and passes on what of it is meant for somebody else."""

    @property
    def is_stream(self) -> bool:
        """The answer was asked for as a stream of events."""

    @property
    def started(self) -> bool:
        """A token has come."""

    @property
    def done(self) -> bool:
        """All of the answer has come, whatever else the connection may bring."""

    def begin(self, content_type: str) -> None:
        """An answer comes. Raises EngineError if it is none of the expected type."""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to be passed on now. Raises EngineError where the answer is not what it should be."""

    async def send(self, chunk: bytes) -> None:
        """Passes on; returns once there is room for more."""

    def close(self) -> None:
        """The answer has ended. Raises EngineError if it is not whole."""


class EngineClient:
    """Speaks to the vLLM server at `url` (with or without a trailing `/v1`).

    model: the name sent with each request; None takes the first one `discover` finds, and sends none before that.
    priority: whether to send priorities; None lets `discover` find out, and sends none before that.
    transport: another httpx transport, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeouts: Timeouts | None = None,
        priority: bool | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = _base(url)
        self.model = model
        self.priority = priority
        self.timeouts = timeouts or Timeouts()
        self._transport = transport or transport_for(self.url)
        # Parsed once: it costs a tenth of a request.
        self._completions = httpx.URL(f"{self.url}/v1/completions")
        self._chat_completions = httpx.URL(f"{self.url}/v1/chat/completions")
        self._headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"

    async def discover(self, *, timeout: float = 10.0) -> EngineInfo:
        """What the server serves and takes; each question may last `timeout` seconds.

        Fills in `model` and `priority` where they were left open; unless the server tells its scheduling policy, that
        costs one request of one token. Raises EngineError when `/v1/models` or that request fails.
        """
        cards = [card for card in _items(await self._ask("/v1/models", timeout), "data") if "id" in card]
        models = tuple(str(card["id"]) for card in cards)
        if not models:
            raise self._error("bad_response", "lists no model at /v1/models")
        lengths = [card["max_model_len"] for card in cards if isinstance(card.get("max_model_len"), int)]
        self.model = self.model or models[0]
        version = (await self._ask_maybe("/version", timeout)).get("version")
        told = await self._ask_maybe("/server_info?config_format=json", timeout)
        scheduler = _mapping(_mapping(told.get("vllm_config")).get("scheduler_config"))
        slots = scheduler.get("max_num_seqs")
        if self.priority is None:
            policy = scheduler.get("policy")
            self.priority = policy == "priority" if policy else await self._takes_priority(timeout)
        return EngineInfo(
            models=models,
            max_model_len=min(lengths) if lengths else None,
            slots=slots if isinstance(slots, int) else None,
            priority=self.priority,
            version=version if isinstance(version, str) else None,
        )

    async def complete(self, request: CompletionRequest) -> Completion:
        """Run one request to its end.

        Raises EngineError and nothing else; on cancellation the connection is closed and vLLM aborts the request.
        """
        clock = asyncio.get_running_loop().time  # for deadlines; uvloop's has a resolution of 1 ms
        limits = request.timeouts or self.timeouts
        end = clock() + limits.total
        reply = _Reply(self.url, request.keep_text)
        try:
            async with asyncio.timeout_at(min(clock() + limits.first_token, end)) as alarm:
                response = await self._post(request, limits)
                try:
                    async for chunk in response.stream:  # type: ignore[union-attr]
                        reply.feed(chunk)
                        if reply.started or reply.done:
                            silence = DRAIN_S if reply.done else limits.between_tokens
                            alarm.reschedule(min(clock() + silence, end))
                finally:
                    await response.aclose()
        except TimeoutError as error:
            if not reply.done:
                raise self._silence(limits, reply.started, clock() >= end) from error
        except (httpx.HTTPError, aiohttp.ClientError) as error:
            if not reply.done:
                raise self._failure(error) from error
        return reply.completion()

    async def relay(
        self, path: str, body: bytes, reply: Relayed, *, limits: Timeouts | None = None, request_id: str = ""
    ) -> None:
        """Sends a body as it is and hands what comes back to `reply`, reading no faster than it is taken.

        The same four clocks as of `complete` watch a stream. An answer in one piece has only the total: nothing tells
        an engine that is slow from one that hangs. Whoever takes nothing for `between_tokens` seconds is given up.
        Raises EngineError and what `reply.send` raises; on cancellation the connection is closed.
        """
        clock = asyncio.get_running_loop().time
        limits = limits or self.timeouts
        end = clock() + limits.total
        is_sending = False
        url = self._chat_completions if path.endswith("/chat/completions") else self._completions
        try:
            async with asyncio.timeout_at(min(clock() + limits.first_token, end) if reply.is_stream else end) as alarm:
                response = await self._send(url, body, limits, request_id)
                try:
                    reply.begin(response.headers.get("content-type", ""))
                    async for chunk in response.stream:  # type: ignore[union-attr]
                        if passed_on := reply.feed(chunk):
                            alarm.reschedule(min(clock() + limits.between_tokens, end))
                            is_sending = True
                            await reply.send(passed_on)
                            is_sending = False
                        if reply.is_stream and (reply.started or reply.done):
                            silence = DRAIN_S if reply.done else limits.between_tokens
                            alarm.reschedule(min(clock() + silence, end))
                finally:
                    await response.aclose()
        except TimeoutError as error:
            if is_sending:
                raise EngineError(
                    f"the client took nothing for {limits.between_tokens:g} s",
                    reason="client_stalled",
                    retryable=False,
                    engine_fault=False,
                ) from error
            if not reply.done:
                raise self._silence(limits, reply.started, clock() >= end) from error
        except (httpx.HTTPError, aiohttp.ClientError) as error:
            if not reply.done:
                raise self._failure(error) from error
        reply.close()

    async def alive(self, *, timeout: float = 2.0) -> bool:
        """Whether the server answers its health check within `timeout` seconds (other servers: answers at all)."""
        try:
            status, _ = await self._get("/health", timeout)
        except EngineError:
            return False
        return status < 500

    async def metrics(self, *, timeout: float = 5.0) -> str:
        """The page of its metrics; empty where the server tells none within `timeout` seconds."""
        try:
            status, body = await self._get("/metrics", timeout)
        except EngineError:
            return ""
        return body.decode(errors="replace") if status == 200 else ""

    async def generates(self) -> None:
        """Ask for one token, because an engine that hangs often still says it is healthy.

        Raises EngineError where none comes; a server that refuses the question is there.
        """
        patience = min(10.0, self.timeouts.first_token)
        limits = Timeouts(connect=patience, first_token=patience, between_tokens=patience, total=patience)
        try:
            await self.complete(
                CompletionRequest(prompt="1", max_tokens=1, timeouts=limits, request_id="llmsched-probe")
            )
        except EngineError as error:
            if not error.reason.startswith("http_4"):
                raise

    async def aclose(self) -> None:
        """Close every connection; requests still running fail."""
        await self._transport.aclose()

    async def _post(self, request: CompletionRequest, limits: Timeouts) -> httpx.Response:
        """The response to a request, its event stream still unread. Raises EngineError where there is none."""
        url = self._completions if request.messages is None else self._chat_completions
        response = await self._send(url, orjson.dumps(self._body(request)), limits, request.request_id)
        kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            await response.aclose()
            raise self._error("bad_response", f"answered with {kind or 'no type'}, not with an event stream")
        return response

    async def _send(self, url: httpx.URL, body: bytes, limits: Timeouts, request_id: str) -> httpx.Response:
        """A response with status 200, unread. Raises EngineError where there is none."""
        headers = self._headers
        if request_id:
            headers = headers | {"x-request-id": request_id} | outgoing.get()
        response = await self._transport.handle_async_request(
            httpx.Request(
                "POST",
                url,
                headers=headers,
                content=body,
                extensions={"timeout": {"connect": limits.connect, "pool": limits.connect}},
            )
        )
        if response.status_code == 200:
            return response
        try:
            said = await _head(response)
        finally:
            await response.aclose()
        raise _refusal(self.url, response.status_code, _message(said), response.headers, said)

    def _body(self, request: CompletionRequest) -> dict[str, Any]:
        body: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
        if self.model is not None:
            body["model"] = self.model
        for name in _FIELDS:
            value = getattr(request, name)
            if value is not None:
                body[name] = value
        if request.ignore_eos:
            body["ignore_eos"] = True
        if request.return_token_ids:
            body["return_token_ids"] = True
        if request.priority and self.priority:
            body["priority"] = request.priority
        body.update(request.extra)
        return body

    async def _takes_priority(self, timeout: float) -> bool:
        """Ask for one token with a priority: a server without priorities refuses it. Earlier than all other work."""
        patience = Timeouts(connect=timeout, first_token=timeout, between_tokens=timeout, total=timeout)
        probe = CompletionRequest(
            prompt="1", max_tokens=1, extra={"priority": -1}, timeouts=patience, request_id="llmsched-probe"
        )
        try:
            await self.complete(probe)
        except EngineError as error:
            if error.retryable:
                raise
            return False
        return True

    async def _get(self, path: str, timeout: float) -> tuple[int, bytes]:
        """Status and body of a GET that ends within `timeout` seconds. Raises EngineError."""
        request = httpx.Request("GET", self.url + path, headers=self._headers)
        try:
            async with asyncio.timeout(timeout):
                response = await self._transport.handle_async_request(request)
                try:
                    return response.status_code, await _head(response, MAX_LINE_BYTES)
                finally:
                    await response.aclose()
        except TimeoutError as error:
            raise self._error("timeout_total", f"did not answer {path} within {timeout:g} s") from error
        except (httpx.HTTPError, aiohttp.ClientError) as error:
            raise self._failure(error) from error

    async def _ask(self, path: str, timeout: float) -> dict[str, Any]:
        """The JSON object at `path`. Raises EngineError."""
        status, body = await self._get(path, timeout)
        if status != 200:
            raise self._refusal(status, _message(body), {})
        try:
            return _mapping(orjson.loads(body))
        except orjson.JSONDecodeError as error:
            raise self._error("bad_response", f"answered {path} with something that is not JSON") from error

    async def _ask_maybe(self, path: str, timeout: float) -> dict[str, Any]:
        """The JSON object at `path`, empty where the server has none: for questions only some servers know."""
        try:
            return await self._ask(path, timeout)
        except EngineError:
            return {}

    def _error(self, reason: str, story: str) -> EngineError:
        return EngineError(f"engine {self.url} {story}", reason=reason)

    def _silence(self, limits: Timeouts, started: bool, ended: bool) -> EngineError:
        if ended:
            return EngineError(
                f"engine {self.url} did not finish within {limits.total:g} s in total",
                reason="timeout_total",
                engine_fault=False,
            )
        if started:
            return self._error("timeout_between_tokens", f"fell silent for {limits.between_tokens:g} s in mid-stream")
        return self._error("timeout_first_token", f"sent no token within {limits.first_token:g} s")

    def _failure(self, error: Exception) -> EngineError:
        """What a broken connection means, by its cause: the transport calls a disconnect a ConnectTimeout."""
        match error if isinstance(error, aiohttp.ClientError) else error.__cause__ or error:
            case aiohttp.ServerTimeoutError() | httpx.ConnectTimeout():
                return self._error("timeout_connect", "did not accept a connection in time")
            case aiohttp.ClientConnectorError() | httpx.ConnectError() as cause:
                return self._error("connect", f"cannot be reached: {cause}")
            case aiohttp.ClientResponseError() as cause:
                return self._error("bad_response", f"does not speak HTTP: {' '.join(cause.message.split())}")
            case cause:
                return self._error("broken_stream", f"broke the connection: {cause or type(cause).__name__}")

    def _refusal(self, status: int, message: str, headers: Mapping[str, str]) -> EngineError:
        return _refusal(self.url, status, message, headers)


class _Reply:
    """What one event stream has said so far.

    OpenAI-compatible servers put one JSON document on one `data:` line, so lines are events. Each is parsed, also when
    its text is dropped: 2 µs, where receiving it costs 50.
    """

    __slots__ = (
        "_begin",
        "_end",
        "_finish",
        "_first",
        "_ids",
        "_keep",
        "_pieces",
        "_rest",
        "_size",
        "_url",
        "_usage",
        "done",
    )

    def __init__(self, url: str, keep_text: bool) -> None:
        self._url = url
        self._keep = keep_text
        self._rest = b""
        self._size = 0
        self._pieces: list[str] = []
        self._ids: list[int] = []
        self._finish: str | None = None
        self._usage: dict[str, Any] | None = None
        #: Moments by `perf_counter`: asked, first token (None before it), last event.
        self._begin = self._end = time.perf_counter()
        self._first: float | None = None
        #: `[DONE]` has come.
        self.done = False

    @property
    def started(self) -> bool:
        """A token has come."""
        return self._first is not None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes. Raises EngineError on an error event and on what is not an OpenAI stream."""
        self._end = time.perf_counter()
        self._size += len(chunk)
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MAX_LINE_BYTES or self._size > MAX_REPLY_BYTES:
            raise self._error("bad_response", f"sent more than is sane ({self._size} bytes)")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())

    def completion(self) -> Completion:
        """The whole answer. Raises EngineError when the stream was not one."""
        if not self.done:
            raise self._error("broken_stream", "ended its stream without [DONE]")
        if self._finish is None or self._first is None:
            raise self._error("broken_stream", "ended its stream without a finish reason")
        if self._finish in ("abort", "error"):
            raise self._error("broken_stream", f"gave the request up (finish reason {self._finish!r})")
        usage = self._usage or {}
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not (isinstance(prompt, int) and isinstance(output, int)):
            raise self._error("broken_stream", "ended its stream without token counts")
        return Completion(
            text="".join(self._pieces),
            prompt_tokens=prompt,
            output_tokens=output,
            finish_reason=self._finish,
            first_token_s=self._first - self._begin,
            duration_s=self._end - self._begin,
            token_ids=tuple(self._ids),
        )

    def _event(self, payload: bytes) -> None:
        if payload == b"[DONE]":
            self.done = True
            return
        try:
            event = orjson.loads(payload)
            if error := event.get("error"):
                raise _refusal(self._url, _status(error), _text(error), {})
            if usage := event.get("usage"):
                self._usage = usage
            if choices := event["choices"]:
                self._choice(choices[0])
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, IndexError) as error:
            raise self._error("bad_response", f"sent an event nobody can read: {payload[:80]!r}") from error

    def _choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        text = choice["text"] if delta is None else delta.get("content")
        if text and self._keep:
            self._pieces.append(text + "")  # a TypeError unless it is text
        if ids := choice.get("token_ids"):
            self._ids += ids
        self._finish = choice.get("finish_reason") or self._finish
        # A chat stream opens with the bare role, which is no token yet.
        if self._first is None and (delta is None or text or self._finish or "role" not in delta):
            self._first = self._end

    def _error(self, reason: str, story: str) -> EngineError:
        return EngineError(f"engine {self._url} {story}", reason=reason)


#: Fields of a request that go into the body under their own name when they are set.
_FIELDS = (
    "prompt",
    "messages",
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "response_format",
)


def _base(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise InvalidSetting(f"engine URL {url!r} must look like http://host:8000", field="engine")
    return url.rstrip("/").removesuffix("/v1")


def _refusal(url: str, status: int, message: str, headers: Mapping[str, str], body: bytes = b"") -> EngineError:
    """The error for an HTTP status other than 200, or for an error event with that code. body: the whole answer."""
    if 300 <= status < 400:
        target = headers.get("location", "elsewhere")
        return EngineError(f"engine {url} redirects to {target}; use that URL", reason="bad_response")
    story = f"engine {url} answered {status}: {message}"
    if status in (400, 413, 422) and _TOO_LONG.search(message):
        return EngineError(
            story, reason="context_too_long", retryable=False, engine_fault=False, status=status, body=body
        )
    return EngineError(
        story,
        reason=f"http_{status}",
        retryable=status >= 500 or status in (401, 403, 404, 408, 409, 425, 429),
        engine_fault=status >= 500 or status in (401, 403, 404),
        retry_after=_retry_after(headers.get("retry-after")),
        status=status,
        body=body,
    )


def _retry_after(value: str | None) -> float | None:
    """Seconds from a `Retry-After` header, which is a number or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


async def _head(response: httpx.Response, limit: int = MAX_ERROR_BYTES) -> bytes:
    """The body of a response, at most about `limit` bytes of it."""
    body = b""
    async for chunk in response.stream:  # type: ignore[union-attr]
        body += chunk
        if len(body) >= limit:
            break
    return body


def _message(body: bytes) -> str:
    """What the server says in an error body: OpenAI's shape, FastAPI's, or the text itself."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body[:200].decode(errors="replace") or "nothing"
    if isinstance(document, dict):
        document = document.get("error") or document
    return _text(document)


def _text(error: object) -> str:
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return str(error)[:500]


def _status(error: object) -> int:
    """The HTTP status an error event stands for; vLLM sends it as `code`."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = document.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []

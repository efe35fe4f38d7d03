"""Passes a client's call through to an engine and the answer back, byte for byte, and keeps the accounts of it.

What comes back is what the engine sent: tool calls, logprobs, several choices, whatever a newer engine adds. A stream
is read in whole events and passed on as they come. Three kinds of events are looked into: those before the first token,
which are held back (until then another attempt, on another engine, may still answer), an error, which ends the stream,
and the usage, which our accounts asked for: it is passed on only if the client asked for it too.

Events are passed on by the attempt itself, with no queue in between, so a client that reads slowly slows down the
reading from the engine, and nothing piles up here. One that takes nothing at all is given up.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import orjson

from llmsched.model.events import TaskResult
from llmsched.runtime.clock import Clock
from llmsched.runtime.engine import MAX_LINE_BYTES, MAX_REPLY_BYTES, EngineError, Relayed
from llmsched.runtime.engines import Engine
from llmsched.runtime.scripts.observed import Call, Failure

#: What names an event that has to be looked into. No text that a model says holds these: its quotes are escaped.
_MARKS = (b'"usage"', b'"error"', b'"abort"', b"[DONE]")
_EVENTS = re.compile(rb"\r?\n\r?\n")

#: Seconds after which a client may ask again when no engine could answer.
RETRY_AFTER = 5.0


class Stream:
    """An answer in server-sent events (see `Relayed`)."""

    is_stream = True

    def __init__(self, call: Call, url: str) -> None:
        self.started = False
        self.done = False
        self.usage: dict[str, Any] = {}
        self._call = call
        self._url = url
        self._type = ""
        self._rest = b""
        self._held = b""
        self._size = 0

    def begin(self, content_type: str) -> None:
        if not content_type.startswith("text/event-stream"):
            raise self._error("bad_response", f"answered with {content_type or 'no type'}, not with an event stream")
        self._type = content_type

    def feed(self, chunk: bytes) -> bytes:
        text = self._rest + chunk if self._rest else chunk
        end = text.rfind(b"\n\n") + 2
        if end == 1:  # none, or lines end in CR LF
            end = text.rfind(b"\r\n\r\n") + 4
            end = 0 if end == 3 else end
        self._rest = text[end:]
        self._size += len(chunk)
        if len(self._rest) > MAX_LINE_BYTES or self._size > MAX_REPLY_BYTES:
            raise self._error("bad_response", f"sent more than is sane ({self._size} bytes)")
        events = text[:end]
        if not events:
            return b""
        if not self.started or any(mark in events for mark in _MARKS):
            events = self._sorted_out(events)
            if not (self.started or self.done):
                self._held += events
                return b""
            events, self._held = self._held + events, b""
        return events

    async def send(self, chunk: bytes) -> None:
        if not self._call.has_begun:
            self._call.has_begun = True
            await self._call.client.begin(self._type)
        await self._call.client.send(chunk, last=self.done)
        if self.done:  # before the connection is drained: the client may ask again by now
            self._call.settle(None)

    def close(self) -> None:
        if not self.done:
            raise self._error("broken_stream", "ended its stream without [DONE]")

    def _sorted_out(self, events: bytes) -> bytes:
        """What of these whole events is the client's."""
        kept = []
        start = 0
        for end in _EVENTS.finditer(events):
            event = events[start : end.end()]
            start = end.end()
            if self._is_for_client(event):
                kept.append(event)
        return b"".join(kept)

    def _is_for_client(self, event: bytes) -> bool:
        payload = b"".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
        if not payload:
            return True
        if payload == b"[DONE]":
            if not self.started:
                raise self._error("broken_stream", "ended its stream without an answer")
            self.done = True
            return True
        try:
            document = orjson.loads(payload)
            if error := document.get("error"):
                raise self._error("broken_stream", f"broke off: {_said(error)}")
            choices = document["choices"]
            if any(choice.get("finish_reason") in ("abort", "error") for choice in choices):
                raise self._error("broken_stream", "gave the request up")
            self.started = self.started or any(map(_is_token, choices))
            if usage := document.get("usage"):
                self.usage = usage
                return bool(choices) or self._call.wants_usage
        except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise self._error("bad_response", f"sent an event nobody can read: {payload[:80]!r}") from error
        return True

    def _error(self, reason: str, story: str) -> EngineError:
        return EngineError(f"engine {self._url} {story}", reason=reason)


class Whole:
    """An answer in one piece (see `Relayed`): nothing is passed on before all of it is here."""

    is_stream = False
    started = False

    def __init__(self, url: str) -> None:
        self.done = False
        self.usage: dict[str, Any] = {}
        self.type = ""
        self.body = b""
        self._url = url
        self._chunks: list[bytes] = []
        self._size = 0

    def begin(self, content_type: str) -> None:
        self.type = content_type

    def feed(self, chunk: bytes) -> bytes:
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > MAX_REPLY_BYTES:
            raise self._error(f"sent more than is sane ({self._size} bytes)")
        return b""

    async def send(self, chunk: bytes) -> None:
        raise AssertionError("an answer in one piece is sent when it is whole")

    def close(self) -> None:
        self.body = b"".join(self._chunks)
        self.done = True
        try:
            self.usage = orjson.loads(self.body).get("usage") or {}
        except (orjson.JSONDecodeError, AttributeError) as error:
            raise self._error(f"sent an answer nobody can read: {self.body[:80]!r}") from error

    def _error(self, story: str) -> EngineError:
        return EngineError(f"engine {self._url} {story}", reason="bad_response")


async def relay(
    call: Call, engine: Engine, *, priority: int, request_id: str, retries: int, clock: Clock
) -> TaskResult:
    """One attempt at a call: when it returns, its client has the answer, or knows that there is none.

    retries: failed attempts that may be followed by another one; then the client hears of the failure.
    Raises EngineError: with `retryable` for another attempt, without it if the job of this one call has failed. A call
    among others that fails is over as well, and the job goes on. Cancelled in the middle of an answer, the call is cut.
    """
    began = time.perf_counter()
    reply: Stream | Whole = Stream(call, engine.client.url) if call.is_stream else Whole(engine.client.url)
    call.attempt = request_id
    try:
        if call.has_begun:  # it was cut off, and a tick was faster than the news that nobody can go on from there
            raise EngineError("the answer broke off", reason="broken_stream", engine_fault=False)
        await _ask(call, engine, reply, priority, request_id, clock)
    except EngineError as error:
        never_reached = error.reason in ("connect", "timeout_connect")
        call.failures += not never_reached
        is_final = call.has_begun or not error.retryable or call.failures > retries
        if not is_final:
            raise
        call.settle(failure_of(error))
        if not call.is_grouped:
            error.retryable = False
            raise
    except asyncio.CancelledError:
        if call.has_begun:
            call.cut(Failure(503, f"engine {engine.id} was lost in the middle of the answer", "engine_error"))
        raise
    finally:
        if call.attempt == request_id:  # a cancelled attempt may end after the next one began
            call.attempt, call.waits_since = None, clock.now()
    return TaskResult(time.perf_counter() - began, _count(reply, "prompt_tokens"), _count(reply, "completion_tokens"))


async def _ask(call: Call, engine: Engine, reply: Stream | Whole, priority: int, request_id: str, clock: Clock) -> None:
    client = engine.client
    model = client.model
    if call.model is not None and not engine.serves(call.model):
        raise EngineError(
            f"engine {engine.id} of pool {call.pool!r} serves {model!r}, not {call.model!r};"
            " put engines of different models into different pools",
            reason="http_404",
            engine_fault=False,
            status=404,
        )
    body = call.body(call.model or model, priority if client.priority else 0)
    relayed: Relayed = reply
    await engine.relay(call.path, body, relayed, request_id, clock)
    if isinstance(reply, Whole):
        call.has_begun = True
        await call.client.begin(reply.type)
        await call.client.send(reply.body, last=True)
        call.settle(None)


def failure_of(error: EngineError) -> Failure:
    """What the client hears: the engine's own refusal of the request, else that no engine could answer."""
    status = error.status
    if status is not None and 400 <= status < 500 and not error.engine_fault:
        return Failure(status, str(error), None, error.body if _is_openai(error.body) else None, error.retry_after)
    return Failure(503, str(error), "engine_error", retry_after=RETRY_AFTER)


def _is_openai(body: bytes) -> bool:
    """Whether an error body has OpenAI's shape."""
    try:
        return isinstance(orjson.loads(body)["error"], dict)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False


def _is_token(choice: dict[str, Any]) -> bool:
    """A chat stream opens with the bare role, which is no token yet."""
    delta = choice.get("delta")
    if delta is None or "role" not in delta or choice.get("finish_reason"):
        return True
    return any(value for name, value in delta.items() if name != "role")


def _said(error: Any) -> str:
    return str(error.get("message") if isinstance(error, dict) else error)[:500]


def _count(reply: Stream | Whole, name: str) -> int:
    number = reply.usage.get(name)
    return number if isinstance(number, int) and number > 0 else 0

"""The HTTP face of an emulated engine: the endpoints of vLLM's OpenAI server that llmsched may meet."""

from __future__ import annotations

import asyncio
import hmac
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus

import orjson
from aiohttp import web

from llmsched.errors import InvalidInput
from llmsched.runtime.emulator.faults import Fault, FaultKind, Faults
from llmsched.runtime.emulator.metrics import EngineMetrics
from llmsched.runtime.emulator.paced import Call, PacedServer
from llmsched.runtime.emulator.replies import Reply, error_body
from llmsched.runtime.emulator.requests import (
    Refused,
    check_model,
    parse_generation,
    parse_object,
    prompt_text,
)
from llmsched.runtime.emulator.settings import EmulatorSettings
from llmsched.runtime.emulator.text import token_ids

#: the vLLM whose answers are imitated
VERSION = "0.32.0+emulated"
_BODY_LIMIT = 64 * 2**20
_GARBAGE = b"<html><body>this is not JSON</body></html>"
_OPEN_PATHS = ("/health", "/version", "/metrics")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api:
    """Routes of one engine. `app` is an aiohttp application."""

    def __init__(
        self,
        settings: EmulatorSettings,
        paced: PacedServer,
        metrics: EngineMetrics,
        faults: Faults,
        request_ids: deque[str],
    ) -> None:
        self._settings = settings
        self._paced = paced
        self._metrics = metrics
        self._faults = faults
        self._request_ids = request_ids
        self.app = web.Application(client_max_size=_BODY_LIMIT, middlewares=[self._guard])
        self.app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/version", self._version),
                web.get("/metrics", self._get_metrics),
                web.get("/server_info", self._server_info),
                web.get("/v1/models", self._models),
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat_completions),
                web.post("/tokenize", self._tokenize),
                web.post("/emulator/fault", self._set_fault),
                web.delete("/emulator/fault", self._clear_fault),
            ]
        )

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The API key, faults that reach every endpoint, and one shape for every error."""
        key = self._settings.api_key
        if key is not None and request.path not in _OPEN_PATHS:
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
                return _json(b'{"error":"Unauthorized"}', 401)
        fault = self._faults.take(completion=False) if request.method == "GET" else None
        if fault is not None and (answer := await _broken(fault)) is not None:
            return answer
        try:
            return await handler(request)
        except Refused as refusal:
            body = error_body(str(refusal), refusal.type, refusal.status, refusal.field)
            return _json(body, refusal.status)
        except web.HTTPException as error:
            phrase = HTTPStatus(error.status).phrase
            return _json(error_body(phrase, phrase, error.status), error.status)

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, request: web.Request) -> web.Response:
        return _json(orjson.dumps({"version": VERSION}))

    async def _get_metrics(self, request: web.Request) -> web.Response:
        page = self._metrics.exposition().encode()
        return web.Response(body=page, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _server_info(self, request: web.Request) -> web.Response:
        """What vLLM tells in its development mode, as far as it matters here."""
        if request.query.get("config_format") != "json":
            raise Refused("the emulated engine tells its configuration with config_format=json only")
        settings = self._settings
        config = {
            "model_config": {"model": settings.model, "max_model_len": settings.max_model_len},
            "scheduler_config": {"max_num_seqs": settings.max_batch, "policy": settings.scheduling_policy},
        }
        return _json(orjson.dumps({"vllm_config": config, "vllm_env": {}, "system_env": {}}))

    async def _models(self, request: web.Request) -> web.Response:
        card = {
            "id": self._settings.model,
            "object": "model",
            "created": 0,
            "owned_by": "vllm",
            "root": self._settings.model,
            "parent": None,
            "max_model_len": self._settings.max_model_len,
            "permission": [],
        }
        return _json(orjson.dumps({"object": "list", "data": [card]}))

    async def _tokenize(self, request: web.Request) -> web.Response:
        document = parse_object(await request.read())
        check_model(document, self._settings)
        tokens = token_ids(prompt_text(document))
        found = {"count": len(tokens), "max_model_len": self._settings.max_model_len, "tokens": tokens}
        return _json(orjson.dumps(found | {"token_strs": None}))

    async def _set_fault(self, request: web.Request) -> web.Response:
        try:
            self._faults.current = Fault.from_json(parse_object(await request.read()))
        except InvalidInput as error:
            raise Refused(str(error), param=error.field) from None
        return _json(orjson.dumps(self._faults.current))

    async def _clear_fault(self, request: web.Request) -> web.Response:
        self._faults.current = None
        return web.Response(status=204)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=False)

    async def _chat_completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True)

    async def _generate(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        body = await request.read()
        id = request.headers.get("X-Request-Id")
        self._request_ids.append(id or "")
        generation = parse_generation(body, self._settings, chat=chat, id=id)
        fault = self._faults.take(completion=True)
        if fault is not None and (answer := await _broken(fault, stream=generation.stream)) is not None:
            return answer
        output = generation.output
        call = self._paced.submit(generation.prompt, output.token_ids, generation.priority)
        self._metrics.begin(call)
        reply = Reply(generation, self._settings.model, call.sequence)
        try:
            if generation.stream:
                return await self._stream(request, call, generation.output.tokens, reply, fault)
            await call.finished()
            if fault is not None:
                return await self._disappoint(request, reply.whole(), fault)
            return _json(reply.whole())
        finally:
            tokens = self._paced.abort(call)
            self._metrics.end(call, tokens, output.finish_reason if call.is_finished else "abort")

    async def _stream(
        self, request: web.Request, call: Call, total: int, reply: Reply, fault: Fault | None
    ) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream; charset=utf-8"}
        if call.is_finished and fault is None:
            body = reply.opening() + reply.delta(0, total) + reply.closing()
            return web.Response(body=body, headers=headers)
        response = web.StreamResponse(headers=headers)
        # A write that finds the client gone raises; the handler is cancelled on the same news a moment later.
        with suppress(ConnectionResetError):
            await response.prepare(request)
            await self._send(request, response, call, total, reply, fault)
        return response

    async def _send(
        self,
        request: web.Request,
        response: web.StreamResponse,
        call: Call,
        total: int,
        reply: Reply,
        fault: Fault | None,
    ) -> None:
        """The events of a stream as its tokens come, or half of them."""
        if fault is not None and fault.kind is FaultKind.SLOW_FIRST_TOKEN:
            await asyncio.sleep(fault.delay_s)
        is_cut = fault is not None and fault.kind in (FaultKind.HALF_STREAM, FaultKind.STALL)
        sent, opening = 0, reply.opening()
        async for tokens in self._paced.stream(call):
            until = min(tokens, total // 2) if is_cut else tokens
            if until > sent or until == total:
                event = opening + reply.delta(sent, until)
                if until == total:
                    event += reply.closing()
                if event:
                    await response.write(event)
                sent, opening = until, b""
            if is_cut and sent == total // 2:
                break
        if fault is not None and is_cut:
            await _cut(request, fault)

    async def _disappoint(self, request: web.Request, body: bytes, fault: Fault) -> web.StreamResponse:
        """An answer in one piece, with a fault that lets it begin."""
        if fault.kind is FaultKind.SLOW_FIRST_TOKEN:
            await asyncio.sleep(fault.delay_s)
            return _json(body)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        await _cut(request, fault)
        return response


async def _broken(fault: Fault, *, stream: bool = False) -> web.Response | None:
    """The answer of an engine that does not get as far as its model; None if this one does."""
    match fault.kind:
        case FaultKind.HANG:
            await _forever()
        case FaultKind.HTTP_500:
            message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
            return _json(error_body(message, "InternalServerError", 500), 500)
        case FaultKind.GARBAGE if stream:
            return web.Response(body=b"data: {not JSON\n\n", content_type="text/event-stream")
        case FaultKind.GARBAGE:
            return _json(_GARBAGE)
    return None


async def _cut(request: web.Request, fault: Fault) -> None:
    """Half the answer is out: fall silent, or close the connection without the rest."""
    if fault.kind is FaultKind.STALL:
        await _forever()
    if request.transport is not None:
        request.transport.close()


async def _forever() -> None:
    """Until the client goes away or the engine stops: both cancel the handler."""
    await asyncio.get_running_loop().create_future()


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, headers={"Content-Type": "application/json"})

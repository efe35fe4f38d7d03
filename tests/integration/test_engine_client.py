"""The engine client against servers that behave, hang, fall silent, talk nonsense, refuse and break off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from llmsched.errors import InvalidInput, InvalidSetting
from llmsched.runtime.engine import Completion, CompletionRequest, EngineClient, EngineError, Timeouts

#: Long enough never to fire on a busy machine, and short ones for the clock a test is about.
CALM = Timeouts(connect=20, first_token=20, between_tokens=20, total=20)
SHORT = 0.15


@dataclass
class Call:
    """One request as the fake server saw it, and its end of the connection."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    writer: asyncio.StreamWriter
    closed: asyncio.Event

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def events(self, *events: object, done: bool = True, end: bool = True) -> None:
        """A chunked event stream, one HTTP chunk per event; `end` finishes the body."""
        await self.send(STREAM_HEAD)
        for event in events:
            await self.send(chunk(sse(event)))
        if done:
            await self.send(chunk(b"data: [DONE]\n\n"))
        if end:
            await self.send(b"0\r\n\r\n")

    async def json(self, status: int, document: object, **headers: str) -> None:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        lines = [f"HTTP/1.1 {status} Whatever", "content-type: application/json", f"content-length: {len(data)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + data)


Handler = Callable[[Call], Awaitable[None]]
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def sse(event: object) -> bytes:
    return b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n"


def token(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}


def usage(prompt: int, output: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output}}


@asynccontextmanager
async def engine(handler: Handler) -> AsyncIterator[str]:
    """A server on a free port that hands each request to `handler`; its URL."""
    connections: set[asyncio.Task[None]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                request, *lines = head.decode().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = request.split(" ")
                call = Call(method, path, headers, json.loads(raw or b"{}"), writer, asyncio.Event())
                work = asyncio.ensure_future(handler(call))
                # The client never sends two requests at once: whatever comes now is the end of the connection.
                watch = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done() and watch.result() == b"":
                    call.closed.set()
                await work
                if not watch.done():
                    watch.cancel()
                    await asyncio.wait({watch})
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            connections.discard(task)

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


@asynccontextmanager
async def client(handler: Handler, **options: Any) -> AsyncIterator[EngineClient]:
    async with engine(handler) as url:
        it = EngineClient(url, **{"timeouts": CALM, **options})
        try:
            yield it
        finally:
            await it.aclose()


async def failure(handler: Handler, request: CompletionRequest | None = None, **options: Any) -> EngineError:
    """The error one request ends with."""
    async with client(handler, **options) as it:
        with pytest.raises(EngineError) as caught:
            await it.complete(request or CompletionRequest(prompt="hi"))
    return caught.value


def verdict(error: EngineError) -> tuple[str, bool, bool]:
    return error.reason, error.retryable, error.engine_fault


# Answers


async def test_a_stream_becomes_a_completion_with_exact_usage() -> None:
    async def handler(call: Call) -> None:
        await call.events(token("Hel"), token("lo", "length"), usage(7, 2))

    async with client(handler) as it:
        answer = await it.complete(CompletionRequest(prompt="hi"))
    assert answer == Completion("Hello", 7, 2, "length", answer.first_token_s, answer.duration_s)
    assert 0 < answer.first_token_s <= answer.duration_s < 20


async def test_the_body_carries_what_was_asked_and_nothing_else() -> None:
    calls: list[Call] = []

    async def handler(call: Call) -> None:
        calls.append(call)
        await call.events(token("x", "length"), usage(3, 5))

    recorded = CompletionRequest(
        prompt=(1, 2, 3), max_tokens=5, min_tokens=5, ignore_eos=True, priority=4, request_id="job-1/a/0#1"
    )
    async with client(handler, model="tiny", api_key="secret", priority=True) as it:
        await it.complete(recorded)
        await it.complete(CompletionRequest(messages=[{"role": "user", "content": "hi"}], extra={"top_k": 3}))
    streaming = {"model": "tiny", "stream": True, "stream_options": {"include_usage": True}}
    assert [(call.method, call.path, call.body) for call in calls] == [
        (
            "POST",
            "/v1/completions",
            streaming | {"prompt": [1, 2, 3], "max_tokens": 5, "min_tokens": 5, "ignore_eos": True, "priority": 4},
        ),
        (
            "POST",
            "/v1/chat/completions",
            streaming | {"messages": [{"role": "user", "content": "hi"}], "top_k": 3},
        ),
    ]
    assert calls[0].headers["x-request-id"] == "job-1/a/0#1"
    assert calls[0].headers["authorization"] == "Bearer secret"
    assert "x-request-id" not in calls[1].headers


async def test_token_ids_are_asked_for_and_collected_where_an_engine_tells_them() -> None:
    calls: list[Call] = []

    async def handler(call: Call) -> None:
        calls.append(call)
        pieces = [token("a"), token("", "length")]
        for piece, ids in zip(pieces, ([7, 8], [9]), strict=True):
            piece["choices"][0]["token_ids"] = ids if call.body.get("return_token_ids") else None
        await call.events(*pieces, usage(1, 3))

    async with client(handler) as it:
        asked = await it.complete(CompletionRequest(prompt=[1], keep_text=False, return_token_ids=True))
        plain = await it.complete(CompletionRequest(prompt=[1]))
    assert (asked.token_ids, asked.text, plain.token_ids) == ((7, 8, 9), "", ())
    assert [call.body.get("return_token_ids") for call in calls] == [True, None]


async def test_token_ids_that_are_none_are_a_bad_response() -> None:
    async def handler(call: Call) -> None:
        await call.events({"choices": [{"text": "a", "token_ids": 7, "finish_reason": "length"}]}, usage(1, 1))

    assert (await failure(handler)).reason == "bad_response"


async def test_priority_is_not_sent_to_an_engine_that_refuses_it() -> None:
    bodies: list[dict[str, Any]] = []

    async def handler(call: Call) -> None:
        bodies.append(call.body)
        await call.events(token("x", "stop"), usage(1, 1))

    async with client(handler, priority=False) as it:
        await it.complete(CompletionRequest(prompt="hi", priority=3))
    assert "priority" not in bodies[0]


async def test_chat_text_comes_from_the_deltas_and_the_bare_role_is_no_token() -> None:
    go_on = asyncio.Event()

    def delta(finish: str | None = None, **fields: str) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}

    async def handler(call: Call) -> None:
        await call.send(STREAM_HEAD + chunk(sse(delta(role="assistant", content=""))))
        if call.body["messages"] == ["wait"]:
            await call.closed.wait()
            return
        for event in (delta(content="né"), delta(finish="stop"), usage(9, 1), b"[DONE]"):
            await call.send(chunk(sse(event)))
        await call.send(b"0\r\n\r\n")
        go_on.set()

    async with client(handler) as it:
        answer = await it.complete(CompletionRequest(messages=[]))
        assert (answer.text, answer.finish_reason) == ("né", "stop")
        hasty = Timeouts(connect=20, first_token=SHORT, between_tokens=20, total=20)
        with pytest.raises(EngineError) as caught:
            await it.complete(CompletionRequest(messages=["wait"], timeouts=hasty))  # type: ignore[list-item]
    assert caught.value.reason == "timeout_first_token"


async def test_any_split_of_the_bytes_gives_the_same_answer() -> None:
    stream = b"".join(
        [b": a comment\r\n", sse(token("häl")), sse(token("lo", "stop")), sse(usage(2, 2)), b"data: [DONE]\r\n\r\n"]
    )

    async def handler(call: Call) -> None:
        size = call.body["max_tokens"]
        pieces = [chunk(stream[at : at + size]) for at in range(0, len(stream), size)]
        await call.send(STREAM_HEAD)
        for piece in pieces:
            await call.send(piece)
        await call.send(b"0\r\n\r\n")

    async with client(handler) as it:
        for size in (1, 2, 7, 50, 10_000):
            answer = await it.complete(CompletionRequest(prompt="hi", max_tokens=size))
            assert (answer.text, answer.output_tokens, answer.finish_reason) == ("hällo", 2, "stop")


async def test_text_is_dropped_when_nobody_wants_it() -> None:
    async def handler(call: Call) -> None:
        await call.events(token("Hello", "stop"), usage(1, 1))

    async with client(handler) as it:
        assert (await it.complete(CompletionRequest(prompt="hi", keep_text=False))).text == ""


async def test_connections_are_used_again() -> None:
    writers: list[asyncio.StreamWriter] = []

    async def handler(call: Call) -> None:
        writers.append(call.writer)
        await call.events(token("x", "stop"), usage(1, 1))

    async with client(handler) as it:
        for _ in range(5):
            await it.complete(CompletionRequest(prompt="hi"))
    assert len(set(writers)) == 1


async def test_an_answer_is_whole_with_done_even_if_the_body_never_ends() -> None:
    async def handler(call: Call) -> None:
        await call.events(token("x", "stop"), usage(1, 1), end=False)
        await call.closed.wait()

    async with client(handler) as it:
        answer = await it.complete(CompletionRequest(prompt="hi"))
    assert answer.text == "x"
    assert answer.duration_s < 0.9  # the second it waited for the end is not the engine's


# Silence


async def test_a_server_that_hangs_at_accept_is_a_timeout_of_the_first_token() -> None:
    async def handler(call: Call) -> None:
        await call.closed.wait()

    error = await failure(handler, timeouts=Timeouts(first_token=SHORT))
    assert verdict(error) == ("timeout_first_token", True, True)


async def test_a_server_that_hangs_after_its_headers_is_a_timeout_of_the_first_token() -> None:
    async def handler(call: Call) -> None:
        await call.send(STREAM_HEAD)
        await call.closed.wait()

    error = await failure(handler, timeouts=Timeouts(first_token=SHORT))
    assert verdict(error) == ("timeout_first_token", True, True)


async def test_silence_in_mid_stream_is_a_timeout_between_tokens() -> None:
    async def handler(call: Call) -> None:
        await call.events(token("x"), done=False, end=False)
        await call.closed.wait()

    error = await failure(handler, timeouts=Timeouts(between_tokens=SHORT))
    assert verdict(error) == ("timeout_between_tokens", True, True)


async def test_an_endless_stream_ends_with_the_total_timeout_and_is_nobodys_fault() -> None:
    async def handler(call: Call) -> None:
        await call.send(STREAM_HEAD)
        while not call.writer.is_closing():
            await call.send(chunk(sse(token("x"))))
            await asyncio.sleep(0.01)

    error = await failure(handler, timeouts=Timeouts(total=2 * SHORT))
    assert verdict(error) == ("timeout_total", True, False)


async def test_nobody_listening_is_connect() -> None:
    async with engine(None) as url:  # type: ignore[arg-type]
        gone = url
    it = EngineClient(gone)
    with pytest.raises(EngineError) as caught:
        await it.complete(CompletionRequest(prompt="hi"))
    assert verdict(caught.value) == ("connect", True, True)
    assert not await it.alive()
    await it.aclose()


async def test_a_connection_that_takes_too_long_is_timeout_connect() -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        assert request.extensions["timeout"]["connect"] == 1.5
        raise httpx.ConnectTimeout("")

    it = EngineClient("http://e:1", transport=httpx.MockTransport(slow), timeouts=Timeouts(connect=1.5))
    with pytest.raises(EngineError) as caught:
        await it.complete(CompletionRequest(prompt="hi"))
    assert verdict(caught.value) == ("timeout_connect", True, True)


async def test_cancelling_closes_the_connection() -> None:
    started, seen = asyncio.Event(), asyncio.Event()

    async def handler(call: Call) -> None:
        await call.events(token("x"), done=False, end=False)
        started.set()
        await call.closed.wait()
        seen.set()

    async with client(handler) as it:
        work = asyncio.create_task(it.complete(CompletionRequest(prompt="hi")))
        await started.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await asyncio.wait_for(seen.wait(), 5)


async def test_cancelling_before_the_first_byte_closes_the_connection_too() -> None:
    started, seen = asyncio.Event(), asyncio.Event()

    async def handler(call: Call) -> None:
        started.set()
        await call.closed.wait()
        seen.set()

    async with client(handler) as it:
        work = asyncio.create_task(it.complete(CompletionRequest(prompt="hi")))
        await started.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await asyncio.wait_for(seen.wait(), 5)


async def test_one_hanging_engine_does_not_hold_up_another() -> None:
    async def hangs(call: Call) -> None:
        await call.closed.wait()

    async def answers(call: Call) -> None:
        await call.events(token("x", "stop"), usage(1, 1))

    async with client(hangs) as bad, client(answers) as good:
        stuck = [asyncio.create_task(bad.complete(CompletionRequest(prompt="hi"))) for _ in range(200)]
        async with asyncio.timeout(10):
            await asyncio.gather(*(good.complete(CompletionRequest(prompt="hi")) for _ in range(200)))
        assert not any(task.done() for task in stuck)
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)


async def test_closing_the_client_fails_what_still_runs() -> None:
    started = asyncio.Event()

    async def handler(call: Call) -> None:
        await call.events(token("x"), done=False, end=False)
        started.set()
        await call.closed.wait()

    async with client(handler) as it:
        work = asyncio.create_task(it.complete(CompletionRequest(prompt="hi")))
        await started.wait()
        await it.aclose()
        with pytest.raises(EngineError) as caught:
            await work
    assert caught.value.reason == "broken_stream"


# Nonsense


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"how do you do?\r\n\r\n", "bad_response"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi", "bad_response"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}", "bad_response"),
        (b"HTTP/1.1 307 Go\r\nlocation: http://other\r\ncontent-length: 0\r\n\r\n", "bad_response"),
        (STREAM_HEAD + chunk(sse(b'{"choices": [')), "bad_response"),
        (STREAM_HEAD + chunk(sse(b"garbage")), "bad_response"),
        (STREAM_HEAD + chunk(sse(b"[]")), "bad_response"),
        (STREAM_HEAD + chunk(sse({})), "bad_response"),
        (STREAM_HEAD + chunk(sse({"choices": "x"})), "bad_response"),
        (STREAM_HEAD + chunk(sse({"choices": [{"index": 0}]})), "bad_response"),
        (STREAM_HEAD + chunk(sse({"choices": [{"text": 7}]})), "bad_response"),
        (STREAM_HEAD + chunk(b"data: " + b"x" * (5 << 20)), "bad_response"),
        (STREAM_HEAD + b"zz\r\n", "bad_response"),
        (STREAM_HEAD + chunk(sse(token("x"))), "broken_stream"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/ev", "broken_stream"),
        (b"", "broken_stream"),
    ],
)
async def test_nonsense_and_broken_connections_have_a_reason(answer: bytes, reason: str) -> None:
    async def handler(call: Call) -> None:
        await call.send(answer)
        call.writer.close()

    assert verdict(await failure(handler)) == (reason, True, True)


@pytest.mark.parametrize(
    ("events", "done"),
    [
        ([token("x", "stop"), usage(1, 1)], False),
        ([token("x", "stop")], True),
        ([token("x"), usage(1, 1)], True),
        ([usage(1, 0)], True),
        ([], True),
        ([token("x", "abort"), usage(1, 1)], True),
        ([token("x", "stop"), {"choices": [], "usage": {"prompt_tokens": 3}}], True),
    ],
    ids=["no [DONE]", "no usage", "no finish", "no choice", "nothing", "aborted", "half usage"],
)
async def test_a_stream_that_ends_incomplete_is_broken(events: list[object], done: bool) -> None:
    async def handler(call: Call) -> None:
        await call.events(*events, done=done)

    assert verdict(await failure(handler)) == ("broken_stream", True, True)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"message": "EngineCore died", "type": "InternalServerError", "code": 500}, ("http_500", True, True)),
        ({"message": "EngineCore died"}, ("http_500", True, True)),
        ("EngineCore died", ("http_500", True, True)),
        ({"message": "bad", "code": 400}, ("http_400", False, False)),
    ],
)
async def test_an_error_event_in_the_stream_is_an_error(error: object, expected: tuple[str, bool, bool]) -> None:
    async def handler(call: Call) -> None:
        await call.events(token("x"), {"error": error})

    assert verdict(await failure(handler)) == expected


# Refusals


@pytest.mark.parametrize(
    ("status", "retryable", "fault"),
    [
        (400, False, False),
        (401, True, True),
        (404, True, True),
        (422, False, False),
        (429, True, False),
        (500, True, True),
        (502, True, True),
        (503, True, True),
    ],
)
async def test_a_status_says_whether_to_retry_and_whose_fault_it_is(status: int, retryable: bool, fault: bool) -> None:
    async def handler(call: Call) -> None:
        await call.json(status, {"error": {"message": "no, thanks", "code": status}})

    error = await failure(handler)
    assert verdict(error) == (f"http_{status}", retryable, fault)
    assert "no, thanks" in str(error)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("0.5", 0.5, 0.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 2999 07:28:00 GMT", 1e9, 1e11),
    ],
)
async def test_retry_after_is_handed_on_in_seconds(value: str, low: float, high: float) -> None:
    async def handler(call: Call) -> None:
        await call.json(429, {"error": {"message": "busy"}}, retry_after=value)

    error = await failure(handler)
    assert error.retry_after is not None
    assert low <= error.retry_after <= high


async def test_an_unreadable_retry_after_is_none() -> None:
    async def handler(call: Call) -> None:
        await call.json(503, b"<html>upstream down</html>", retry_after="soon")

    error = await failure(handler)
    assert error.retry_after is None
    assert "upstream down" in str(error)


@pytest.mark.parametrize(
    "message",
    [
        # vLLM 0.32: renderers/params.py (tokens, then text), serve/utils/api_utils.py, v1/engine/input_processor.py
        "This model's maximum context length is 2048 tokens. However, your prompt contains 3000 input tokens, which "
        "exceeds this limit even without any output tokens. Please reduce the length of the input prompt.",
        "Input length (3000) exceeds model's maximum context length (2048).",
        "The decoder prompt (length 3000) is longer than the maximum model length of 2048. Make sure that …",
        "max_tokens=5000 cannot be greater than max_model_len=2048. Please request fewer output tokens.",
        # It lowers max_tokens to what fits before it looks at it and at min_tokens.
        "min_tokens must be less than or equal to max_tokens=48, got 100.",
        "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
    ],
)
async def test_a_prompt_too_long_for_the_context_is_recognised(message: str) -> None:
    async def handler(call: Call) -> None:
        await call.json(400, {"error": {"message": message, "type": "BadRequestError", "code": 400}})

    error = await failure(handler)
    assert verdict(error) == ("context_too_long", False, False)
    assert message[:30] in str(error)


# Discovery and health


def vllm(*, priority: bool = True, info: dict[str, Any] | None = None, seen: list[Call] | None = None) -> Handler:
    """A well-behaved vLLM; `info` is its `/server_info`, without which the path does not exist."""

    async def handler(call: Call) -> None:
        if seen is not None:
            seen.append(call)
        match call.path.partition("?")[0]:
            case "/v1/models":
                await call.json(200, {"object": "list", "data": [{"id": "tiny", "max_model_len": 2048}]})
            case "/version":
                await call.json(200, {"version": "0.32.0"})
            case "/server_info" if info is not None:
                await call.json(200, info)
            case "/v1/completions" if priority or not call.body.get("priority"):
                await call.events(token("x", "length"), usage(1, 1))
            case "/v1/completions":
                await call.json(400, {"error": {"message": "Got priority -1 but Priority scheduling is not enabled."}})
            case _:
                await call.json(404, {"detail": "Not Found"})

    return handler


@pytest.mark.parametrize("takes", [True, False])
async def test_discovery_probes_priority_with_one_token(takes: bool) -> None:
    seen: list[Call] = []
    async with client(vllm(priority=takes, seen=seen)) as it:
        told = await it.discover()
        assert (told.models, told.max_model_len, told.slots, told.priority, told.version) == (
            ("tiny",),
            2048,
            None,
            takes,
            "0.32.0",
        )
        assert (it.model, it.priority) == ("tiny", takes)
    probes = [call.body for call in seen if call.method == "POST"]
    assert [(body["model"], body["max_tokens"], body["priority"]) for body in probes] == [("tiny", 1, -1)]


async def test_discovery_believes_a_server_that_tells_its_scheduler() -> None:
    seen: list[Call] = []
    info = {"vllm_config": {"scheduler_config": {"max_num_seqs": 8, "policy": "fcfs"}}}
    async with client(vllm(info=info, seen=seen), model="mine") as it:
        told = await it.discover()
        assert (told.slots, told.priority, it.model) == (8, False, "mine")
    assert all(call.method == "GET" for call in seen)


@pytest.mark.parametrize("document", [{}, {"data": []}, {"data": "x"}, b"nonsense", []])
async def test_discovery_refuses_a_server_without_models(document: object) -> None:
    async def handler(call: Call) -> None:
        await call.json(200, document)

    async with client(handler) as it:
        with pytest.raises(EngineError) as caught:
            await it.discover()
    assert verdict(caught.value) == ("bad_response", True, True)


async def test_discovery_of_a_hanging_server_ends() -> None:
    async def handler(call: Call) -> None:
        await call.closed.wait()

    async with client(handler) as it:
        with pytest.raises(EngineError) as caught:
            await it.discover(timeout=SHORT)
        assert caught.value.reason == "timeout_total"
        assert not await it.alive(timeout=SHORT)


@pytest.mark.parametrize(("status", "alive"), [(200, True), (404, True), (500, False), (503, False)])
async def test_alive_asks_the_health_check(status: int, alive: bool) -> None:
    async def handler(call: Call) -> None:
        assert call.path == "/health"
        await call.json(status, {})

    async with client(handler) as it:
        assert await it.alive() is alive


# Bad input


def test_a_request_needs_a_prompt_or_messages() -> None:
    with pytest.raises(InvalidInput, match="either a prompt or messages"):
        CompletionRequest()
    with pytest.raises(InvalidInput, match="either a prompt or messages"):
        CompletionRequest(prompt="x", messages=[])
    with pytest.raises(InvalidInput, match="printable ASCII"):
        CompletionRequest(prompt="x", request_id="a\nb")


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://[", "http://a:b"])
def test_a_bad_url_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(InvalidSetting, match="engine URL"):
        EngineClient(url)


@pytest.mark.parametrize("url", ["http://e:8000", "http://e:8000/", "http://e:8000/v1", "http://e:8000/v1/"])
def test_a_trailing_v1_makes_no_difference(url: str) -> None:
    assert EngineClient(url).url == "http://e:8000"

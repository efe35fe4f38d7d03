"""Tools that live elsewhere: what goes over the wire, and every way in which a server can fail one."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from aiohttp import web

from llmsched.errors import InvalidSetting
from llmsched.runtime.tools.handlers import HandlerRegistry, HttpTool, TaskContext, build_registry, echo
from llmsched.runtime.tools.http_tools import HttpTools
from llmsched.runtime.tools.workers import InlineWorkers, ProcessWorkers, WorkerError, WorkerPool, WorkerTask
from tests.integration.service import in_process_service
from tests.integration.sites import Handle, serving, speaking

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def task(timeout: float = 60.0, handler: str = "weather", **arguments: Any) -> WorkerTask:
    context = TaskContext("job_1", "forecast é\n", 2, 3, "job_1/forecast é\n/2")
    return WorkerTask(handler, arguments, timeout, context)


OSLO = task(city="Oslo")


class Waits(list[float]):
    """The waits a client was asked for, none of which it waited."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def waits() -> Waits:
    return Waits()


Call = Callable[..., Awaitable[object]]


@pytest_asyncio.fixture(params=[InlineWorkers, ProcessWorkers])
async def call(request: pytest.FixtureRequest, waits: Waits) -> AsyncIterator[Call]:
    """Calls a tool at a URL once, through a pool of either kind with one slot: `call(url, task, **settings)`."""
    pools: list[WorkerPool] = []

    async def call(url: str, task: WorkerTask = OSLO, **settings: Any) -> object:
        registry = build_registry(installed=False, tools=[HttpTool("weather", url, **settings)])
        pools.append(request.param(registry, 1, tools=HttpTools(sleep=waits)))
        await pools[-1].start()
        return await pools[-1].run(task)

    yield call
    for pool in pools:
        await pool.close(0.0)


async def failure(running: Awaitable[object]) -> tuple[str, bool, str]:
    """Reason, retryable and message of the WorkerError that `running` must raise."""
    with pytest.raises(WorkerError) as caught:
        await running
    return caught.value.reason, caught.value.retryable, str(caught.value)


def answering(*answers: web.Response | Callable[[], web.Response]) -> tuple[Handle, list[web.Request]]:
    """Gives these answers in turn, the last one for ever, and keeps the requests."""
    seen: list[web.Request] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        seen.append(request)
        answer = answers[min(len(seen), len(answers)) - 1]
        return answer() if callable(answer) else answer

    return handle, seen


def status(code: int, text: str = "", **headers: str) -> Callable[[], web.Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: web.Response(status=code, text=text, headers=named)


# ------------------------------------------------------------------------------------------------- on the wire


async def test_arguments_go_out_as_json_and_the_answer_is_the_result(call: Call) -> None:
    got: list[Any] = []

    async def handle(request: web.Request) -> web.Response:
        got.append((request.method, request.path_qs, dict(request.headers), await request.text()))
        return web.json_response({"degrees": -3.5, "words": ["kald", "☃"]})

    async with serving(handle) as url:
        result = await call(f"{url}/weather?units=C", task(city="Tromsø"), headers={"X-Team": "a"})
    assert result == {"degrees": -3.5, "words": ["kald", "☃"]}
    ((method, path, headers, body),) = got
    assert (method, path, body) == ("POST", "/weather?units=C", '{"city":"Tromsø"}')
    assert headers.pop("User-Agent").startswith("llmsched/")
    assert headers == {
        "Host": url.removeprefix("http://"),
        "Accept": "application/json, text/*",
        "Accept-Encoding": "gzip",
        "Content-Length": "18",
        "Content-Type": "application/json",
        "Idempotency-Key": "job_1/forecast %C3%A9%0A/2",
        "X-Team": "a",
        "x-llmsched-job": "job_1",
        "x-llmsched-stage": "forecast %C3%A9%0A",
        "x-llmsched-attempt": "3",
    }


async def test_the_request_in_the_documentation_is_what_goes_out() -> None:
    page = (Path(__file__).parents[2] / "docs/handlers.md").read_text()
    asked, answer = re.findall(r"```http\n(.*?)```", page, re.DOTALL)
    got = b""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        got = await reader.readuntil(b"}")
        writer.write(answer.strip().replace("\n", "\r\n").encode())
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        context = TaskContext("job_1", "forecast", 0, 1, "job_1/forecast/0")
        tools = HttpTools()
        tool = HttpTool("weather", f"http://{host}/weather")
        result = await tools.call(tool, WorkerTask("weather", {"city": "Oslo", "days": 3}, 60.0, context))
        await tools.close()
    assert result == {"degrees": [3, 5, -1]}
    assert set(asked.replace("tools:9000", host).splitlines()) <= set(got.decode().splitlines())


async def test_get_sends_arguments_as_a_query(call: Call) -> None:
    handle, seen = answering(status(200, "fine"))
    arguments = {"city": "Æ & ø", "days": 3, "exact": True, "near": None, "tags": ["a", {"b": 1}], "more": {"c": "d"}}
    async with serving(handle) as url:
        assert await call(f"{url}/w?units=C", task(**arguments), method="GET") == "fine"
    assert (seen[0].method, seen[0].content_length, list(seen[0].query.items())) == (
        "GET",
        None,
        [
            ("units", "C"),
            ("city", "Æ & ø"),
            ("days", "3"),
            ("exact", "true"),
            ("tags", "a"),
            ("tags", '{"b":1}'),
            ("more", '{"c":"d"}'),
        ],
    )


@pytest.mark.parametrize(
    ("body", "headers", "result"),
    [
        (b'"text"', {"Content-Type": "application/json"}, "text"),
        (b"[1, 2]", {"Content-Type": "application/geo+json; charset=utf-8"}, [1, 2]),
        (b'{"a": 1}', {"Content-Type": "text/plain"}, '{"a": 1}'),
        ("Bär".encode("latin-1"), {"Content-Type": "text/html; charset=iso-8859-1"}, "Bär"),
        (b"", {"Content-Type": "application/json"}, None),
        (
            gzip.compress(b'{"a": 1}', mtime=0),
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            {"a": 1},
        ),
    ],
    ids=["json", "a kind of json", "text", "latin text", "nothing", "packed"],
)
async def test_what_an_answer_means(call: Call, body: bytes, headers: dict[str, str], result: object) -> None:
    handle, _ = answering(lambda: web.Response(body=body, headers=headers))
    async with serving(handle) as url:
        assert await call(url) == result


async def test_no_content_is_null(call: Call) -> None:
    handle, _ = answering(status(204))
    async with serving(handle) as url:
        assert await call(url) is None


# ---------------------------------------------------------------------------------------------- further requests


async def test_passing_troubles_are_tried_again_within_the_call(call: Call, waits: Waits) -> None:
    handle, seen = answering(status(503, Retry_After="1.5"), status(500), lambda: web.json_response("done"))
    async with serving(handle) as url:
        assert await call(url) == "done"
    assert waits == [1.5, 0.4]
    assert {request.headers["Idempotency-Key"] for request in seen} == {"job_1/forecast %C3%A9%0A/2"}


async def test_a_lost_connection_is_tried_again(call: Call, waits: Waits) -> None:
    async with speaking(b"") as url:
        reason, retryable, message = await failure(call(url, retries=3))
    assert (reason, retryable, waits) == ("connect", True, [0.2, 0.4, 0.8])
    assert message == f"tool 'weather' at {url} cannot be called: ServerDisconnectedError: Server disconnected"


@pytest.mark.parametrize(
    ("code", "headers", "again", "retryable"),
    [
        (500, {}, 2, True),
        (503, {}, 2, True),
        (429, {}, 2, True),
        (429, {"Retry_After": "3600"}, 0, True),
        (503, {"Retry_After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 0, True),
        (503, {"Retry_After": "soon"}, 2, True),
        (408, {}, 0, True),
        (400, {}, 0, False),
        (401, {}, 0, False),
        (404, {}, 0, False),
        (422, {}, 0, False),
    ],
)
async def test_a_status_says_whether_to_try_again(
    call: Call, waits: Waits, code: int, headers: dict[str, str], again: int, retryable: bool
) -> None:
    handle, seen = answering(status(code, "no  such\ncity", **headers))
    async with serving(handle) as url:
        error = await failure(call(url))
    assert error == (f"http_{code}", retryable, f"tool 'weather' answered {code}: no such city")
    assert (len(seen), waits) == (1 + again, [0.2, 0.4][:again])


async def test_how_long_a_tool_asks_to_wait_is_kept(call: Call) -> None:
    handle, _ = answering(status(429, Retry_After="60"))
    async with serving(handle) as url:
        with pytest.raises(WorkerError) as caught:
            await call(url)
    assert caught.value.retry_after == 60.0


async def test_redirects_are_not_followed(call: Call) -> None:
    handle, seen = answering(status(302, Location="http://169.254.169.254/"))
    async with serving(handle) as url:
        error = await failure(call(url))
    assert error == (
        "http_302",
        False,
        "tool 'weather' redirects to 'http://169.254.169.254/'; put that URL into its settings",
    )
    assert len(seen) == 1


# ------------------------------------------------------------------------------------------------------ failures


async def test_a_tool_that_never_answers_is_given_up(call: Call, waits: Waits) -> None:
    async def handle(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    async with serving(handle) as url:
        error = await failure(call(url, timeout=0.05))
    assert error == ("timeout", True, "tool 'weather' did not answer within 0.05 s")
    assert waits == []


async def test_a_tool_that_never_ends_is_given_up(call: Call) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.005)

    async with serving(handle) as url:
        assert (await failure(call(url, timeout=0.1)))[:2] == ("timeout", True)


async def test_the_timeout_of_the_stage_counts_all_requests(call: Call) -> None:
    async def handle(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    async with serving(handle) as url:
        error = await failure(call(url, task(timeout=0.05, city="Oslo")))
    assert error == ("timeout", True, "handler 'weather' ran longer than its 0.05 s")


async def test_an_answer_may_be_as_large_as_allowed_and_no_larger(call: Call) -> None:
    handle, _ = answering(status(200, "x" * 5_000_000))
    async with serving(handle) as url:
        assert await call(url, max_bytes=5_000_000) == "x" * 5_000_000
        error = await failure(call(url))
    assert error == (
        "too_large",
        False,
        "the answer of tool 'weather' has more than 1000000 bytes; raise its max_bytes",
    )


async def test_a_bomb_does_not_go_off(call: Call) -> None:
    bomb = gzip.compress(b"\0" * (1 << 20), 9) * 512
    headers = {"Content-Type": "text/plain", "Content-Encoding": "gzip"}
    handle, _ = answering(lambda: web.Response(body=bomb, headers=headers))
    async with serving(handle) as url:
        assert (await failure(call(url)))[:2] == ("too_large", False)


@pytest.mark.parametrize(
    ("body", "headers", "why"),
    [
        (b"<html>", {"Content-Type": "application/json"}, "it begins with b'<html>'"),
        (b"NaN", {"Content-Type": "application/json"}, "it begins with b'NaN'"),
        (b"\xff\xfe", {"Content-Type": "application/json"}, r"it begins with b'\xff\xfe'"),
        (b"[" * 100_000, {"Content-Type": "application/json"}, "it begins with b'[[["),
        (b"\xff", {"Content-Type": "text/plain"}, r"it begins with b'\xff'"),
        (b"x", {"Content-Type": "text/plain; charset=klingon"}, "unknown encoding: klingon"),
        (b"x", {"Content-Type": "image/png"}, "its content type is 'image/png'; only JSON and text/… can be"),
        (b"x", {"Content-Type": "text/plain", "Content-Encoding": "br"}, "answers in encoding 'br'"),
    ],
    ids=["html", "nan", "bytes", "nest", "no utf-8", "no charset", "image", "encoding"],
)
async def test_garbage_is_no_result(call: Call, body: bytes, headers: dict[str, str], why: str) -> None:
    handle, seen = answering(lambda: web.Response(body=body, headers=headers))
    async with serving(handle) as url:
        reason, retryable, message = await failure(call(url))
    assert (reason, retryable, len(seen)) == ("bad_result", False, 1)
    assert message.startswith("the answer of tool 'weather' cannot be a result: ")
    assert why in message


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 99_999,
    ],
    ids=["garbage", "too short", "endless header"],
)
async def test_a_server_that_speaks_no_http_is_like_no_connection(call: Call, answer: bytes) -> None:
    async with speaking(answer) as url:
        assert (await failure(call(url)))[:2] == ("connect", True)


async def test_nobody_there_is_no_connection_and_no_secret_is_told(call: Call) -> None:
    error = await failure(call("http://127.0.0.1:1/w?key=sesame", headers={"Authorization": "sesame"}))
    assert error[:2] == ("connect", True)
    assert error[2].startswith("tool 'weather' at http://127.0.0.1:1/w cannot be called: ClientConnectorError: ")
    assert "sesame" not in error[2]
    assert "sesame" not in repr(HttpTool("weather", "http://a/?key=sesame", headers={"Authorization": "sesame"}))


async def test_an_error_page_without_end_is_told_in_short(call: Call) -> None:
    handle, _ = answering(status(400, "x" * 10_000_000), status(400, "y" * 60_000))
    async with serving(handle) as url:
        assert (await failure(call(url)))[2] == "tool 'weather' answered 400: nothing more"
        assert (await failure(call(url)))[2] == f"tool 'weather' answered 400: {'y' * 200}"


# -------------------------------------------------------------------------------------------------- like handlers


async def test_arguments_that_break_the_schema_are_never_sent(call: Call) -> None:
    handle, seen = answering(status(200))
    async with serving(handle) as url:
        error = await failure(call(url, task(city=7), schema=SCHEMA))
    assert error == (
        "bad_arguments",
        False,
        "arguments.city is not what handler 'weather' takes: 7 is not of type 'string'",
    )
    assert seen == []


@pytest.mark.parametrize("value", [{1}, float("nan"), "\ud800"], ids=["set", "nan", "surrogate"])
async def test_arguments_that_are_not_json_are_never_sent(call: Call, value: object) -> None:
    handle, seen = answering(status(200))
    async with serving(handle) as url:
        reason, retryable, message = await failure(call(url, task(city=value)))
    assert (reason, retryable, seen) == ("bad_arguments", False, [])
    assert message.startswith("the arguments of tool 'weather' are not JSON: ")


async def test_calls_take_slots_but_no_processes() -> None:
    running, most = 0, 0
    is_full = asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            is_full.set()
        await is_full.wait()
        await asyncio.sleep(0.01)  # for a fourth, which must not come
        running -= 1
        return web.json_response(1)

    before = psutil.Process().children()
    async with serving(handle) as url:
        pool = ProcessWorkers(build_registry(installed=False, tools=[HttpTool("weather", url)]), 3)
        await pool.start()
        assert await asyncio.gather(*(pool.run(task(city="Oslo")) for _ in range(12))) == [1] * 12
        assert psutil.Process().children() == before
        await pool.close()
    assert most == 3


async def test_cancelling_and_closing_hang_up() -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        arrived.set()
        assert await reader.read() == b""
        writer.close()
        gone.set()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        pool = InlineWorkers(build_registry(installed=False, tools=[HttpTool("weather", url)]), 1)
        await pool.start()
        running = asyncio.create_task(pool.run(task(city="Oslo")))
        await arrived.wait()
        running.cancel()
        await asyncio.wait_for(gone.wait(), 60)

        arrived.clear()
        gone.clear()
        closed = asyncio.create_task(failure(pool.run(task(city="Oslo"))))
        await arrived.wait()
        await pool.close(grace=0.0)
        assert await closed == ("worker_died", True, "the worker pool closed before the task was done")
        await asyncio.wait_for(gone.wait(), 60)


def test_a_tool_is_registered_like_a_handler() -> None:
    tool = HttpTool("weather", "http://tools/weather?key=sesame", schema=SCHEMA)
    registry = HandlerRegistry()
    assert registry.add(tool) is tool
    assert registry.add(HttpTool("weather", "http://tools/weather?key=sesame", schema=SCHEMA)) == tool
    assert (registry.get("weather"), list(registry)) == (tool, [tool])
    with pytest.raises(InvalidSetting, match=r"^two handlers are called 'weather': 'http://tools/weather' and <func"):
        registry.register("weather", echo)
    with pytest.raises(InvalidSetting, match="handler name 'a b' must match"):
        registry.add(HttpTool("a b", "http://tools/"))
    with pytest.raises(InvalidSetting, match=r"^the schema of handler 'w' is no JSON Schema: \$\.type is 'objekt'"):
        registry.add(HttpTool("w", "http://tools/", schema={"type": "objekt"}))


# ------------------------------------------------------------------------------------------------- in the service


async def test_a_job_calls_a_tool_from_its_own_pool(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        asked = await request.json()
        return web.json_response({"city": asked["city"], "degrees": 7})

    template = {
        "stages": [
            {
                "name": "look",
                "kind": "regular",
                "pool": "http",
                "handler": "weather",
                "for_each": "input.cities",
                "max_tasks": 5,
                "arguments": {"city": "{{ item }}"},
            }
        ],
        "result": "stages.look",
    }
    async with (
        serving(handle) as url,
        in_process_service(
            tmp_path,
            emulate=0,
            worker_pools={"http": 50},
            tools={"weather": {"url": url, "schema": SCHEMA, "description": "Weather of a city."}},
        ) as service,
    ):
        assert (await service.put("/v1/applications/forecast", json=template)).status_code == 200
        job = await service.submit(application="forecast", input={"cities": ["Oslo", "Bergen", "Oslo"]})
        done = await service.finished(job["id"])
        refused = await service.submit(application="forecast", input={"cities": ["", "{{ 7 }}", 7]})
        failed = await service.finished(refused["id"])
        listed = (await service.get("/v1/handlers")).json()["items"]
    assert done["status"] == "completed"
    assert done["result"] == [{"city": city, "degrees": 7} for city in ("Oslo", "Bergen", "Oslo")]
    assert failed["status"] == "failed"
    assert "bad_arguments: arguments.city is not what handler 'weather' takes: 7 is not of type" in failed["error"]
    assert [item["name"] for item in listed] == sorted(item["name"] for item in listed)
    assert [item for item in listed if item["name"] in ("echo", "weather")] == [
        {"name": "echo", "kind": "python", "description": "Returns its arguments.", "schema": {"type": "object"}},
        {"name": "weather", "kind": "http", "description": "Weather of a city.", "schema": SCHEMA},
    ]

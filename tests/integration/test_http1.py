"""Our own HTTP client against a server that says exactly what the test wants (its errors: test_engine_client.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from llmsched.runtime import http1

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
HI = OK + b"content-length: 2\r\n\r\nhi"


@asynccontextmanager
async def client(handler: Handler, *, keep_alive: float = 5.0, path: str = "") -> AsyncIterator[http1.Client]:
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    it = http1.Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{path}", keep_alive=keep_alive)
    try:
        yield it
    finally:
        await it.aclose()
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def request_of(reader: asyncio.StreamReader) -> bytes:
    """Head of the next request, its body left out."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line.partition(b":")[2]))
    return head


def repeating(answer: bytes, heads: list[tuple[int, bytes]] | None = None) -> Handler:
    """Answers every request alike and notes (number of the connection, head)."""
    count = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        number = count
        while True:
            head = await request_of(reader)
            if heads is not None:
                heads.append((number, head))
            writer.write(answer)

    return handler


async def body_of(answer: http1.Answer) -> bytes:
    try:
        return b"".join([chunk async for chunk in answer.stream])
    finally:
        await answer.aclose()


async def ask(it: http1.Client, body: bytes = b"{}") -> bytes:
    return await body_of(await it.request("POST", "/v1/x?y=1", {"a": "b"}, body, connect_timeout=5.0))


async def test_a_request_says_what_it_has_to_and_its_answer_is_read() -> None:
    heads: list[tuple[int, bytes]] = []
    async with client(repeating(HI, heads), path="/base") as it:
        answer = await it.request("POST", "/v1/x?y=1", {"a": "b"}, b"{}", connect_timeout=5.0)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain")
        assert await body_of(answer) == b"hi"
    lines = heads[0][1].split(b"\r\n")
    assert lines[0] == b"POST /base/v1/x?y=1 HTTP/1.1"
    assert lines[1].startswith(b"host: 127.0.0.1:")
    assert lines[2:] == [b"a: b", b"content-length: 2", b"", b""]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (HI, b"hi"),
        (OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n", b"hi!"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HI, b"hi"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
    ids=["of a length", "in chunks", "after a continue", "without a body"],
)
async def test_a_connection_serves_one_request_after_another(answer: bytes, expected: bytes) -> None:
    heads: list[tuple[int, bytes]] = []
    async with client(repeating(answer, heads)) as it:
        assert [await ask(it) for _ in range(3)] == [expected] * 3
    assert [number for number, _ in heads] == [1, 1, 1]


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(OK + b"\r\nall there is")

    async with client(handler) as it:
        assert [await ask(it), await ask(it)] == [b"all there is"] * 2


@pytest.mark.parametrize(
    "answer",
    [OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi", HI + b"HTTP/1.1 200 OK\r\n", HI + HI],
    ids=["it is to be closed", "half another answer", "another answer"],
)
async def test_a_connection_that_cannot_be_trusted_is_not_used_again(answer: bytes) -> None:
    heads: list[tuple[int, bytes]] = []
    async with client(repeating(answer, heads)) as it:
        assert [await ask(it), await ask(it)] == [b"hi"] * 2
    assert [number for number, _ in heads] == [1, 2]


async def test_a_connection_that_was_idle_for_long_is_closed() -> None:
    closed = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(HI)
        assert await reader.read() == b""
        closed.set()

    async with client(handler, keep_alive=0.02) as it:
        assert await ask(it) == b"hi"
        await asyncio.wait_for(closed.wait(), 5)


async def test_a_slow_reader_stops_the_server_from_sending() -> None:
    sent = 0
    is_full = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request_of(reader)
        writer.write(OK + b"\r\n")
        for _ in range(64):
            writer.write(b"x" * (1 << 20))
            sent += 1
            try:
                await asyncio.wait_for(writer.drain(), 0.5)
            except TimeoutError:
                is_full.set()
                await writer.drain()

    async with client(handler) as it:
        answer = await it.request("GET", "/", {}, connect_timeout=5.0)
        await asyncio.wait_for(is_full.wait(), 10)
        assert sent < 64
        assert len(await body_of(answer)) == 64 << 20


async def test_leaving_in_the_middle_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(OK + b"content-length: 4\r\n\r\nhi")
        assert await reader.read() == b""
        gone.set()

    async with client(handler) as it:
        answer = await it.request("GET", "/", {}, connect_timeout=5.0)
        assert await anext(answer.stream) == b"hi"
        await answer.aclose()
        await asyncio.wait_for(gone.wait(), 5)


async def test_a_head_without_end_is_refused() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(OK + b"x: " + b"y" * (2 * http1.LONGEST_HEAD))
        await reader.read()

    async with client(handler) as it:
        with pytest.raises(httpx.RemoteProtocolError, match="a head of more than 65536 bytes"):
            await ask(it)


async def test_nobody_there_is_a_connect_error() -> None:
    async with client(repeating(HI)) as it:
        pass
    with pytest.raises(httpx.ConnectError):
        await ask(it)


@pytest.mark.parametrize(
    ("url", "is_plain"),
    [
        ("http://h:1", True),
        ("http://[::1]:8000/base", True),
        ("https://h", False),
        ("http://user:word@h", False),
        ("http://hüh", False),
    ],
)
def test_what_needs_more_than_this_is_left_to_others(url: str, is_plain: bool) -> None:
    assert http1.can_reach(url) is is_plain

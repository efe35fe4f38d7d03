"""A client of HTTP/1.1 for calls to engines: what a call costs here is what the service adds to it.

One connection carries one request at a time and is kept for the next one. There are no redirects, cookies, proxies,
retries, compression or limits, and no TLS. httptools parses. A call takes 60 µs of the processor, one through aiohttp
150, and through httpx on top of that 200: more than all else that happens to a call between its client and its engine.

What goes wrong is told in httpx's errors, which its transports raise too: ConnectError, ConnectTimeout, ReadError (the
connection broke), RemoteProtocolError (no HTTP).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import cast
from urllib.parse import urlsplit

import httptools
import httpx

#: Bytes of an answer that wait to be read, after which no more is taken from the connection.
MOST_WAITING = 256 << 10
#: Bytes of a head, beyond which a server is taken for mad.
LONGEST_HEAD = 64 << 10


class Answer:
    """An answer whose body is still to be read: iterate over `stream`, and `aclose` in any case."""

    def __init__(self, connection: _Connection) -> None:
        self.status_code = connection.status
        self.headers: Mapping[str, str] = connection.headers
        self._connection = connection

    @property
    def stream(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises ReadError or RemoteProtocolError."""
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if chunk := await self._connection.read():
            return chunk
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Lets the next request have the connection if all of the body was read, closes it otherwise."""
        self._connection.leave()


class Client:
    """Connections to the server of one URL. keep_alive: seconds that an idle one is kept."""

    def __init__(self, url: str, *, keep_alive: float) -> None:
        parts = urlsplit(url)
        assert can_reach(url), url
        self._host, self._port = str(parts.hostname), parts.port or 80
        self._prefix = parts.path
        self._name = parts.netloc
        self._keep_alive = keep_alive
        #: Idle connections and the moments they became so, the last one last.
        self._idle: deque[tuple[float, _Connection]] = deque()
        self._busy: set[_Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"", *, connect_timeout: float
    ) -> Answer:
        """The answer to a request, as soon as its head is there. path: behind the path of the URL.

        On cancellation the connection is closed.
        """
        head = [f"{method} {self._prefix}{path} HTTP/1.1\r\nhost: {self._name}\r\n"]
        head += [f"{name}: {value}\r\n" for name, value in headers.items()]
        if body:
            head.append(f"content-length: {len(body)}\r\n")
        connection = self._reusable() or await self._connected(connect_timeout)
        self._busy.add(connection)
        try:
            await connection.ask("".join(head).encode("latin-1") + b"\r\n" + body)
        except BaseException:
            connection.leave()
            raise
        return Answer(connection)

    async def aclose(self) -> None:
        """Closes every connection; requests still running fail."""
        for connection in [*self._busy, *(connection for _, connection in self._idle)]:
            connection.abort()
        self._idle.clear()
        if self._sweeping is not None:
            self._sweeping.cancel()

    def left(self, connection: _Connection, *, is_reusable: bool) -> None:
        """A connection has done its work, or is lost."""
        self._busy.discard(connection)
        if is_reusable:
            loop = asyncio.get_running_loop()
            self._idle.append((loop.time(), connection))
            if self._sweeping is None:
                self._sweeping = loop.call_later(self._keep_alive, self._sweep)

    async def _connected(self, timeout: float) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                _, connection = await loop.create_connection(lambda: _Connection(self), self._host, self._port)
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {timeout:g} s") from None
        except OSError as error:
            raise httpx.ConnectError(str(error)) from None
        return connection

    def _reusable(self) -> _Connection | None:
        """The connection that was used last: the others may get old."""
        oldest = asyncio.get_running_loop().time() - self._keep_alive
        while self._idle:
            since, connection = self._idle.pop()
            if since > oldest and connection.is_open:
                return connection
            connection.abort()
        return None

    def _sweep(self) -> None:
        self._sweeping = None
        loop = asyncio.get_running_loop()
        while self._idle and (self._idle[0][0] <= loop.time() - self._keep_alive or not self._idle[0][1].is_open):
            self._idle.popleft()[1].abort()
        if self._idle:
            due = self._idle[0][0] + self._keep_alive
            self._sweeping = loop.call_at(max(due, loop.time() + 0.01), self._sweep)


def can_reach(url: str) -> bool:
    """Whether a URL is one of the plain kind that this client speaks to."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.username is None and url.isascii() and url.isprintable() and " " not in url


class _Connection(asyncio.Protocol):
    """One connection, and the answer that comes on it."""

    def __init__(self, client: Client) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_open = False
        self._client = client
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser
        #: A request was sent whose answer was not read to its end.
        self._is_asked = False
        #: The head of the answer is here; all of it is.
        self._has_head = self._is_whole = False
        #: The server will take another request on it.
        self._is_kept = False
        self._head_size = 0
        self._error: httpx.TransportError | None = None
        self._waiting: list[bytes] = []
        self._size = 0
        self._is_paused = False
        #: Who waits for more of the answer.
        self._reader: asyncio.Future[None] | None = None

    async def ask(self, request: bytes) -> None:
        """Sends a request; returns with the head of its answer. Raises ReadError or RemoteProtocolError."""
        self.status, self.headers = 0, {}
        self._has_head = self._is_whole = False
        self._head_size = 0
        self._is_asked = True
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)
        while not self._has_head:
            await self._more()

    async def read(self) -> bytes:
        """More of the body; empty at its end. Raises ReadError or RemoteProtocolError."""
        while not self._waiting:
            if self._is_whole:
                return b""
            await self._more()
        chunk = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
        self._waiting, self._size = [], 0
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        return chunk

    def leave(self) -> None:
        """Nobody reads on."""
        is_reusable = self.is_open and self._is_whole and not self._waiting and self._is_kept
        self._is_asked = False
        self._client.left(self, is_reusable=is_reusable)
        if not is_reusable:
            self.abort()

    def abort(self) -> None:
        self.is_open = False
        self._transport.abort()

    async def _more(self) -> None:
        """Waits for more of the answer. Raises what ended it."""
        if self._error is not None:
            raise self._error
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # ------------------------------------------------------------------------------------ of the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        if not self._is_asked or self._is_whole:  # nobody asked for this
            self.abort()
            return
        if not self._has_head:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
            if not self._has_head and self._head_size > LONGEST_HEAD:
                raise httptools.HttpParserError(f"a head of more than {LONGEST_HEAD} bytes")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._error = httpx.RemoteProtocolError(" ".join(str(error).split()))
            self._wake()
            self.abort()
            return
        if self._size > MOST_WAITING and not self._is_paused and self.is_open:
            self._is_paused = True
            self._transport.pause_reading()
        if self._has_head:
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._is_asked and not self._is_whole and self._error is None:
            if self._has_head and self._ends_with_connection() and error is None:
                self._is_whole = True
            else:
                self._error = httpx.ReadError(str(error or "it was closed in the middle of an answer"))
        self._wake()

    def _ends_with_connection(self) -> bool:
        return "content-length" not in self.headers and "transfer-encoding" not in self.headers

    # ---------------------------------------------------------------------------------------- of the parser

    def on_message_begin(self) -> None:
        if self._is_whole:
            raise ValueError("two answers to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200
        if not self._has_head:  # "100 Continue" and the like: the answer is still to come
            self.headers = {}

    def on_body(self, body: bytes) -> None:
        self._waiting.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        self._is_whole = self._has_head
        self._is_kept = self._parser.should_keep_alive()

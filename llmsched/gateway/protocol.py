"""HTTP as uvicorn speaks it, with the head of an answer and the beginning of its body in one packet.

Uvicorn writes them one after the other: two calls of the system, and a client that is woken twice for one answer.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD = b"HTTP/1.1 "


class Protocol(HttpToolsProtocol):
    """For uvicorn's setting `http`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        held = HeldHeads(cast("asyncio.Transport", transport))
        super().connection_made(cast("asyncio.Transport", held))


class HeldHeads:
    """A transport that sends a head with what follows it, or in the next round of the event loop if nothing does."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._head and data.startswith(_HEAD):
            self._head = data
            asyncio.get_running_loop().call_soon(self._release)
            return
        data, self._head = self._head + data, b""
        self._transport.write(data)

    def close(self) -> None:
        self._release()
        self._transport.close()

    def _release(self) -> None:
        if self._head and not self._transport.is_closing():
            self.write(b"")

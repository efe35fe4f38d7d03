"""Committed events on their way to other gateways: lines of JSON, encoded once for all of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from llmsched.model.jsontext import from_json, to_json
from llmsched.model.records import EventRecord

#: Lines that wait for a gateway; one that is slower begins anew.
MOST_LINES = 10_000
#: Seconds of silence after which an empty line says that the leader lives.
HEARTBEAT = 0.5


class Feed:
    """Give `publish` to the hub of the leader; each gateway that follows reads `lines`."""

    def __init__(self) -> None:
        self._readers: list[_Reader] = []

    def publish(self, events: Sequence[EventRecord], tenant_of: Callable[[str], str]) -> None:
        if self._readers:
            line = encode(events, tenant_of)
            for reader in self._readers:
                reader.offer(line)

    async def lines(self) -> AsyncIterator[bytes]:
        """What is committed from now on; ends for a reader that is too slow."""
        reader = _Reader()
        self._readers.append(reader)
        try:
            yield b"\n"
            while not reader.is_lost:
                yield await reader.take()
        finally:
            self._readers.remove(reader)


class _Reader:
    def __init__(self) -> None:
        self.is_lost = False
        self._lines: deque[bytes] = deque()
        self._awake = asyncio.Event()

    def offer(self, line: bytes) -> None:
        self.is_lost = self.is_lost or len(self._lines) >= MOST_LINES
        if not self.is_lost:
            self._lines.append(line)
        self._awake.set()

    async def take(self) -> bytes:
        """Everything that waits, or an empty line after a while."""
        if not self._lines:
            self._awake.clear()
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await self._awake.wait()
            except TimeoutError:
                return b"\n"
        found = b"".join(self._lines)
        self._lines.clear()
        return found


def encode(events: Sequence[EventRecord], tenant_of: Callable[[str], str]) -> bytes:
    """One line."""
    return to_json([[e.job, e.seq, e.type, e.at, dict(e.data), tenant_of(e.job)] for e in events]).encode() + b"\n"


def decode(line: str) -> tuple[list[EventRecord], dict[str, str]]:
    """The events of a line, and the tenants of their jobs.

    >>> decode(encode([EventRecord("j", 1, "job.queued", 2.0)], lambda job: "ann").decode())
    ([EventRecord(job='j', seq=1, type='job.queued', at=2.0, data={})], {'j': 'ann'})
    """
    rows = from_json(line)
    return [EventRecord(*row[:5]) for row in rows], {row[0]: row[5] for row in rows}

"""What the service asks of its store: the two doors through which `runtime/` and `store/` meet, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from llmsched.model.records import EventRecord, JobRecord, StageRecord, TraceRecord, Writes


class Memory(Protocol):
    """What the service asks of the store while it runs (reads for clients are the gateway's)."""

    async def find_idempotent(self, tenant: str, key: str) -> tuple[str, str] | None: ...

    async def job(self, id: str) -> JobRecord | None: ...

    def unfinished(
        self, ids: Sequence[str] | None = None
    ) -> AsyncIterator[tuple[JobRecord, bytes | None, Sequence[StageRecord]]]: ...

    async def arrivals(self) -> Sequence[str]: ...

    async def told(self, ids: Sequence[str]) -> Sequence[EventRecord]: ...

    async def last_seq(self, jobs: Sequence[str]) -> Mapping[str, int]: ...

    async def traces(self) -> Mapping[str, TraceRecord]: ...

    async def last_number(self) -> int: ...

    async def purge(self, finished_before: float, limit: int) -> int: ...


class Journal(Protocol):
    """Group commit: the future resolves once the writes are durable.

    It fails with BackendError if nothing can be written any more, with anything else if these writes cannot be.
    """

    healthy: bool

    @property
    def pending(self) -> int: ...

    def append(self, writes: Writes, *, patience: float = 0.0) -> asyncio.Future[None]: ...

"""Fan-out of committed events to whoever watches: bounded per listener, nothing blocks the writer.

A listener that is too slow is told that it lagged and catches up from the store; nobody else notices.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from llmsched.model.records import EventRecord

Tap = Callable[[Sequence[EventRecord], Callable[[str], str]], None]


class Subscription:
    """Events of one job (or of all jobs of a tenant) since it was opened, in commit order."""

    def __init__(self, limit: int, tenant: str) -> None:
        self.tenant = tenant
        self._queue: deque[EventRecord] = deque()
        self._limit = limit
        self._awake = asyncio.Event()
        self._closed = False
        self._lagged = False

    def offer(self, event: EventRecord) -> None:
        if len(self._queue) >= self._limit:
            self._lagged = True
            self._queue.clear()
        self._queue.append(event)
        self._awake.set()

    def catch_up(self) -> bool:
        """Whether events were dropped since the last call because nobody took them: the store has them.

        Asked after `take`: if true, what it gave has a gap before it.
        """
        lagged, self._lagged = self._lagged, False
        return lagged

    def close(self) -> None:
        self._closed = True
        self._awake.set()

    def lapse(self) -> None:
        """Something may have come that was not offered here."""
        self._lagged = True
        self._awake.set()

    async def take(self) -> list[EventRecord] | None:
        """Everything that came since the last call, waiting for one at least, or a lapse; None when the hub closed."""
        while not self._queue and not self._lagged:
            if self._closed:
                return None
            self._awake.clear()
            await self._awake.wait()
        events = list(self._queue)
        self._queue.clear()
        return events


class Hub:
    """Listeners by job; `None` listens to every job of a tenant ('': of everybody).

    tap: called with what is published, and who says whose jobs these are.
    """

    def __init__(self, limit: int = 4096, tap: Tap | None = None) -> None:
        self._limit = limit
        self._tap = tap
        self._listeners: dict[str | None, dict[int, Subscription]] = {}
        self._closed = False

    @property
    def listeners(self) -> int:
        return sum(len(s) for s in self._listeners.values())

    @contextmanager
    def subscribe(self, job: str | None = None, tenant: str = "") -> Iterator[Subscription]:
        subscription = Subscription(self._limit, tenant)
        if self._closed:
            subscription.close()
        group = self._listeners.setdefault(job, {})
        group[id(subscription)] = subscription
        try:
            yield subscription
        finally:
            del group[id(subscription)]
            if not group:
                self._listeners.pop(job, None)

    def publish(self, events: Sequence[EventRecord], tenant_of: Callable[[str], str]) -> None:
        if self._tap is not None and events:
            self._tap(events, tenant_of)
        for event in events:
            for subscription in self._listeners.get(event.job, {}).values():
                subscription.offer(event)
            for subscription in self._listeners.get(None, {}).values():
                if subscription.tenant in ("", tenant_of(event.job)):
                    subscription.offer(event)

    def lapse(self) -> None:
        """What was committed may not all have been published: listeners have to look into the store."""
        for group in self._listeners.values():
            for subscription in group.values():
                subscription.lapse()

    def close(self) -> None:
        """Ends every stream: their clients come back to the next process with `Last-Event-ID`."""
        self._closed = True
        for group in self._listeners.values():
            for subscription in group.values():
                subscription.close()

"""Server-sent events: committed events of a job, resumable by `Last-Event-ID`, or of all jobs from now on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from llmsched.model.jsontext import to_json
from llmsched.model.records import EventRecord
from llmsched.runtime.hub import Hub, Subscription
from llmsched.store.store import Store

#: Seconds between comments that keep proxies from closing a quiet stream.
KEEP_ALIVE = 15.0
#: Stored events read at a time.
PAGE = 500

_TERMINAL = frozenset({"job.completed", "job.failed", "job.cancelled"})


def frame(event: EventRecord, *, with_id: bool = True) -> bytes:
    data = to_json({"job": event.job, "at": event.at, **event.data}).encode()
    head = b"id: %d\n" % event.seq if with_id else b""
    return b"%sevent: %s\ndata: %s\n\n" % (head, event.type.encode(), data)


async def job_stream(
    store: Store, hub: Hub, job: str, after: int, is_open: Callable[[str], bool]
) -> AsyncIterator[bytes]:
    """Events of one job with a number above `after`, past and to come; ends with the job.

    is_open: whether the last event of a job is still to be published. Then the store need not be asked, and a read
    costs more than all else here.
    """
    with hub.subscribe(job) as subscription:
        seen = after
        while True:
            is_over = not is_open(job) and await _is_over(store, job)
            is_full = True
            while is_full:
                page = await store.events(job, seen, PAGE)
                is_full = len(page) == PAGE
                if page:
                    seen = page[-1].seq
                    yield b"".join(map(frame, page))
                    if page[-1].type in _TERMINAL:
                        return
            if is_over:
                return
            while True:
                try:
                    events = await _next(subscription)
                except TimeoutError:
                    yield b": keep-alive\n\n"
                    continue
                if events is None:
                    return
                if subscription.catch_up():  # what came has a gap before it; the store has none
                    break
                # Also for clients that have seen higher numbers than there are, before a backup took the store's place.
                is_over = events[-1].type in _TERMINAL
                if events := [event for event in events if event.seq > seen]:
                    seen = events[-1].seq
                    yield b"".join(map(frame, events))
                if is_over:
                    return


async def all_stream(hub: Hub, tenant: str, hears: Callable[[], Awaitable[None]] | None = None) -> AsyncIterator[bytes]:
    """Events of every job of a tenant from now on. A listener that is too slow gets `stream.lagged` and misses some.

    hears: returns when the hub gets news, where that is not always so.
    """
    with hub.subscribe(tenant=tenant) as subscription:
        if hears is not None:
            await hears()
            subscription.catch_up()  # what was before is not asked for
        yield b": connected\n\n"
        while True:
            try:
                events = await _next(subscription)
            except TimeoutError:
                yield b": keep-alive\n\n"
                continue
            if events is None:
                return
            if subscription.catch_up():
                yield b"event: stream.lagged\ndata: {}\n\n"
            yield b"".join(frame(event, with_id=False) for event in events)


async def _is_over(store: Store, job: str) -> bool:
    record = await store.job(job)
    return record is None or record.finished_at is not None


async def _next(subscription: Subscription) -> list[EventRecord] | None:
    """Raises TimeoutError after a while of silence."""
    async with asyncio.timeout(KEEP_ALIVE):
        return await subscription.take()

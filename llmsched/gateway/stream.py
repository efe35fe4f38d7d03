"""Server-sent events: committed events of a job, resumable by `Last-Event-ID`, or of all jobs from now on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson

from llmsched.model.records import EventRecord
from llmsched.runtime.hub import Hub
from llmsched.store.store import Store

#: Seconds between comments that keep proxies from closing a quiet stream.
KEEP_ALIVE = 15.0

_TERMINAL = frozenset({"job.completed", "job.failed", "job.cancelled"})


def frame(event: EventRecord, *, with_id: bool = True) -> bytes:
    data = orjson.dumps({"job": event.job, "at": event.at, **event.data})
    head = b"id: %d\n" % event.seq if with_id else b""
    return b"%sevent: %s\ndata: %s\n\n" % (head, event.type.encode(), data)


async def job_stream(store: Store, hub: Hub, job: str, after: int) -> AsyncIterator[bytes]:
    """Events of one job with a number above `after`, past and to come; ends with the job."""
    with hub.subscribe(job) as subscription:
        seen = after
        while True:
            subscription.catch_up()
            record = await store.job(job)
            is_over = record is None or record.finished_at is not None
            while page := await store.events(job, seen, 500):
                for event in page:
                    seen = event.seq
                    yield frame(event)
                    if event.type in _TERMINAL:
                        return
            if is_over:
                return
            while not subscription.has_lagged:
                try:
                    events = await asyncio.wait_for(subscription.take(), KEEP_ALIVE)
                except TimeoutError:
                    yield b": keep-alive\n\n"
                    continue
                if events is None:
                    return
                for event in events:
                    if event.seq <= seen:
                        continue
                    seen = event.seq
                    yield frame(event)
                    if event.type in _TERMINAL:
                        return


async def all_stream(hub: Hub, tenant: str) -> AsyncIterator[bytes]:
    """Events of every job of a tenant from now on. A listener that is too slow gets `stream.lagged` and misses some."""
    with hub.subscribe(tenant=tenant) as subscription:
        yield b": connected\n\n"
        while True:
            try:
                events = await asyncio.wait_for(subscription.take(), KEEP_ALIVE)
            except TimeoutError:
                yield b": keep-alive\n\n"
                continue
            if events is None:
                return
            if subscription.catch_up():
                yield b"event: stream.lagged\ndata: {}\n\n"
            yield b"".join(frame(event, with_id=False) for event in events)

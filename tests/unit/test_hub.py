"""The hub: who hears what, in which order, and what becomes of a listener that does not listen."""

from __future__ import annotations

import asyncio

from llmsched.model.records import EventRecord
from llmsched.runtime.hub import Hub


def event(job: str, seq: int) -> EventRecord:
    return EventRecord(job, seq, "job.started", float(seq))


def tenant_of(job: str) -> str:
    return job[0]


async def test_events_reach_listeners_of_their_job_in_order() -> None:
    hub = Hub()
    with hub.subscribe("a1") as of_a, hub.subscribe("b1") as of_b:
        hub.publish([event("a1", 1), event("b1", 1), event("a1", 2)], tenant_of)
        assert await of_a.take() == [event("a1", 1), event("a1", 2)]
        assert await of_b.take() == [event("b1", 1)]


async def test_listeners_to_everything_hear_their_tenant_only_unless_they_are_nobodys() -> None:
    hub = Hub()
    with hub.subscribe(tenant="a") as theirs, hub.subscribe() as everything:
        hub.publish([event("a1", 1), event("b1", 1)], tenant_of)
        assert await theirs.take() == [event("a1", 1)]
        assert await everything.take() == [event("a1", 1), event("b1", 1)]


async def test_take_waits_for_the_next_event() -> None:
    hub = Hub()
    with hub.subscribe("a1") as subscription:
        waiting = asyncio.create_task(subscription.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        hub.publish([event("a1", 1)], tenant_of)
        assert await waiting == [event("a1", 1)]


async def test_a_cancelled_take_loses_nothing() -> None:
    hub = Hub()
    with hub.subscribe("a1") as subscription:
        waiting = asyncio.create_task(subscription.take())
        await asyncio.sleep(0)
        hub.publish([event("a1", 1)], tenant_of)
        waiting.cancel()
        await asyncio.wait((waiting,))
        assert waiting.cancelled()
        assert await subscription.take() == [event("a1", 1)]


async def test_a_slow_listener_is_told_once_that_it_lagged_and_nobody_else_notices() -> None:
    hub = Hub(limit=2)
    with hub.subscribe("a1") as slow, hub.subscribe("a1") as quick:
        heard: list[EventRecord] = []
        for seq in range(1, 6):
            hub.publish([event("a1", seq)], tenant_of)
            heard += await quick.take() or []
        assert heard == [event("a1", seq) for seq in range(1, 6)]
        assert not quick.catch_up()
        assert await slow.take() == [event("a1", 5)]  # 1 and 2 filled it, 3 and 4 filled it again
        assert slow.catch_up()
        assert not slow.catch_up()


async def test_a_listener_that_left_costs_nothing() -> None:
    hub = Hub()
    with hub.subscribe("a1"), hub.subscribe("a1"), hub.subscribe():
        assert hub.listeners == 3
    assert hub.listeners == 0
    hub.publish([event("a1", 1)], tenant_of)


async def test_closing_ends_listeners_that_wait_and_those_that_come_later_after_what_they_were_owed() -> None:
    hub = Hub()
    with hub.subscribe("a1") as waits, hub.subscribe("b1") as owed:
        waiting = asyncio.create_task(waits.take())
        hub.publish([event("b1", 1)], tenant_of)
        hub.close()
        assert await waiting is None
        assert await owed.take() == [event("b1", 1)]
        assert await owed.take() is None
    with hub.subscribe("a1") as late:
        assert await late.take() is None

"""Committed events on their way to other gateways."""

from __future__ import annotations

import asyncio

import pytest

from llmsched.model.records import EventRecord
from llmsched.runtime.hub import Hub
from llmsched.runtime.replicas import feed as module
from llmsched.runtime.replicas.feed import Feed, decode


def event(seq: int, job: str = "j") -> EventRecord:
    return EventRecord(job, seq, "stage.completed", 1.5, {"stage": "a\ud800", "n": 2**70})


async def test_what_is_published_is_heard_as_it_was() -> None:
    feed = Feed()
    hub = Hub(tap=feed.publish)
    lines = feed.lines()
    assert await anext(lines) == b"\n"  # it listens
    hub.publish([event(1), event(1, "k")], {"j": "ann", "k": ""}.__getitem__)
    hub.publish([event(2)], {"j": "ann"}.__getitem__)
    first, second = (await anext(lines)).decode().splitlines()
    assert decode(first) == ([event(1), event(1, "k")], {"j": "ann", "k": ""})
    assert decode(second) == ([event(2)], {"j": "ann"})
    await lines.aclose()  # type: ignore[attr-defined]


async def test_silence_is_broken_by_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    lines = Feed().lines()
    assert [await anext(lines) for _ in range(3)] == [b"\n"] * 3


async def test_who_is_too_slow_has_to_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LINES", 3)
    feed = Feed()
    slow, quick = feed.lines(), feed.lines()
    await anext(slow)
    await anext(quick)
    heard = 0
    for k in range(6):
        feed.publish([event(k)], lambda _: "")
        heard += len((await anext(quick)).splitlines())
    assert heard == 6
    with pytest.raises(StopAsyncIteration):
        await anext(slow)


async def test_a_lapse_wakes_who_listens() -> None:
    hub = Hub()
    with hub.subscribe("j") as subscription:
        taking = asyncio.create_task(subscription.take())
        await asyncio.sleep(0)
        hub.lapse()
        assert await taking == []
        assert subscription.catch_up()
        assert not subscription.catch_up()

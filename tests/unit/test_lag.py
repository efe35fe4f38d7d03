"""The lag of the event loop: one sample per moment that was due."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from llmsched.runtime.lag import watch_lag


def late_by(*moments: float) -> Callable[[], float]:
    """A clock that starts at 0 and then reads these moments: as the loop wakes, and again as it goes to sleep."""

    def readings() -> Iterator[float]:
        yield 0.0
        now = 0.0
        for moment in moments:
            yield now
            now = moment
            yield now

    return readings().__next__


async def samples(*moments: float) -> list[float]:
    """What is observed while the loop wakes at these moments, with one due every second."""
    seen: list[float] = []
    with pytest.raises(RuntimeError):  # the clock has run out, which StopIteration becomes in a coroutine
        await watch_lag(seen.append, interval=1.0, clock=late_by(*moments))
    return [round(s, 9) for s in seen]


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(seconds: float) -> None:
        assert seconds >= 0

    monkeypatch.setattr(asyncio, "sleep", at_once)


async def test_a_loop_that_wakes_on_time_has_no_lag() -> None:
    assert await samples(1.0, 2.0, 3.0) == [0.0, 0.0, 0.0]


async def test_lateness_does_not_move_the_next_moment() -> None:
    assert await samples(1.25, 2.5) == [0.25, 0.5]


async def test_a_timer_that_fires_early_is_not_early() -> None:
    assert await samples(0.999) == [0.0]


async def test_a_blocked_loop_gives_a_sample_for_every_moment_it_missed() -> None:
    assert await samples(3.5, 5.0) == [2.5, 1.5, 0.5, 1.0, 0.0]

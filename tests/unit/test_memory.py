"""Garbage is looked for, and memory goes back to the system, when a busy service comes to rest; seldom before."""

import asyncio
import gc
from collections.abc import Iterable

import pytest

from llmsched.runtime.memory import NEVER, look_after_memory, resident


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda: seen.append(1))
    return seen


async def looks(
    answers: list[tuple[int, int]], collections: list[int], busy: float = 1e9, sizes: Iterable[int] = ()
) -> list[int]:
    """How often memory had been given back before each look. answers: active jobs and the newest one, look by look."""
    counts: list[int] = []
    done = asyncio.Event()
    rest, size = iter(answers), iter(sizes)
    look = 0, 0

    def newest() -> int:
        nonlocal look
        counts.append(len(collections))
        look = next(rest, (0, 0))
        if len(counts) > len(answers):
            done.set()
        return look[1]

    task = asyncio.create_task(
        look_after_memory(lambda: look[0], newest, lambda: next(size, 0), interval=0.0, busy=busy)
    )
    await done.wait()
    task.cancel()
    await asyncio.wait((task,))
    return counts[: len(answers)]


async def test_memory_is_given_back_once_per_busy_time(collections: list[int]) -> None:
    answers = [(0, 7), (1, 8), (1, 8), (0, 8), (0, 8), (2, 10), (0, 10), (0, 10)]
    assert await looks(answers, collections) == [0, 0, 0, 0, 1, 1, 1, 2]


async def test_a_moment_between_two_jobs_is_no_rest(collections: list[int]) -> None:
    answers = [(0, 7), (0, 8), (0, 9), (0, 10), (0, 10), (0, 10)]
    assert await looks(answers, collections) == [0, 0, 0, 0, 0, 1]


async def test_garbage_of_a_service_that_is_never_at_rest_is_looked_for_all_the_same(collections: list[int]) -> None:
    answers = [(3, k) for k in range(5)]
    assert await looks(answers, collections) == [0, 0, 0, 0, 0]
    assert await looks(answers, collections, busy=0.0) == [0, 0, 1, 2, 3]


async def test_meanwhile_only_the_youngest_objects_are_looked_at() -> None:
    pace = gc.get_threshold()
    task = asyncio.create_task(look_after_memory(lambda: 0, lambda: 0))
    await asyncio.sleep(0)
    assert gc.get_threshold()[1:] == (NEVER, NEVER)

    task.cancel()
    await asyncio.wait((task,))
    assert gc.get_threshold() == pace


async def test_a_process_that_grows_is_looked_through(collections: list[int]) -> None:
    answers = [(3, k) for k in range(6)]
    # 100 at the start, then look by look; 126 is more than a quarter larger, and what is left of it is the new measure
    sizes = [100, 110, 125, 126, 120, 140, 149]
    assert await looks(answers, collections, sizes=sizes) == [0, 0, 0, 0, 1, 1]


def test_how_large_a_process_is() -> None:
    assert 10e6 < resident() < 10e9

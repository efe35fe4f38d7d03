"""Memory goes back to the system once when a busy service comes to rest, and not before."""

import asyncio
import gc

import pytest

from llmsched.runtime.memory import trim_at_rest


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda: seen.append(1))
    return seen


async def looks(answers: list[tuple[int, int]], collections: list[int]) -> list[int]:
    """How often memory had been given back before each look. answers: active jobs and the newest one, look by look."""
    counts: list[int] = []
    done = asyncio.Event()
    rest = iter(answers)
    look = 0, 0

    def newest() -> int:
        nonlocal look
        counts.append(len(collections))
        look = next(rest, (0, 0))
        if len(counts) > len(answers):
            done.set()
        return look[1]

    task = asyncio.create_task(trim_at_rest(lambda: look[0], newest, interval=0.0))
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

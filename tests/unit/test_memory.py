"""Memory goes back to the system once when a busy service comes to rest, and not before."""

import asyncio
import gc
from typing import Any

import pytest

from llmsched.runtime.memory import trim_at_rest


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda: seen.append(1))
    return seen


async def looks(answers: list[bool], collections: list[int]) -> list[int]:
    """How often memory had been given back before each look at the service."""
    counts: list[int] = []
    done = asyncio.Event()
    rest = iter(answers)

    def is_busy() -> bool:
        counts.append(len(collections))
        answer: Any = next(rest, None)
        if answer is None:
            done.set()
            return False
        return bool(answer)

    task = asyncio.create_task(trim_at_rest(is_busy, interval=0.0))
    await done.wait()
    task.cancel()
    await asyncio.wait((task,))
    return counts


async def test_memory_is_given_back_once_per_busy_time(collections: list[int]) -> None:
    assert await looks([False, True, True, False, False, True, False], collections) == [0, 0, 0, 0, 1, 1, 1, 2]

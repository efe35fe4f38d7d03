"""Placement without looking at every executor: the same answers as by looking at every one."""

from __future__ import annotations

from random import Random

import pytest

from llmsched.model.events import TaskRef
from llmsched.model.job import Executor
from llmsched.scheduler.capacity import Capacity

POOLS = ("llm", "cpu")


class Machines:
    """Executors that come, go, work and rest at random, and what looking at all of them says."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.executors: dict[str, Executor] = {}
        self.capacity = Capacity(self.executors)
        self.joined = 0

    def turn(self) -> None:
        executor = self.rng.choice(list(self.executors.values())) if self.executors else None
        match self.rng.randrange(12):
            case 0 | 1:
                id = f"e{self.rng.randrange(12)}"
                if id not in self.executors:
                    self.executors[id] = Executor(id, self.rng.choice(POOLS), self.rng.randrange(4), self.joined)
                    self.joined += 1
                self.executors[id].slots = self.rng.randrange(4)
                self.capacity.changed(self.executors[id])
            case 2 if executor is not None:
                del self.executors[executor.id]
                self.capacity.lost(executor)
            case 3 | 4 | 5 | 6 if executor is not None and executor.running:
                executor.running.pop(self.rng.choice(list(executor.running)))
                self.capacity.changed(executor)
            case _:
                pools = self.capacity.pools()
                if pools:
                    chosen = self.capacity.least_loaded(self.rng.choice(pools))
                    chosen.running[TaskRef("j", "s", self.rng.randrange(10**9))] = None  # type: ignore[assignment]
                    self.capacity.changed(chosen)

    def least_loaded(self, pool: str, avoid: str | None) -> Executor:
        free = [e for e in self.executors.values() if e.pool == pool and e.free]
        return min(free, key=lambda e: (e.id == avoid, len(e.running), e.order))


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_a_look_at_every_executor(seed: int) -> None:
    machines = Machines(seed)
    for _ in range(400):
        machines.turn()
        free = {pool: sum(e.free for e in machines.executors.values() if e.pool == pool) for pool in POOLS}
        assert {pool: machines.capacity.free(pool) for pool in POOLS} == free
        assert sorted(machines.capacity.pools()) == sorted(pool for pool in POOLS if free[pool])
        for pool in machines.capacity.pools():
            for avoid in (None, f"e{machines.rng.randrange(12)}"):
                assert machines.capacity.least_loaded(pool, avoid) is machines.least_loaded(pool, avoid)


def test_what_it_keeps_is_bounded_however_often_loads_change() -> None:
    executors = {f"e{k}": Executor(f"e{k}", "llm", 16, k) for k in range(4)}
    capacity = Capacity(executors)
    for executor in executors.values():
        capacity.changed(executor)
    for k in range(10_000):  # the others are always less loaded, so that what is kept of e0 never comes to the top
        executors["e0"].running[TaskRef("j", "s", k)] = None  # type: ignore[assignment]
        capacity.changed(executors["e0"])
        executors["e0"].running.clear()
        capacity.changed(executors["e0"])
    assert len(capacity._heaps["llm"]) <= 8 * 4 + 8


def test_a_lost_executor_that_comes_back_stands_behind_those_that_stayed() -> None:
    first, second = Executor("a", "llm", 1, 0), Executor("b", "llm", 1, 1)
    executors = {"a": first, "b": second}
    capacity = Capacity(executors)
    capacity.changed(first)
    capacity.changed(second)
    del executors["a"]
    capacity.lost(first)
    executors["a"] = again = Executor("a", "llm", 1, 2)
    capacity.changed(again)
    assert capacity.least_loaded("llm") is second
    assert capacity.least_loaded("llm", "b") is again
    assert capacity.free("llm") == 2

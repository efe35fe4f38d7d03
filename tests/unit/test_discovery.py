"""Engines as they are wanted: added, drained before they leave, found by name. No network: the resolver is a table."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from llmsched.errors import Conflict, InvalidSetting
from llmsched.runtime.discovery import Discovery, Wanted
from llmsched.runtime.engines import EngineSpec

pytestmark = pytest.mark.asyncio

A, B, C = (EngineSpec(f"http://{name}:8000", name=name) for name in "abc")
VLLM = Wanted(EngineSpec("http://vllm.svc:8000", slots=8), resolve=True)


@dataclass
class AnEngine:
    id: str
    spec: EngineSpec
    draining: bool = False

    def drain(self, draining: bool) -> None:
        self.draining = draining

    def resize(self, slots: int | None) -> None:
        self.spec = replace(self.spec, slots=slots)


@dataclass
class AFleet:
    """Engines in memory. running: tasks by engine. names: what the resolver knows."""

    engines: dict[str, AnEngine] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str] | OSError] = field(default_factory=dict)

    def __iter__(self) -> Iterator[AnEngine]:
        return iter(self.engines.values())

    def __contains__(self, id: object) -> bool:
        return id in self.engines

    def add(self, spec: EngineSpec) -> AnEngine:
        if any(engine.spec.url == spec.url for engine in self):
            raise Conflict(f"somebody already serves {spec.url}")
        id = spec.name or f"engine-{len(self.engines)}"
        self.engines[id] = AnEngine(id, spec)
        return self.engines[id]

    async def remove(self, id: str) -> None:
        assert not self.running.get(id), f"{id} still runs {self.running[id]} tasks"
        del self.engines[id]

    async def resolve(self, host: str, port: int) -> list[str]:
        found = self.names.get(host, OSError(-2, "Name or service not known"))
        if isinstance(found, OSError):
            raise found
        return list(found)

    @property
    def state(self) -> dict[str, bool]:
        return {engine.id: engine.draining for engine in self}


def discovering(*wanted: Wanted | EngineSpec) -> tuple[AFleet, Discovery]:
    fleet = AFleet()
    discovery = Discovery(fleet, lambda id: fleet.running.get(id, 0), resolver=fleet.resolve)
    use(discovery, *wanted)
    return fleet, discovery


def use(discovery: Discovery, *wanted: Wanted | EngineSpec) -> None:
    discovery.use(each if isinstance(each, Wanted) else Wanted(each) for each in wanted)


async def test_an_engine_that_is_wanted_no_longer_leaves_when_its_tasks_are_done() -> None:
    fleet, discovery = discovering(A, B)
    await discovery.begin()
    fleet.running["a"] = 2
    use(discovery, C)

    assert await discovery.round() is True
    assert fleet.state == {"a": True, "c": False}  # b had nothing to do
    fleet.running["a"] = 0
    assert await discovery.round() is False
    assert fleet.state == {"c": False}


async def test_an_engine_that_is_wanted_again_before_it_left_stays() -> None:
    fleet, discovery = discovering(A)
    await discovery.begin()
    fleet.running["a"] = 1
    use(discovery)
    await discovery.round()
    use(discovery, A)
    await discovery.round()

    assert fleet.state == {"a": False}


async def test_an_engine_that_somebody_drained_is_not_taken_back() -> None:
    fleet, discovery = discovering(A)
    await discovery.begin()
    fleet.engines["a"].drain(True)
    use(discovery, A)
    await discovery.round()

    assert fleet.state == {"a": True}


async def test_new_slots_are_offered_at_once_and_another_model_after_draining() -> None:
    fleet, discovery = discovering(A)
    await discovery.begin()
    fleet.running["a"] = 1
    use(discovery, replace(A, slots=32))
    assert await discovery.round() is False
    assert (fleet.state, fleet.engines["a"].spec.slots) == ({"a": False}, 32)

    use(discovery, replace(A, model="another"))
    assert await discovery.round() is True
    assert fleet.state == {"a": True}
    fleet.running["a"] = 0
    await discovery.round()
    assert (fleet.state, fleet.engines["a"].spec.model) == ({"a": False}, "another")


async def test_engines_of_others_are_left_alone() -> None:
    fleet, discovery = discovering(A)
    fleet.add(B)
    await discovery.begin()
    use(discovery)
    await discovery.round()
    assert fleet.state == {"b": False}

    use(discovery, A)
    await discovery.round()
    await fleet.remove("a")  # by hand: not forced back …
    await discovery.round()
    assert fleet.state == {"b": False}
    use(discovery)
    await discovery.round()
    use(discovery, A)  # … until it is wanted anew
    await discovery.round()
    assert fleet.state == {"b": False, "a": False}


async def test_an_engine_that_cannot_be_added_is_said_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    fleet, discovery = discovering(A)
    other = fleet.add(replace(A, name="other"))
    with pytest.raises(InvalidSetting, match="somebody already serves http://a:8000"):
        await discovery.begin()
    await discovery.round()
    assert said(caplog, "engine not added") == 1
    await fleet.remove(other.id)
    await discovery.round()
    assert fleet.state == {"a": False}


async def test_each_address_of_a_name_is_an_engine() -> None:
    fleet, discovery = discovering(VLLM, A)
    fleet.names["vllm.svc"] = ["10.0.0.1", "10.0.0.2", "fd00::1"]
    await discovery.look()
    await discovery.round()

    urls = {engine.id: (engine.spec.url, engine.spec.slots) for engine in fleet}
    assert urls == {
        "vllm.svc-10.0.0.1": ("http://10.0.0.1:8000", 8),
        "vllm.svc-10.0.0.2": ("http://10.0.0.2:8000", 8),
        "vllm.svc-fd00..1": ("http://[fd00::1]:8000", 8),
        "a": ("http://a:8000", None),
    }
    fleet.running["vllm.svc-10.0.0.1"] = 1
    fleet.names["vllm.svc"] = ["10.0.0.3", "10.0.0.2"]
    await discovery.look()
    await discovery.round()
    assert fleet.state == {
        "vllm.svc-10.0.0.1": True,
        "vllm.svc-10.0.0.2": False,
        "a": False,
        "vllm.svc-10.0.0.3": False,
    }


@pytest.mark.parametrize("trouble", [[], OSError(-2, "Name or service not known")])
async def test_a_name_without_an_address_changes_nothing_and_is_said_once(
    trouble: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fleet, discovery = discovering(VLLM)
    fleet.names["vllm.svc"] = ["10.0.0.1"]
    await discovery.look()
    await discovery.round()
    fleet.names["vllm.svc"] = trouble
    for _ in range(3):
        await discovery.look()
        await discovery.round()

    assert fleet.state == {"vllm.svc-10.0.0.1": False}
    assert said(caplog, "engine name not resolved") == 1
    fleet.names["vllm.svc"] = ["10.0.0.2"]
    await discovery.look()
    await discovery.round()
    assert fleet.state == {"vllm.svc-10.0.0.2": False}


def said(caplog: pytest.LogCaptureFixture, message: str) -> int:
    return sum(r.message == message and r.levelno == logging.WARNING for r in caplog.records)

"""The growth benchmark: its parts can be told apart on the record, and a ring of gateways adds up what it saw."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("cluster", "failover", "postgres", "views", "growth")


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules by name, as they find each other when one is run as a script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "growth"))
    path = list(sys.path)
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path[:] = path
    for name in (*MODULES, "marks", "record", "rig", "throughput"):
        del sys.modules[name]


def test_every_part_has_a_place_on_the_record(growth: dict[str, ModuleType]) -> None:
    pages = importlib.import_module("record").PAGES
    for name in growth["growth"].PARTS:
        assert (BENCHMARKS.parent / "docs" / pages[name]).is_file()


async def test_a_part_without_what_it_needs_is_left_out(
    growth: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth["cluster"], "find_spec", lambda name: None)
    monkeypatch.setattr(growth["views"], "CHROMIUM", None)
    assert await growth["cluster"].measure(True) == []
    assert await growth["views"].measure(True) == []

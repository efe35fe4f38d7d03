"""The record of the benchmarks: what a run leaves behind, and the page that is made of all of it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONDITIONS = {"machine": "2 CPUs (a good one)", "load": 0.5, "date": "2026-11-28", "commit": "abc with changes"}


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The module, whose results and page are in a folder of the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("record")
    monkeypatch.setattr(module, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(module, "write_page", lambda: None)
    yield module
    for name in ("marks", "record", "rig"):
        del sys.modules[name]


def saved(record: ModuleType, name: str, *figures: tuple[object, ...]) -> None:
    record.save(name, name.title(), f"make {name}", [record.Figure(*f) for f in figures], CONDITIONS)


def sections(record: ModuleType) -> dict[str, dict[str, object]]:
    return {path.stem: json.loads(path.read_text()) for path in record.FIGURES.glob("*.json")}


def test_the_page_says_value_goal_and_verdict_of_every_figure_and_where_it_is_from(record: ModuleType) -> None:
    saved(record, "peers", ("added", 1.5, "ms", 2.0), ("calls", 90.0, "/s", 100.0, False), ("direct", 1234.0, "/s"))

    assert record.text(sections(record)) == (
        "1 of 2 goals are met.\n\n"
        "## Peers\n\n"
        "`make peers`: 2 CPUs (a good one), load 0.5 before; 2026-11-28, commit abc with changes. "
        "More: [peers.md](peers.md).\n\n"
        "| figure | value | goal | |\n| --- | ---: | ---: | --- |\n"
        "| added | 1.5 ms | ≤ 2 ms | ok |\n"
        "| calls | 90 /s | ≥ 100 /s | **missed** |\n"
        "| direct | 1,234 /s |  |  |"
    )


def test_sections_have_an_order_and_a_later_run_takes_the_place_of_an_earlier_one(record: ModuleType) -> None:
    for name in ("zebra", "scale", "apple", "comparison"):
        saved(record, name, ("figure", 1.0, "s"))
    saved(record, "scale", ("figure", 2.0, "s"))

    lines = record.text(sections(record)).splitlines()
    assert [line for line in lines if line.startswith("##")] == ["## Comparison", "## Scale", "## Apple", "## Zebra"]
    assert "| figure | 2 s |  |  |" in lines


def test_a_page_without_its_marks_is_refused(record: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Benchmarks\n")
    module = importlib.reload(record)  # its own write_page again
    with pytest.raises(ValueError, match="lacks <!-- measured"):
        module.write_page(page, tmp_path)


def test_only_what_stands_between_the_marks_is_written(record: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{record.BEGIN}\nold\n{record.marks.END}\nbelow\n")
    module = importlib.reload(record)
    module.write_page(page, tmp_path)
    assert page.read_text() == f"above\n{record.BEGIN}\n\n0 of 0 goals are met.\n\n{record.marks.END}\nbelow\n"


def test_conditions_name_machine_date_and_commit(record: ModuleType) -> None:
    told = record.conditions()
    assert set(told) == set(CONDITIONS)
    assert "CPUs" in told["machine"]


def test_every_page_that_the_record_names_exists(record: ModuleType) -> None:
    docs = BENCHMARKS.parent / "docs"
    assert [page for page in record.PAGES.values() if not (docs / page).is_file()] == []

"""One line per event, as text or as JSON, with the details as fields."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from llmsched import logs


def a_record(message: str = "engine up", **extra: Any) -> logging.LogRecord:
    record = logging.makeLogRecord({"name": "llmsched.x", "levelname": "INFO", "msg": message, **extra})
    record.created = 1_770_000_000.5
    return record


def with_error(record: logging.LogRecord) -> logging.LogRecord:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record.exc_info = sys.exc_info()
    return record


def test_text_has_time_level_message_and_fields() -> None:
    record = a_record(
        _ray_timestamp_ns=1,
        engine="e1",
        slots=16,
        error="it's gone",
        path="/a\nINFO forged",
        empty="",
        eq="a=b",
        name_="é",
    )
    assert logs.TextLines().format(record) == (
        '2026-02-02 02:40:00.500 INFO engine up engine=e1 slots=16 error="it\'s gone"'
        ' path="/a\\nINFO forged" empty= eq="a=b" name_=é'
    )


def test_json_is_one_object_per_line_whatever_the_fields() -> None:
    record = a_record(slots=16, big=2**80, odd={1, 2} - {2}, lone="\ud800", line="a\nb", level="mine")
    text = logs.JsonLines().format(record)
    assert "\n" not in text
    assert json.loads(text) == {
        "at": "2026-02-02T02:40:00.500+00:00",
        "level": "info",
        "logger": "llmsched.x",
        "message": "engine up",
        "slots": 16,
        "big": 2**80,
        "odd": "{1}",
        "lone": "\ud800",
        "line": "a\nb",
    }


def test_an_exception_goes_with_its_line() -> None:
    assert logs.TextLines().format(with_error(a_record())).endswith("ValueError: two\nlines")
    assert json.loads(logs.JsonLines().format(with_error(a_record())))["exception"].endswith("ValueError: two\nlines")


@pytest.fixture
def _logging_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, getattr(logging, name))
    root, access = logging.getLogger(), logging.getLogger("llmsched.access")
    handlers, level, access_level = root.handlers[:], root.level, access.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    access.setLevel(access_level)


@pytest.mark.usefixtures("_logging_restored")
@pytest.mark.parametrize("access", [True, False])
def test_configure_writes_to_standard_error(access: bool, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", access=access)
    logging.getLogger("llmsched.a").info("heard")
    logging.getLogger("llmsched.a").debug("too quiet")
    logging.getLogger("httpx").info("too noisy")
    logging.getLogger("llmsched.access").info("request")
    written = capsys.readouterr()
    assert written.out == ""
    lines = [json.loads(line)["message"] for line in written.err.splitlines()]
    assert lines == (["heard", "request"] if access else ["heard"])

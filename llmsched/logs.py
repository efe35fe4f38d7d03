"""Logs as events: one line per thing that happened, as text or JSON, the details as fields."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

#: ASCII without spaces, quotes and equals signs, which is what most values are.
_PLAIN = re.compile(r"[!#-<>-~]*")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def configure(level: str = "info", style: str = "text", *, access: bool = True) -> None:
    """Sends every log line to standard error, as `text` or `json`. access: one line per request, too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else TextLines())
    # No line says where in the code it comes from, or of which thread; finding that out takes as long as all the rest.
    logging._srcfile = None  # as the logging HOWTO says, under "Optimization"
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("llmsched.access").setLevel(logging.INFO if access else logging.CRITICAL)
    for noisy in ("httpx", "httpcore", "asyncio", "alembic", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller handed in as `extra`; names with `_` in front are of libraries that mark every record (Ray)."""
    return {k: v for k, v in vars(record).items() if k not in _STANDARD and not k.startswith("_")}


class TextLines(logging.Formatter):
    """`2026-01-31 12:00:00.123 INFO message key=value …`; a value with spaces or line breaks is quoted."""

    def format(self, record: logging.LogRecord) -> str:
        second, fraction = divmod(record.created, 1)
        at = f"{_clock(int(second))}.{int(fraction * 1000):03d}"
        details = (f"{k}={_one_word(v)}" for k, v in fields(record).items())
        line = " ".join([at, record.levelname, record.getMessage(), *details])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


@lru_cache(maxsize=4)
def _clock(second: int) -> str:
    """Of a busy service, thousands of lines have the same."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(second))


def _one_word(value: object) -> str:
    """A value that cannot be taken for another field, nor for another line."""
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return text if text.isprintable() and not set(text) & set(' "=') else json.dumps(text, ensure_ascii=False)


class JsonLines(logging.Formatter):
    """One JSON object per line: at, level, logger, message, the details, and the exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {k: v for k, v in fields(record).items() if k not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)

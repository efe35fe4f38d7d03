"""Datasets of applications: what a loader yields, and reading the files they come in."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from llmsched.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Sample:
    """One entry of a dataset. input: of the job; reference: what the scorer compares the job's result with."""

    id: str
    input: Any
    reference: Any = None


def text(path: Path) -> str:
    """The text of a file in UTF-8, gzipped if its name ends in `.gz`. Raises InvalidInput where it cannot be read."""
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except UnicodeDecodeError:
        why = "it is no text in UTF-8"
    except (gzip.BadGzipFile, zlib.error, EOFError):
        why = "it is not gzipped; take the .gz off its name"
    except OSError as error:
        why = str(error.strerror)
    raise InvalidInput(f"the dataset {path} cannot be read: {why}", field="data")


def lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line of a file of JSON lines. Raises InvalidInput, naming the line, for another."""
    for number, line in enumerate(text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            read = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"{path}, line {number} is no JSON: {error}", field="data") from None
        if not isinstance(read, dict):
            raise InvalidInput(f"{path}, line {number} is no JSON object; is this the right file?", field="data")
        yield number, read

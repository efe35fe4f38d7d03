"""Datasets of applications: what a loader yields, and reading the files they come in."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from llmsched.errors import InvalidInput

#: Characters of a cell of CSV; Python's own limit of 131,072 is below what a long document has.
_LONGEST_CELL = 10_000_000


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


def rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line of a CSV file that has exactly these columns; the number is that of its last line.

    Raises InvalidInput, naming the line, for another file.
    """
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(io.StringIO(text(path), newline=""), strict=True)
    try:
        if (head := next(reader, [])) != list(columns):
            raise InvalidInput(
                f"{path}, line 1 has the columns {', '.join(head)[:80]!r}; this dataset begins with"
                f" {','.join(columns)!r}",
                field="data",
            )
        for row in reader:
            if len(row) != len(columns):
                raise InvalidInput(
                    f"{path}, line {reader.line_num} has {len(row)} columns instead of {', '.join(columns)}",
                    field="data",
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise InvalidInput(f"{path}, line {reader.line_num} is no CSV: {error}", field="data") from None

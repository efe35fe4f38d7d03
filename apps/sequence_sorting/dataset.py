"""Reads the lists of Graph of Thoughts: `sorting_032.csv`, `sorting_064.csv` and `sorting_128.csv`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from llmsched import InvalidInput
from llmsched.datasets import Sample, text

_COLUMNS = ["ID", "Unsorted", "Sorted"]


def load(path: Path) -> Iterator[Sample]:
    """One sample per row of a CSV file with the columns ID, Unsorted and Sorted; its reference is the sorted list.

    Raises InvalidInput, naming file and line, for another format, and for a list that is not sorted as it claims.
    """
    rows = csv.reader(io.StringIO(text(path), newline=""), strict=True)
    try:
        if (head := next(rows, [])) != _COLUMNS:
            raise InvalidInput(
                f"{path}, line 1 has the columns {', '.join(head)[:80]!r}; a file of lists begins with"
                f" {','.join(_COLUMNS)!r}",
                field="data",
            )
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if len(row) != len(_COLUMNS):
                raise InvalidInput(f"{where} has {len(row)} columns instead of ID, Unsorted, Sorted", field="data")
            unsorted, ordered = _numbers(where, "Unsorted", row[1]), _numbers(where, "Sorted", row[2])
            if sorted(unsorted) != ordered:
                raise InvalidInput(f"{where}: Sorted is not the list of Unsorted in ascending order", field="data")
            yield Sample(row[0], {"numbers": unsorted}, ordered)
    except csv.Error as error:
        raise InvalidInput(f"{path}, line {rows.line_num} is no CSV: {error}", field="data") from None


def _numbers(where: str, column: str, cell: str) -> list[int]:
    try:
        numbers = json.loads(cell)
    except json.JSONDecodeError:
        numbers = None
    if not isinstance(numbers, list) or not all(type(n) is int for n in numbers):
        raise InvalidInput(f"{where}: {column} is {cell[:80]!r}; it must be a list like [3, 1, 2]", field="data")
    return numbers

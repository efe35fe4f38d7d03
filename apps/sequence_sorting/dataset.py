"""Reads the lists of Graph of Thoughts: `sorting_032.csv`, `sorting_064.csv` and `sorting_128.csv`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from llmsched import InvalidInput
from llmsched.datasets import Sample, rows

_COLUMNS = ["ID", "Unsorted", "Sorted"]


def load(path: Path) -> Iterator[Sample]:
    """One sample per row of a CSV file with the columns ID, Unsorted and Sorted; its reference is the sorted list.

    Raises InvalidInput, naming file and line, for another format, and for a list that is not sorted as it claims.
    """
    for number, row in rows(path, _COLUMNS):
        where = f"{path}, line {number}"
        unsorted, ordered = _numbers(where, "Unsorted", row[1]), _numbers(where, "Sorted", row[2])
        if sorted(unsorted) != ordered:
            raise InvalidInput(f"{where}: Sorted is not the list of Unsorted in ascending order", field="data")
        yield Sample(row[0], {"numbers": unsorted}, ordered)


def _numbers(where: str, column: str, cell: str) -> list[int]:
    try:
        numbers = json.loads(cell)
    except json.JSONDecodeError:
        numbers = None
    if not isinstance(numbers, list) or not all(type(n) is int for n in numbers):
        raise InvalidInput(f"{where}: {column} is {cell[:80]!r}; it must be a list like [3, 1, 2]", field="data")
    return numbers

"""Reads the agreements of Graph of Thoughts: `documents.csv` of its document merging."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmsched import InvalidInput
from llmsched.datasets import Sample, rows

_COLUMNS = ["id", "problem", "document1", "document2", "document3", "document4"]


def load(path: Path) -> Iterator[Sample]:
    """One sample per row of a CSV file with the columns id, problem, document1 … document4.

    The documents are also the reference: there is no right answer to compare a merge with, only what it is made of.

    Raises InvalidInput, naming file and line, for another format.
    """
    for number, row in rows(path, _COLUMNS):
        documents = row[2:]
        if empty := next((c for c, d in zip(_COLUMNS[2:], documents, strict=True) if not d.strip()), None):
            raise InvalidInput(f"{path}, line {number}: {empty} is empty", field="data")
        yield Sample(row[0], {"documents": documents}, documents)

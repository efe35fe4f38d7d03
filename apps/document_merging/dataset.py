"""Reads the agreements of Graph of Thoughts: `documents.csv` of its document merging."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from llmsched import InvalidInput
from llmsched.datasets import Sample, text

_COLUMNS = ["id", "problem", "document1", "document2", "document3", "document4"]
#: Characters of a cell; Python's own limit of 131,072 is below what a long contract has.
_LONGEST = 10_000_000


def load(path: Path) -> Iterator[Sample]:
    """One sample per row of a CSV file with the columns id, problem, document1 … document4.

    The documents are also the reference: there is no right answer to compare a merge with, only what it is made of.

    Raises InvalidInput, naming file and line, for another format.
    """
    csv.field_size_limit(_LONGEST)
    rows = csv.reader(io.StringIO(text(path), newline=""), strict=True)
    try:
        if (head := next(rows, [])) != _COLUMNS:
            raise InvalidInput(
                f"{path}, line 1 has the columns {', '.join(head)[:80]!r}; a file of documents begins with"
                f" {','.join(_COLUMNS)!r}",
                field="data",
            )
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if len(row) != len(_COLUMNS):
                raise InvalidInput(f"{where} has {len(row)} columns instead of {len(_COLUMNS)}", field="data")
            documents = row[2:]
            if empty := next((c for c, d in zip(_COLUMNS[2:], documents, strict=True) if not d.strip()), None):
                raise InvalidInput(f"{where}: {empty} is empty", field="data")
            yield Sample(row[0], {"documents": documents}, documents)
    except csv.Error as error:
        raise InvalidInput(f"{path}, line {rows.line_num} is no CSV: {error}", field="data") from None

"""Reads the questions of LLMCompiler: `hotpotqa_comparison.json` and `parallelqa_dataset.json`, also in one list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmsched import InvalidInput
from llmsched.datasets import Sample
from llmsched.runtime.tools.corpus import entries

#: Of ParallelQA: by how much a number may be off, as a share, and still be right. Pages give different numbers.
TOLERANCE = 0.1


def load(path: Path) -> Iterator[Sample]:
    """One sample per question; its input is `{"question"}`, its reference `{"answer"}`, of ParallelQA `{"answer",
    "tolerance"}`.

    path: a JSON list of objects with `id` (or `_id`, as in HotpotQA's own files), `question`, `answer` and, in
    ParallelQA, `branch`: how many things there are to search for. Gzipped if it ends in `.gz`. Raises InvalidInput,
    naming file and entry, for another format.
    """
    for number, entry in entries(path):
        where = f"{path}, entry {number}"
        id = entry.get("id", entry.get("_id"))
        for key, value in (("id", id), ("question", entry.get("question")), ("answer", entry.get("answer"))):
            if not isinstance(value, str) or not value.strip():
                raise InvalidInput(
                    f"{where}: {key!r} is {value!r:.80}, not a text; take hotpotqa_comparison.json or"
                    " parallelqa_dataset.json of LLMCompiler",
                    field="data",
                )
        yield Sample(str(id), {"question": entry["question"].strip()}, _reference(where, entry))


def _reference(where: str, entry: dict[str, Any]) -> dict[str, Any]:
    if "branch" not in entry:
        return {"answer": entry["answer"]}
    if type(entry["branch"]) is not int:
        raise InvalidInput(f"{where}: 'branch' is {entry['branch']!r:.80}, not a whole number", field="data")
    return {"answer": entry["answer"], "tolerance": TOLERANCE}

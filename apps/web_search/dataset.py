"""Reads the questions of HotpotQA: `hotpot_dev_distractor_v1.json` and others of that format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmsched import InvalidInput
from llmsched.datasets import Sample
from llmsched.runtime.tools.corpus import entries


def load(path: Path) -> Iterator[Sample]:
    """One sample per question; its input is `{"question"}`, its reference `{"answer"}`.

    path: a JSON list of objects with `_id`, `question` and `answer`, gzipped if it ends in `.gz`. The paragraphs in it
    are left alone: they make the corpus. It is read as far as samples are asked for. Raises InvalidInput, naming file
    and entry, for another format; the test files of HotpotQA have no answers.
    """
    for number, entry in entries(path):
        for key in ("_id", "question", "answer"):
            if not isinstance(value := entry.get(key), str) or not value.strip():
                raise InvalidInput(
                    f"{path}, entry {number}: {key!r} is {value!r:.80}, not a text; take HotpotQA's train or dev file",
                    field="data",
                )
        yield Sample(entry["_id"], {"question": entry["question"]}, {"answer": entry["answer"]})

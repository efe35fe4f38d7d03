"""Texts of prompts beside traces, `<application>.jsonl.gz` with one `{"job_id", "stage", "prompt_text"}` per line.

They belong to the jobs of a trace by `job_id` and `stage`; parallel calls of a stage share one. What leaves this module
is what a text is like (`PromptText`), never the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, Self

import orjson

from llmsched.errors import InvalidInput
from llmsched.model.prompt import LONGEST, PromptText, describe
from llmsched.model.recording import Recording
from llmsched.model.unfolding import Texts
from llmsched.workloads.lines import read_lines
from llmsched.workloads.traces import trace_path, traced

Key = tuple[str, str, str]
"""Application, job and stage."""


class Encoder(Protocol):
    """A language model that reads a prompt."""

    def __call__(self, text: str) -> float:
        """How short the answer will be: larger, shorter."""
        ...


class Prompts:
    """The prompts of recorded jobs. encoder: is asked about every text, too."""

    def __init__(self, texts: Mapping[Key, str], encoder: Encoder | None = None) -> None:
        self._texts = texts
        self._encoder = encoder
        #: What was asked for, so that runs on the same jobs need not read their prompts again.
        self._described: dict[Key, PromptText] = {}

    @classmethod
    def load(cls, directory: Path, applications: Iterable[str], encoder: Encoder | None = None) -> Self:
        """All prompts of these applications; one that has no file there has none.

        Raises InvalidInput for a folder that cannot be read, or a bad line: `web_search.jsonl.gz:17: …`.
        """
        there = set(traced(directory))
        texts: dict[Key, str] = {}
        for application in dict.fromkeys(applications):
            if application in there:
                _read(trace_path(directory, application), application, texts)
        return cls(texts, encoder)

    def __len__(self) -> int:
        return len(self._texts)

    def __reduce__(self) -> tuple[type[Prompts], tuple[Mapping[Key, str], Encoder | None]]:
        return Prompts, (self._texts, self._encoder)

    def read_by(self, encoder: Encoder) -> Prompts:
        """The same prompts with what an encoder says of them."""
        return Prompts(self._texts, encoder)

    def of(self, recording: Recording) -> Texts:
        """What the prompts of a job are like, by stage; read when asked for."""
        return partial(self._describe, recording.application, recording.job_id)

    def _describe(self, application: str, job_id: str, stage: str) -> PromptText | None:
        key = application, job_id, stage
        known = self._described.get(key)
        if known is None and (text := self._texts.get(key)) is not None:
            known = describe(text)
            if self._encoder is not None:
                known = replace(known, score=self._encoder(text))
            self._described[key] = known
        return known


def _read(path: Path, application: str, texts: dict[Key, str]) -> None:
    for at, line in read_lines(path, InvalidInput):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as cause:
            raise InvalidInput(f"{at}: the line is not JSON in UTF-8 ({cause}); it has one prompt") from cause
        values = [row.get(key) if isinstance(row, dict) else None for key in ("job_id", "stage", "prompt_text")]
        job_id, stage, text = values
        if not (isinstance(job_id, str) and isinstance(stage, str) and isinstance(text, str)):
            raise InvalidInput(f"{at}: a prompt must be an object with job_id, stage and prompt_text, all texts")
        texts[application, job_id, stage] = text[:LONGEST]

"""How the tasks of one job are really executed, and what their outputs reveal: recorded here, live in `live.py`."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Protocol

from llmsched.model.application import Application
from llmsched.model.recording import Recording
from llmsched.model.unfolding import RecordedUnfolding, Unfolded
from llmsched.runtime.engine import CompletionRequest
from llmsched.runtime.tools.workers import WorkerTask

#: Token ids that every vocabulary has and no tokenizer treats as special.
_FIRST_TOKEN, _TOKENS = 100, 100


class Script(Protocol):
    """One job's side of the world. It is asked, it never acts.

    Restored jobs call `begin` and then `complete` for every stored stage, in order, before anything else.
    """

    #: How the job leaves its template, one sentence each; of a live job, as far as it is known.
    off_profile: tuple[str, ...]

    def begin(self) -> Unfolded:
        """What is known of the structure at submission."""
        ...

    def complete(self, stage: str, outputs: Sequence[Any]) -> Unfolded | None:
        """What the completion of a stage reveals; None: that is found out later, and told by whoever finds it out.

        Raises InvalidInput if its outputs cannot be used.
        """
        ...

    def llm(self, stage: str, index: int) -> CompletionRequest:
        """The call behind an LLM task."""
        ...

    def work(self, stage: str, index: int) -> WorkerTask | float:
        """What a regular task runs; a number holds a worker for so many seconds."""
        ...

    def tool(self, stage: str, index: int) -> str | None:
        """The handler or tool a regular task names, for traces."""
        ...

    def read(self, stage: str, index: int, text: str) -> Any:
        """The output of an LLM task made from the engine's text.

        Raises BadReply where it is not what was asked. If that says so, another attempt is worth it, and `llm` asks for
        a better reply.
        """
        ...

    def result(self) -> Any:
        """The job's result, once everything is over."""
        ...


class RecordedScript:
    """Executes a recording: exact prompt and output lengths, recorded seconds, nothing shown before its time."""

    def __init__(self, job: str, application: Application, recording: Recording) -> None:
        self._job = job
        self._unfolding = RecordedUnfolding(application, recording)
        self._totals = {"prompt_tokens": recording.prompt_tokens, "output_tokens": recording.output_tokens}
        self.off_profile = self._unfolding.off_profile

    def begin(self) -> Unfolded:
        return self._unfolding.begin()

    def complete(self, stage: str, outputs: Sequence[Any]) -> Unfolded:
        return self._unfolding.complete(stage)

    def llm(self, stage: str, index: int) -> CompletionRequest:
        task = self._unfolding.task(stage, index)
        return CompletionRequest(
            prompt=prompt_of(f"{self._job}/{stage}", max(1, task.prompt_tokens)),  # no engine takes an empty prompt
            max_tokens=task.output_tokens,
            min_tokens=task.output_tokens,
            ignore_eos=True,
            temperature=0.0,
            keep_text=False,
        )

    def work(self, stage: str, index: int) -> float:
        return self._unfolding.task(stage, index).duration

    def tool(self, stage: str, index: int) -> str | None:
        return self._unfolding.task(stage, index).tool

    def read(self, stage: str, index: int, text: str) -> None:
        """A recorded job keeps no text."""

    def result(self) -> dict[str, int]:
        return self._totals


def prompt_of(seed: str, tokens: int) -> list[int]:
    """A prompt of exactly so many token ids, alike only for the same seed: calls of one stage share their prefix.

    Different prompts differ in their first tokens, so an engine's prefix cache finds nothing that a real job
    would not have had in common.
    """
    h = zlib.crc32(seed.encode())
    head = [_FIRST_TOKEN + (h >> (7 * k)) % _TOKENS for k in range(4)]
    return (head + [_FIRST_TOKEN + h % _TOKENS] * max(0, tokens - 4))[:tokens]

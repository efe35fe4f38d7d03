"""What is known of an LLM call when it becomes ready, as a row of numbers; NaN where nothing is.

Names (application, stage) become their position in a list that is sorted by how long such answers are on average, so
that a tree can split them as numbers. The words of the prompt become `basis`-coordinates of their log counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llmsched.model.job import Job, Task
from llmsched.model.kinds import StageKind
from llmsched.model.prompt import BUCKETS, PromptText
from llmsched.model.spec import StageSpec

Rows = npt.NDArray[np.float32]

#: Columns before those of the basis. last, sum, max: output tokens of the job's earlier LLM calls (mean per call of the
#: last stage, all together, the longest).
NAMES = (
    "prompt_tokens", "characters", "lines", "digits", "application", "stage", "iteration", "max_tokens",
    "last", "sum", "max",
)  # fmt: skip
_UNKNOWN = float("nan")


def template_stage(spec: StageSpec) -> str:
    """What a stage is called in every job and every turn of its loop; a planned one by its candidate.

    >>> template_stage(StageSpec("thought_3", StageKind.LLM, iteration=3))
    'thought'
    """
    if spec.parent is not None:
        return f"{spec.parent}/{spec.candidate or spec.name}"
    return spec.name if spec.iteration is None else spec.name.removesuffix(f"_{spec.iteration}")


@dataclass(frozen=True, slots=True)
class Features:
    """applications, stages: the names that are known, in the order of their code. basis: (BUCKETS, dims), dims maybe 0.

    The basis is singular vectors in 1/127 of their largest number: trees do not mind the scale, and files stay small.
    """

    applications: tuple[str, ...]
    stages: tuple[tuple[str, str], ...]
    basis: npt.NDArray[np.int8]
    _codes: Mapping[str, float] = field(init=False, repr=False, compare=False)
    _stage_codes: Mapping[tuple[str, str], float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        assert self.basis.shape[0] == BUCKETS, self.basis.shape
        object.__setattr__(self, "_codes", {name: float(k) for k, name in enumerate(self.applications)})
        object.__setattr__(self, "_stage_codes", {name: float(k) for k, name in enumerate(self.stages)})

    @property
    def width(self) -> int:
        return len(NAMES) + int(self.basis.shape[1])

    def rows(self, tasks: Sequence[Task]) -> Rows:
        """(n, width) of tasks of one stage."""
        if not tasks:
            return np.empty((0, self.width), dtype=np.float32)
        job, spec = tasks[0].job, tasks[0].stage.spec
        application = job.application.name
        shared = (
            self._codes.get(application, _UNKNOWN),
            self._stage_codes.get((application, template_stage(spec)), _UNKNOWN),
            _UNKNOWN if spec.iteration is None else float(spec.iteration),
            float(spec.max_tokens or _UNKNOWN),
            *_earlier(job),
        )
        known: dict[PromptText, Rows] = {}
        rows = np.full((len(tasks), self.width), np.nan, dtype=np.float32)
        for row, task in zip(rows, tasks, strict=True):
            row[0] = task.prompt_tokens or _UNKNOWN
            row[4 : len(NAMES)] = shared
            if (text := task.text) is not None:
                row[1:4] = text.characters, text.lines, text.digits
                if text not in known:
                    known[text] = self.words(text)
                row[len(NAMES) :] = known[text]
        return rows

    def words(self, text: PromptText) -> Rows:
        """(dims,) the log counts of a text's words, scaled to length 1, in the basis."""
        buckets, weights = log_counts(text)
        return np.asarray(weights @ self.basis[buckets].astype(np.float32), dtype=np.float32)


def log_counts(text: PromptText) -> tuple[npt.NDArray[np.intp], Rows]:
    """Buckets of a text's words, and the log of how often they occur, scaled to length 1."""
    buckets, counts = np.frombuffer(text.grams, dtype="<u2").reshape(2, -1)
    weights = np.log1p(counts.astype(np.float32))
    scaled = weights / np.float32(max(float(np.linalg.norm(weights)), 1e-9))
    return buckets.astype(np.intp), scaled.astype(np.float32)


def _earlier(job: Job) -> tuple[float, float, float]:
    """last, sum and max of the LLM stages that are over."""
    last = longest = _UNKNOWN
    total = 0.0
    for stage in job.stages.values():  # in topological order
        if stage.kind is StageKind.LLM and stage.tasks and stage.done_tasks == len(stage.tasks):
            tokens = [float(task.result.output_tokens) for task in stage.tasks if task.result is not None]
            last = sum(tokens) / len(tokens)
            total += sum(tokens)
            longest = max(tokens) if longest != longest else max(longest, *tokens)
    return last, total or _UNKNOWN, longest

"""What one running job looks like at one moment: how much is left of it, at least and at most, and what that rests on.

Work is an array of C = 2 * pools columns, `fixed` and `decode` reference seconds of each pool in turn. Its seconds in a
batch of b are its product with the *factors* (1, F_1, 1, F_2, …), F = l(b) / l(1) of a pool (LLMSched, Eq. 2). So
nothing has to be worked out again when the batch grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from llmsched.model.application import Application
from llmsched.model.job import Job, Stage
from llmsched.profiler.bins import Array
from llmsched.profiler.declared import DeclaredEstimator
from llmsched.profiler.history import Curves

#: Work of X that is as good as none, in seconds, so that information per second stays finite.
_LEAST = 1e-3


class Reduction(NamedTuple):
    """gain: (C,) bit seconds, R(X). cost: (C,) seconds that X itself is expected to take."""

    gain: tuple[float, ...]
    cost: tuple[float, ...]


def values(reductions: Sequence[Reduction], factors: Sequence[float], *, per_second: bool = False) -> Array:
    """(n,) R(X) in bit seconds, never negative; in bit seconds per second of X if asked for (A43)."""
    gains = np.maximum(weighed(np.array([r.gain for r in reductions]).T, factors), 0.0)
    if not per_second:
        return gains
    costs = np.maximum(weighed(np.array([r.cost for r in reductions]).T, factors), _LEAST)
    return gains / costs


def weighed(columns: Array, factors: Sequence[float]) -> Array:
    """(C, …) to (…): columns times factors, summed from the first to the last, so that equal ones have equal sums."""
    if not factors:
        return np.zeros(columns.shape[1:])
    total: Array = columns[0] * factors[0]
    for column, factor in zip(columns[1:], factors[1:], strict=True):
        total += column * factor
    return total


@dataclass(slots=True)
class Sight:
    """A job at one moment. Finished tasks are taken off, running ones count as if they had just begun.

    revision: of the job. pools: of the columns. parts: (n, 3, C), what each part is expected to need, and needs at
    least and at most. rows: stages that have a part of their own, all that are ready or run among them, and which.
    left: tasks that these still have to finish. is_apart: every stage that is not over has a part of its own.
    floor: (C,), what is left in any case; None: nothing.
    The rest is what a reduction rests on: the state of each column (`Evidence`), and a `Belief`.
    """

    revision: int
    pools: tuple[str, ...]
    parts: Array
    rows: dict[str, int]
    left: dict[str, float] = field(default_factory=dict)
    is_apart: bool = False
    floor: Array | None = None
    pattern: tuple[int, ...] = ()
    known: dict[int, int] = field(default_factory=dict)
    at_least: dict[int, int] = field(default_factory=dict)
    marginals: tuple[Array, ...] = ()


class Seer(Protocol):
    """Sees jobs of one application."""

    def see(self, job: Job, had: Mapping[str, float] | None = None) -> Sight:
        """had: of stages with running LLM tasks, the reference seconds these have been decoding (A32)."""
        ...

    def is_outlived(self, job: Job, sight: Sight, had: Mapping[str, float]) -> bool:
        """Whether the job would look different now that running LLM tasks have had so much (A32)."""
        ...

    def reduction(self, job: Job, stage: Stage, sight: Sight) -> Reduction:
        """R of a stage that is ready, in the columns of the sight."""
        ...


class DeclaredSeer:
    """Of an application nothing was learned of: declared means, without an interval, and nothing to find out."""

    def __init__(self, application: Application, curves: Curves) -> None:
        self._estimator = DeclaredEstimator(application, curves)

    def see(self, job: Job, had: Mapping[str, float] | None = None) -> Sight:
        left = self._estimator.remaining(job)
        pools = tuple(left)
        parts = np.zeros((len(pools), 3, 2 * len(pools)))
        for k, work in enumerate(left.values()):
            parts[k, :, 2 * k : 2 * k + 2] = work
        rows: dict[str, int] = {}
        tasks: dict[str, float] = {}
        for stage in job.stages.values():
            if stage.tasks is not None and not stage.is_over and stage.pool in pools:
                rows[stage.name] = pools.index(stage.pool)
                tasks[stage.name] = len(stage.tasks) - stage.done_tasks
        return Sight(job.revision, pools, parts, rows, tasks)

    def is_outlived(self, job: Job, sight: Sight, had: Mapping[str, float]) -> bool:
        return False

    def reduction(self, job: Job, stage: Stage, sight: Sight) -> Reduction:
        nothing = (0.0,) * sight.parts.shape[2]
        return Reduction(nothing, nothing)

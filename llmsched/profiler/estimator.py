"""What an estimator answers, and what every estimator can do.

An estimator turns what a job has shown so far into what it still has to do, **per pool**, in reference seconds: what
the work takes alone. Work of running tasks counts whole until they finish, unless it is said what they have had.
Policies make an order of it, the service an ETA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from llmsched.model.events import TaskRef
from llmsched.model.job import Job
from llmsched.profiler.history import Array


class Work(NamedTuple):
    """Reference seconds of one pool: `fixed` (prefill and regular work) does not depend on the batch, `decode` does."""

    fixed: float = 0.0
    decode: float = 0.0

    @property
    def total(self) -> float:
        """Seconds alone."""
        return self.fixed + self.decode

    def calibrated(self, factor: float) -> float:
        """Seconds at a batch size b with `factor` = l(b) / l(1). Source: LLMSched, Eq. 2."""
        return self.fixed + self.decode * factor


Remaining = Mapping[str, Work]
"""What is left, by pool; a pool that is not there has nothing left."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What may be left, as m weighted cases. weights: (m,), sum 1. fixed, decode: (m, pools), reference seconds."""

    pools: tuple[str, ...]
    weights: Array
    fixed: Array
    decode: Array

    @classmethod
    def certain(cls, left: Remaining) -> Outlook:
        """One case: this is left, and nothing else."""
        works = list(left.values())
        fixed, decode = np.array([[w.fixed for w in works]]), np.array([[w.decode for w in works]])
        return cls(tuple(left), np.ones(1), fixed, decode)

    def totals(self, pool: str | None = None, factor: float = 1.0) -> Array:
        """(m,) seconds left in a pool, or in all of them, with `factor` = l(b) / l(1) (LLMSched, Eq. 2)."""
        if pool is None:
            return np.asarray((self.fixed + factor * self.decode).sum(axis=1))
        if pool not in self.pools:
            return np.zeros(len(self.weights))
        k = self.pools.index(pool)
        return np.asarray(self.fixed[:, k] + factor * self.decode[:, k])

    def means(self) -> Remaining:
        """Expected work by pool."""
        fixed, decode = self.weights @ self.fixed, self.weights @ self.decode
        return {pool: Work(float(fixed[p]), float(decode[p])) for p, pool in enumerate(self.pools)}

    def quantiles(self, *levels: float, pool: str | None = None) -> tuple[float, ...]:
        """Seconds that are left with at most these probabilities."""
        left = self.totals(pool)
        order = np.argsort(left, kind="stable")
        reached = np.cumsum(self.weights[order])
        at = np.minimum(np.searchsorted(reached, np.array(levels) * reached[-1] - 1e-12), len(left) - 1)
        return tuple(left[order][at].tolist())


Running = Mapping[TaskRef, float]
"""Reference seconds of decoding or regular work that running tasks have had, as far as somebody knows."""


Predicted = Mapping[str, tuple[float, float]]
"""By LLM stage that is ready or runs: the mean log(1 + output tokens) of its tasks that a model predicts, and how far
off such predictions are (standard deviation)."""


class Estimator(Protocol):
    """Belief about jobs of one application. Deterministic; may remember answers, never changes the job.

    running: of tasks that run, what they have had so far; it is taken off, and a task is at least that long.
    """

    def remaining(self, job: Job, running: Running | None = None) -> Remaining:
        """Expected work that is left."""
        ...

    def outlook(self, job: Job, running: Running | None = None) -> Outlook:
        """Its distribution; the means are those of `remaining`, but for rounding."""
        ...

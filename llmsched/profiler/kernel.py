"""The `history` estimator: finished jobs that looked like this one at this point, weighted by how much they did.

The history is cut down to the jobs that took the same course. A ridge regression of what was left in each pool on what
was known by then gives every job one number per pool: what it looked like, its *index*. A running job weighs a finished
one by a Gaussian kernel of the distance between their indices:

    index = X beta                        ridge, lambda by generalised cross-validation, one beta per pool
    w_i  ~ exp(-sum_p ((index_ip - index_p) / h_p)^2 / 2),      h_p = 1.6 n^(-1/5) noise_p^0.4 sd_p^0.6

sd_p is the spread of the index, noise_p that of what the regression leaves unexplained: the less noise, the narrower
the kernel (the optimal rate of a local mean). The constant is half as large again as Silverman's 1.06: errors are the
same on every application, and orders by the whole distribution come out better on every split of the chains tried.

So the regression only decides what counts as alike; means, intervals and samples are those of real jobs and cannot
leave their range. Where nothing is informative the indices coincide, and what remains is the mean of the course.

Known at a point: the input's features, tasks and prompts of stages that run or ran, outputs of stages that are over.
A course is compiled when it is first met, which costs a millisecond or two; a job then costs some ten microseconds.
Sources: Nadaraya (1964) and Watson (1964) for the kernel; Golub, Heath and Wahba (1979) for lambda; Silverman (1986),
Fan and Gijbels (1996) for h.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from llmsched.profiler.cases import CasesEstimator, Course, Tables
from llmsched.profiler.evidence import ABSENT, OPEN, OVER, Evidence
from llmsched.profiler.history import OUTPUT, PROMPT, TASKS, Array

#: A course that fewer finished jobs took is widened to all of them.
_FEWEST = 10
#: A variant that fewer jobs had is no feature of its own.
_FEWEST_OF_VARIANT = 5
_WIDTH = 1.6
_LAMBDAS = np.logspace(-2, 5, 15)


class HistoryEstimator(CasesEstimator):
    """Belief as finished jobs, weighted by likeness."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        names = np.array(tables.history.variants)
        variants, counts = np.unique(names, return_counts=True)
        self._variants = [str(v) for v, n in zip(variants, counts, strict=True) if v and n >= _FEWEST_OF_VARIANT]
        #: (n, variants)
        self._is_variant = np.array([names == v for v in self._variants], dtype=float).reshape(-1, len(names)).T
        finite = np.isfinite(tables.history.numbers)
        self._numbers = np.where(finite, tables.history.numbers, tables.number_means)
        self._means: list[float] = tables.number_means.tolist()

    def course(self, pattern: tuple[int, ...]) -> Course:
        rows = consistent(self.tables, pattern)
        if len(rows) < _FEWEST:
            rows = np.arange(len(self.tables.history))
        return _Indexed(self.tables, pattern, rows, self._known(pattern, rows))

    def weigh(self, course: Course, evidence: Evidence) -> Array:
        assert isinstance(course, _Indexed)
        return course.weigh(np.array(self._shown(course, evidence)))

    def _known(self, pattern: tuple[int, ...], rows: npt.NDArray[np.intp]) -> Array:
        """(m, features), what was known of the rows when they were at this point."""
        costs = self.tables.history.costs
        columns = [costs[rows, k, cost][:, None] for k, cost in informative(pattern)]
        return np.hstack([self._is_variant[rows], self._numbers[rows], *columns])

    def _shown(self, course: _Indexed, evidence: Evidence) -> list[float]:
        """The same of a running job, in the same order."""
        shown = [float(evidence.variant == v) for v in self._variants]
        for number, mean in zip(evidence.numbers, self._means, strict=True):
            shown.append(mean if number != number else number)
        costs = evidence.costs
        shown += [costs[k][cost] for k, cost in course.informative]
        return shown


class _Indexed(Course):
    """A course with the index of every row."""

    def __init__(self, tables: Tables, pattern: tuple[int, ...], rows: npt.NDArray[np.intp], known: Array) -> None:
        super().__init__(tables, pattern, rows)
        self.informative = tuple(informative(pattern))
        self._centre = known.mean(axis=0)
        scale = known.std(axis=0)
        varies = scale > 1e-9 * (1.0 + np.abs(self._centre))
        self._scale = np.where(varies, scale, np.inf)  # what never varied says nothing
        z = (known - self._centre) / self._scale
        left = self.fixed + self.decode
        for k, each in self.tasks.items():
            tokens = each * tables.curves[tables.layout.columns[k].pool].decode(1) if tables.is_llm[k] else each
            left[:, tables.pool_of[k]] += tables.history.costs[rows, k, TASKS] * tokens
        self._beta = ridge(z, left - left.mean(axis=0))
        self._index = z @ self._beta
        noise = (left - left.mean(axis=0) - self._index).std(axis=0)
        width = _WIDTH * len(rows) ** -0.2 * noise**0.4 * self._index.std(axis=0) ** 0.6
        self._bandwidth = np.maximum(width, 1e-6 + 1e-3 * np.abs(left.mean(axis=0)))

    def weigh(self, shown: Array) -> Array:
        index = ((shown - self._centre) / self._scale) @ self._beta
        away = (self._index - index) / self._bandwidth
        squared = np.einsum("ij,ij->i", away, away)
        weights = np.exp(-0.5 * (squared - squared.min()))  # the nearest job always counts
        return np.asarray(weights / weights.sum())


def consistent(tables: Tables, pattern: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """Finished jobs that took this course: they ran what runs or is over, and did not run what will not."""
    fits = np.ones(len(tables.history), dtype=bool)
    for k, state in enumerate(pattern):
        if state in (OPEN, OVER):
            fits &= tables.ran[:, k]
        elif state == ABSENT:
            fits &= ~tables.ran[:, k]
    return np.flatnonzero(fits)


def ridge(z: Array, y: Array) -> Array:
    """Coefficients (features, targets) of centred targets on standardised features, each with its own lambda.

    lambda minimises GCV = RSS / (1 - dof / n)^2 over a grid, in the eigenbasis of Z'Z: O(n f^2) for all of them.
    """
    n = len(z)
    try:
        values, vectors = np.linalg.eigh(z.T @ z)
    except np.linalg.LinAlgError:  # nothing to go by: all jobs of the course count alike
        return np.zeros((z.shape[1], y.shape[1]))
    values = values.clip(0.0)
    projected = vectors.T @ (z.T @ y)
    shrink = 1.0 / (values[:, None] + _LAMBDAS)  # (f, lambdas)
    dof = 1.0 + (values[:, None] * shrink).sum(axis=0)
    beta = np.zeros((z.shape[1], y.shape[1]))
    for target in range(y.shape[1]):
        b = projected[:, target, None]
        rss = y[:, target] @ y[:, target] - (b**2 * shrink * (2.0 - values[:, None] * shrink)).sum(axis=0)
        gcv = np.where(dof < 0.9 * n, rss.clip(0.0) / (1.0 - np.minimum(dof / n, 0.999)) ** 2, np.inf)
        best = int(np.argmin(gcv)) if np.isfinite(gcv).any() else len(_LAMBDAS) - 1
        beta[:, target] = vectors @ (projected[:, target] * shrink[:, best])
    return beta


def informative(pattern: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Which costs of which columns are known at this point."""
    for k, state in enumerate(pattern):
        if state in (OPEN, OVER):
            yield k, TASKS
            yield k, PROMPT
        if state == OVER:
            yield k, OUTPUT

"""Gittins index of the work a job has left: the least expected investment per job that gets done.

    rank = min_k (w_1 x_1 + … + w_k x_k + (1 - W_k) x_k) / W_k,     W_k = w_1 + … + w_k

over the cases x_1 <= x_2 <= … of the outlook with their weights. It prefers jobs that *might* be over soon, so it
explores exactly where that is worth it, without randomness.
Source: Gittins (1979); Scully, Harchol-Balter, Scheller-Wolf (2018) for M/G/1; specification 1.9.
"""

from __future__ import annotations

import numpy as np

from llmsched.model.job import Stage
from llmsched.policies.base import View
from llmsched.policies.estimated import EstimatePolicy, Scope, checked_scope
from llmsched.profiler import Knowledge
from llmsched.profiler.history import Array

#: A chance of being over soon that is smaller than this is no reason to start a job: it is noise of a finite history.
LEAST_CHANCE = 0.1
#: Cases with less than this share of the largest weight cannot change a rank.
_NEGLIGIBLE = 1e-4


class Gittins(EstimatePolicy):
    """Smallest Gittins rank first. scope "pool": of the work in the pool the task is for; "total": of all of it."""

    key_name = "rank"

    def __init__(self, knowledge: Knowledge | None = None, estimator: str | None = None, scope: Scope = "pool") -> None:
        super().__init__(knowledge, estimator)
        self._scope = checked_scope(scope)

    def key(self, stage: Stage, view: View) -> float:
        outlook = self.outlook(stage.job)
        return gittins_rank(outlook.totals(stage.pool if self._scope == "pool" else None), outlook.weights)


def gittins_rank(left: Array, weights: Array | None = None) -> float:
    """The rank of a job with `left` seconds in each case, (m,), weights (m,) summing to 1 (default: alike).

    >>> gittins_rank(np.array([3.0, 3.0, 27.0, 27.0]))
    6.0
    >>> round(gittins_rank(np.array([5.0, 8.0, 10.0, 13.0])), 6)
    9.0
    """
    weights = np.full(len(left), 1.0 / len(left)) if weights is None else weights
    counts = weights > _NEGLIGIBLE * weights.max()
    x, w = left[counts], weights[counts]
    order = np.argsort(x, kind="stable")
    x, w = x[order], w[order] / w.sum()
    reached = np.cumsum(w)
    invested = np.cumsum(w * x) + (1.0 - reached).clip(0.0) * x
    first = min(int(np.searchsorted(reached, LEAST_CHANCE - 1e-9)), len(x) - 1)
    return float((invested[first:] / reached[first:]).min())

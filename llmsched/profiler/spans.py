"""What the states of each stage's variable mean in seconds, read off the history: on average, at least and at most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmsched.profiler.bayesnet import BayesEstimator
from llmsched.profiler.bins import Array, States
from llmsched.profiler.reading import Reading

_TAIL = np.zeros(1)


class Spans:
    """One row per stage, in the order of the network. C columns as in `sight.py`.

    variables, names, first: (rows,) its network variable, its name, the first column of the history that is its own.
    work: (n, rows, C) seconds in each finished job. rep: (rows, states, C) mean seconds in each state.
    bounds: (rows, first state, last state, 2, C) the least and the most seconds between two states; of a dynamic stage
    those of all its plans, whatever the states (A19).
    """

    def __init__(self, estimator: BayesEstimator, reading: Reading) -> None:
        stages, tables = estimator.stages, estimator.tables
        self._reading = reading
        self.variables = [v for v, variable in enumerate(stages.variables) if variable.is_stage]
        own = [stages.variables[v] for v in self.variables]
        self.names = [variable.name for variable in own]
        self.row_of = {name: row for row, name in enumerate(self.names)}
        self.first = [variable.at for variable in own]
        self.is_plan = [variable.role == "plan" for variable in own]
        self._is_regular = [variable.role == "regular" for variable in own]
        self.work = np.zeros((len(tables.history), len(own), 2 * len(tables.pools)))
        for row, first in enumerate(self.first):
            for k in estimator.columns[first]:
                at = 2 * tables.pool_of[k]
                is_scaled = reading.prefill == "scaled" and tables.is_llm[k]
                self.work[:, row, at + is_scaled] += tables.fixed[:, k]
                self.work[:, row, at + 1] += tables.decode[:, k]
        cards = [stages.network.cards[v] for v in self.variables]
        states = stages.states(tables.history)[:, self.variables]
        #: (rows,) the first and the last state that any finished job was in.
        self.seen = list(zip(states.min(axis=0).tolist(), states.max(axis=0).tolist(), strict=True))
        self.rep = np.zeros((len(own), max(cards), self.work.shape[2]))
        self.bounds = np.zeros((len(own), max(cards), max(cards), 2, self.work.shape[2]))
        for row in range(len(own)):
            self._fill(row, states[:, row])
        #: (rows, states) where the probability of a state stands in all marginals, one after the other, and a zero.
        ends = np.cumsum(cards)
        self._places: States = np.full((len(own), max(cards)), ends[-1])
        for row, card in enumerate(cards):
            self._places[row, :card] = ends[row] - card + np.arange(card)
        #: How many tasks a stage has on average when it runs, rounded up.
        counts = [tables.history.costs[:, list(estimator.columns[first]), 0].sum(axis=1) for first in self.first]
        self.tasks = [float(np.ceil(n[n > 0].mean() - 1e-9)) if n.any() else 1.0 for n in counts]

    def each(self, marginals: Sequence[Array]) -> Array:
        """(rows, 3, C): what each stage is expected to take, and at least and at most, given all marginals."""
        p = np.concatenate((*[marginals[v] for v in self.variables], _TAIL))[self._places]
        if self._reading.interval == "remaining":
            first, last = _above(p, self._reading.theta)
        else:
            first, last = _central(p, 0.5 if self._reading.interval == "iqr" else 0.9)
        each = np.empty((len(p), 3, self.rep.shape[2]))
        each[:, 0] = (p[:, None] @ self.rep)[:, 0]
        each[:, 1:] = self.bounds[np.arange(len(p)), first, last]
        return each

    def range(self, row: int, p: Array) -> Array:
        """(C,) Range(Y) of Eq. 6 under the distribution p (states,) (A17 to A19)."""
        if self.is_plan[row]:
            first = last = 0
        elif self._reading.range == "std":
            states = np.arange(len(p))
            middle = self.bounds[row, states, states].mean(axis=1)
            deviation: Array = np.sqrt(np.maximum(p @ middle**2 - (p @ middle) ** 2, 0.0))
            return deviation
        elif self._reading.range == "prior":
            first, last = self.seen[row]
        else:
            some = _above(p[None], self._reading.theta) if self._reading.range == "theta" else _central(p[None], 0.9)
            first, last = (int(state[0]) for state in some)
        span: Array = self.bounds[row, first, last, 1] - self.bounds[row, first, last, 0]
        return span

    def _fill(self, row: int, states: States) -> None:
        work = self.work[:, row]
        low, high = np.zeros(self.rep.shape[1:]), np.zeros(self.rep.shape[1:])
        for state in np.unique(states).tolist():
            own = work[states == state]
            low[state], high[state], mean = own.min(axis=0), own.max(axis=0), own.mean(axis=0)
            if self._is_regular[row] and self._reading.range_regular == "mean":
                low[state] = high[state] = mean
            self.rep[row, state] = mean if self._reading.rep == "mean" else (low[state] + high[state]) / 2
        for first in range(len(low)):
            self.bounds[row, first, first:, 0] = np.minimum.accumulate(low[first:], axis=0)
            self.bounds[row, first, first:, 1] = np.maximum.accumulate(high[first:], axis=0)
        if self.is_plan[row]:
            tail = 0.05 if self._reading.range_dynamic == "q05_q95" else 0.0
            self.bounds[row] = extremes(work, tail)


def extremes(work: Array, tail: float = 0.0) -> Array:
    """(2, C): the least and the most of the rows of work (n, C) by their sum, less a share of them at either end."""
    order = np.argsort(work.sum(axis=1), kind="stable")
    skipped = round(tail * (len(order) - 1))
    least_and_most: Array = work[[order[skipped], order[-1 - skipped]]]
    return least_and_most


def _above(p: Array, theta: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """First and last state with P >= theta in each row of p (rows, states); the likeliest one where there is none."""
    there = p >= np.minimum(theta, p.max(axis=1, keepdims=True))
    return there.argmax(axis=1), p.shape[1] - 1 - there[:, ::-1].argmax(axis=1)


def _central(p: Array, mass: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The states in which the central `mass` of each row of p (rows, states) begins and ends (`central_interval`)."""
    below = p.cumsum(axis=1)
    tail = (1 - mass) / 2 * below[:, -1:]
    first = (below > tail + 1e-12).argmax(axis=1)
    last = (below >= below[:, -1:] - tail - 1e-12).argmax(axis=1)
    return np.minimum(first, last), last

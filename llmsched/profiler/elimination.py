"""What one component of a network says to its evidence: summed out exactly, or weighed by samples.

A component has open variables and evidence about them; a question to it is one row of *digits*, the states of its
frontier and then of its bounds. Many questions are answered together, along the first axis of every table.

**Elimination.** Variables are eliminated in the order of the smallest next table. Eliminating v from the product psi
of the factors that hold it leaves p(v | s) = psi / m with m(s) = sum_v psi, where s are later variables. Read
backwards, these are a Bayesian network of the posterior: marginals run down it, samples are drawn along it, and what is
left of m at the end is the probability of the evidence. (Shafer-Shenoy on the bucket tree; Dechter 1999.)

**Likelihood weighting**, for where a table of the elimination would be too large: 4,000 samples, seeded with the
question itself, so that an answer never depends on what was asked before.

Nothing is remembered here. Which questions are put, in which of the two ways they are answered, and what becomes of
impossible ones is decided in `inference`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from llmsched.profiler.bins import Array, States
from llmsched.profiler.network import Network

_SAMPLES = 4000
_SEED = 0x11A5


class Signature(NamedTuple):
    """What a component is: its open variables, and of these and the known ones those that are evidence. Ascending."""

    variables: tuple[int, ...]
    frontier: tuple[int, ...]
    bounded: tuple[int, ...]


class Factor(NamedTuple):
    """A table over open variables, one for each combination of states of some evidence.

    scope: its open variables. columns, strides: where that evidence stands in a question, and the step it makes in
    `tables`, (combinations, card of each of scope ...).
    """

    scope: tuple[int, ...]
    columns: States
    strides: States
    tables: Array


class _Step(NamedTuple):
    """The elimination of one variable, the last axis of its table.

    scope: the table's variables; shape: their cards. factors: tables to multiply, reshaped to it. messages: the steps
    whose sums go in, with their shapes. parent: the step that gets the sum, -1 for the last one. summed: the axes of
    the parent's table to sum over for what the two have in common.
    """

    scope: tuple[int, ...]
    shape: tuple[int, ...]
    factors: tuple[Factor, ...]
    messages: tuple[tuple[int, tuple[int, ...]], ...]
    parent: int
    summed: tuple[int, ...]


class Elimination:
    """The steps that sum the variables out, `kept` last; axes stand in reverse order of elimination.

    With `kept`, the steps stop before them and the rest is one table over them.
    """

    def __init__(
        self, factors: Sequence[Factor], variables: Sequence[int], cards: Sequence[int], kept: tuple[int, ...] = ()
    ) -> None:
        gone = _order([f.scope for f in factors], [v for v in variables if v not in kept], cards)
        position = {v: k for k, v in enumerate((*gone, *reversed(kept)))}
        scopes: list[tuple[int, ...]] = []
        inputs: list[list[Factor]] = [[] for _ in range(len(gone) + 1)]
        senders: list[list[int]] = [[] for _ in range(len(gone) + 1)]
        receiver: list[int] = []
        for factor in factors:
            # The table of the kept variables is the last step, whichever of them comes first.
            inputs[min(len(gone), *(position[v] for v in factor.scope))].append(factor)
        for k, v in enumerate(gone):
            parts = [f.scope for f in inputs[k]] + [scopes[i][:-1] for i in senders[k]]
            scope = sorted({u for part in parts for u in part} | {v}, key=position.__getitem__, reverse=True)
            scopes.append(tuple(scope))
            receiver.append(min(len(gone), position[scope[-2]]) if len(scope) > 1 else -1)
            if receiver[k] >= 0:
                senders[receiver[k]].append(k)
        scopes.append(tuple(kept))
        #: Numbers in the largest table, and in all of them together.
        sizes = [prod(cards[v] for v in scope) for scope in scopes]
        self.largest, self.work = max(sizes), sum(sizes)
        self._places = np.cumsum([0, *(cards[v] for v in variables)])
        self._variables = tuple(variables)
        self._steps: list[_Step] = []
        for k, scope_k in enumerate(scopes):
            separator = scope_k[:-1]
            parent = receiver[k] if k < len(gone) else -1
            summed = tuple(1 + i for i, u in enumerate(scopes[parent]) if u not in separator) if parent >= 0 else ()
            messages = tuple((i, _spread(scopes[i][:-1], scope_k, cards)) for i in senders[k])
            tables = tuple(_aligned(factor, scope_k, cards) for factor in inputs[k])
            shape = tuple(cards[u] for u in scope_k)
            self._steps.append(_Step(scope_k, shape, tables, messages, parent, summed))
        self._last = self._steps.pop()

    def marginals(self, digits: States) -> tuple[Array, Array]:
        """(questions, sum of cards) marginals side by side, and (questions,) the probability of the evidence."""
        conditionals, _, mass = self._forward(digits)
        rows = np.empty((len(digits), self._places[-1]))
        beliefs = list(conditionals)
        for k in reversed(range(len(self._steps))):
            step = self._steps[k]
            if step.parent >= 0:
                separator = beliefs[step.parent].sum(step.summed) if step.summed else beliefs[step.parent]
                beliefs[k] = conditionals[k] * separator[..., None]
            place = self._variables.index(step.scope[-1])
            axes = tuple(range(1, len(step.scope)))
            rows[:, self._places[place] : self._places[place + 1]] = beliefs[k].sum(axes) if axes else beliefs[k]
        return rows, mass

    def joint(self, digits: States) -> Array | None:
        """P(kept | the one question); None if it is impossible."""
        _, messages, mass = self._forward(digits)
        table = np.ones(self._last.shape)
        for part in (*self._tables(self._last, digits), *(messages[i].reshape(s) for i, s in self._last.messages)):
            table = table * part[0]
        total = float(table.sum())
        return table / total if total * mass[0] > 0 else None

    def draw(self, digits: States, states: States, rng: np.random.Generator) -> bool:
        """Draw every variable, the last eliminated first, into its column of `states`; False if impossible."""
        conditionals, _, mass = self._forward(digits)
        if not mass[0] > 0:
            return False
        for step, conditional in zip(reversed(self._steps), reversed(conditionals), strict=True):
            tables = conditional[0][tuple(states[:, u] for u in step.scope[:-1])]
            tables = np.broadcast_to(tables, (len(states), step.shape[-1]))
            states[:, step.scope[-1]] = _choose(tables, tables.sum(1), rng)
        return True

    def _forward(self, digits: States) -> tuple[list[Array], list[Array], Array]:
        """p(v | separator) and the message of each step, and the product of the messages that go nowhere."""
        conditionals: list[Array] = []
        messages: list[Array] = []
        mass = np.ones(len(digits))
        for step in self._steps:
            psi = np.ones((len(digits), *step.shape))
            for table in self._tables(step, digits):
                psi *= table
            for i, shape in step.messages:
                psi *= messages[i].reshape(shape)
            message = psi.sum(-1)
            conditionals.append(
                np.divide(psi, message[..., None], out=np.zeros_like(psi), where=message[..., None] > 0)
            )
            messages.append(message)
            if step.parent < 0:
                mass = mass * message
        return conditionals, messages, mass

    @staticmethod
    def _tables(step: _Step, digits: States) -> Iterable[Array]:
        for factor in step.factors:
            yield factor.tables[digits[:, factor.columns] @ factor.strides] if len(factor.columns) else factor.tables


class Weighted(NamedTuple):
    """What likelihood weighting gives: (samples,) states of every variable, and (samples,) weights that sum to one.

    variables: the open ones. cards: of all variables of the network.
    """

    variables: tuple[int, ...]
    cards: Sequence[int]
    states: dict[int, States]
    weights: Array

    def marginals(self) -> Array:
        """(sum of cards,) marginals of the open variables side by side."""
        return np.concatenate([np.bincount(self.states[v], self.weights, self.cards[v]) for v in self.variables])

    def joint(self, kept: Sequence[int]) -> Array:
        """P(kept), (card of each kept variable ...)."""
        table = np.zeros([self.cards[v] for v in kept])
        np.add.at(table, tuple(self.states[v] for v in kept), self.weights)
        return table

    def draw(self, states: States, rng: np.random.Generator) -> None:
        """Draw every open variable into its column of `states`."""
        chosen = rng.choice(len(self.weights), size=len(states), p=self.weights)
        for v in self.variables:
            states[:, v] = self.states[v][chosen]


def weigh(network: Network, signature: Signature, question: States) -> Weighted | None:
    """Likelihood weighting of one question, (evidence,) digits; None if no sample is possible.

    A variable is drawn from its table without the states below its bound, and the weight pays for what was cut.
    """
    digits = [int(digit) for digit in question]
    rng = np.random.default_rng([_SEED, *signature.variables, *digits])
    states = {v: np.full(_SAMPLES, s) for v, s in zip(signature.frontier, digits, strict=False)}
    lowest = dict(zip(signature.bounded, digits[len(signature.frontier) :], strict=True))
    weights = np.ones(_SAMPLES)
    for v in sorted((*signature.variables, *signature.frontier)):
        parents = network.parents[v]
        if v in states:
            if any(p in signature.variables for p in parents):
                weights = weights * network.cpts[v][tuple(states[u] for u in (*parents, v))]
            continue
        table = np.broadcast_to(network.cpts[v][tuple(states[p] for p in parents)], (_SAMPLES, network.cards[v]))
        table = np.where(np.arange(table.shape[1]) >= lowest.get(v, 0), table, 0.0)
        mass = table.sum(1)
        weights = weights * mass
        states[v] = _choose(table, mass, rng)
    total = weights.sum()
    return Weighted(signature.variables, network.cards, states, weights / total) if total > 0 else None


def factors_of(network: Network, signature: Signature) -> list[Factor]:
    """The tables that hold an open variable, split by the known ones in them, and one 0/1 table per bound."""
    column = {v: k for k, v in enumerate((*signature.frontier, *signature.bounded))}
    factors: list[Factor] = []
    for v, parents in enumerate(network.parents):
        family = (*parents, v)
        scope = tuple(u for u in family if u in signature.variables)
        if not scope:
            continue
        known = tuple(u for u in family if u not in scope)
        tables = network.cpts[v].transpose([family.index(u) for u in (*known, *scope)])
        tables = tables.reshape(-1, *(network.cards[u] for u in scope))
        strides = [prod(network.cards[u] for u in known[k + 1 :]) for k in range(len(known))]
        factors.append(Factor(scope, _indices([column[u] for u in known]), _indices(strides), tables))
    for v in signature.bounded:
        at_least = np.triu(np.ones((network.cards[v], network.cards[v])))
        factors.append(Factor((v,), _indices([column[v]]), _indices([1]), at_least))
    return factors


def _order(scopes: Sequence[tuple[int, ...]], variables: Sequence[int], cards: Sequence[int]) -> list[int]:
    """Which variable to eliminate next: the one that leaves the smallest table, the latest among equals."""
    left = [set(scope) for scope in scopes]
    order: list[int] = []
    todo = list(reversed(variables))

    def together(v: int) -> set[int]:
        return {v}.union(*(scope for scope in left if v in scope))

    while todo:
        v = min(todo, key=lambda u: prod(cards[w] for w in together(u)))
        left = [*(scope for scope in left if v not in scope), together(v) - {v}]
        todo.remove(v)
        order.append(v)
    return order


def _spread(scope: Sequence[int], target: Sequence[int], cards: Sequence[int]) -> tuple[int, ...]:
    """The shape in which a table over `scope`, a subsequence of `target`, can be multiplied into one over `target`."""
    return (-1, *(cards[u] if u in scope else 1 for u in target))


def _aligned(factor: Factor, target: Sequence[int], cards: Sequence[int]) -> Factor:
    axes = sorted(range(len(factor.scope)), key=lambda i: list(target).index(factor.scope[i]))
    tables = factor.tables.transpose(0, *(1 + i for i in axes)).reshape(_spread(factor.scope, target, cards))
    return factor._replace(tables=np.ascontiguousarray(tables))


def _choose(tables: Array, mass: Array, rng: np.random.Generator) -> States:
    """One state per row of (n, card) weights that sum to `mass` (n,)."""
    drawn = rng.random(len(tables)) * mass
    states: States = (np.cumsum(tables, axis=1) <= drawn[:, None]).sum(1)
    # Rounding may put a draw beyond the last sum: then it is the last state that is possible at all.
    last = tables.shape[1] - 1 - (tables[:, ::-1] > 0).argmax(1)
    chosen: States = np.minimum(states, last)
    return chosen


def _indices(values: Sequence[int]) -> States:
    return np.array(values, np.intp)

"""Exact posteriors of a Bayesian network, fast enough to be asked at every decision.

Evidence is `known`, variable -> its state, and `at_least`, variable -> the lowest state it can still have (1: it
executes; s: it already took longer than every state below s). A variable in both is known.

**Components.** Given the known variables, the others fall into groups that share no table P(own | parents): the
*components*. They are independent, and of the known variables only the *frontier* of a component matters to it, the
ones that stand in a table with one of its members. Everything else is d-separated from it and left out, so that a
component has few distinct questions, however much is known elsewhere.

**Compiled once per pattern, answered once per question.** Which variables are known and which are bounded is a
*pattern*; it decides the components and the order of elimination. A component numbers its questions by the states of
its frontier and bounds. If they are few, the first question answers all of them at once and keeps one dense table;
otherwise answers are kept one by one. When more than `max_entries` answers are kept, all are dropped.

How one question is answered is told in `elimination`: exactly, or by likelihood weighting where a table would exceed
`max_factor` numbers.

**Impossible evidence** (probability 0) never raises. Constraints are dropped until it is possible: first every bound of
the component, then the known variables of its frontier, the earliest one first, whose own state stays as given.
`impossible` counts the answers this happened to. They are not kept, because they depend on more than the frontier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

import numpy as np

from llmsched.errors import ProfileError
from llmsched.profiler.bins import Array, States
from llmsched.profiler.elimination import Elimination, Signature, Weighted, factors_of, weigh
from llmsched.profiler.network import Network

Evidence = Mapping[int, int]

NONE: Evidence = {}

#: A component whose questions are at most so many is answered densely, if that takes at most so many multiplications.
_DENSE_ROWS, _DENSE_WORK = 4096, 1 << 17
#: Questions answered at once never make a table larger than this many numbers.
_BATCH = 1 << 20
_PATTERNS = 10_000


class Inference:
    """Posteriors of one network, with the memory that makes repeated questions cheap.

    Arrays it returns may be parts of that memory and are read-only.
    """

    def __init__(self, network: Network, *, max_entries: int = 20_000, max_factor: int = 200_000) -> None:
        self.network = network
        #: How often constraints were dropped because the evidence had probability 0.
        self.impossible = 0
        self._max_entries, self._max_factor = max_entries, max_factor
        self._entries = 0
        self._numbers: dict[object, float] = {}
        self._plans: dict[tuple[frozenset[int], frozenset[int]], _Plan] = {}
        self._components: dict[Signature, _Component] = {}
        self._points: list[tuple[Array, ...]] = [tuple(_frozen(np.eye(card))) for card in network.cards]

    def marginals(self, known: Evidence = NONE, at_least: Evidence = NONE) -> tuple[Array, ...]:
        """P(v | evidence) of every variable, (card of v,) each; a known one is 1 at its state."""
        plan = self._plan(known, at_least)
        answer: list[Array] = list(plan.blank)
        for v, state in known.items():
            answer[v] = self._point(v, state)
        for component in plan.components:
            row = self._row(component, component.question(known, at_least), known, at_least)
            for v, start, end in component.slots:
                answer[v] = row[start:end]
        return tuple(answer)

    def marginals_many(self, questions: Sequence[tuple[Evidence, Evidence]]) -> list[tuple[Array, ...]]:
        """`marginals` of many (known, at_least), computed together where they are of one pattern."""
        for component, asked in self._missing(questions).items():
            self._answer(component, sorted(asked))
        return [self.marginals(known, at_least) for known, at_least in questions]

    def joint(self, variables: Sequence[int], known: Evidence = NONE, at_least: Evidence = NONE) -> Array:
        """P(variables | evidence), one axis per variable in the order given; of a known one all but one state are 0.

        Without a limit of its own: the caller sees to it that the product of the cards is one it can afford.
        """
        plan = self._plan(known, at_least)
        result = np.ones(())
        order: list[int] = []
        for component in plan.components:
            kept = [v for v in component.variables if v in variables]
            if kept:
                result = np.multiply.outer(result, self._joint(component, kept, known, at_least))
                order += kept
        for v in variables:
            if v in known:
                result = np.multiply.outer(result, self._point(v, known[v]))
                order.append(v)
        return result.transpose([order.index(v) for v in variables])

    def sample(self, n: int, known: Evidence, at_least: Evidence, rng: np.random.Generator) -> States:
        """`n` independent draws of all variables given the evidence: (n, n_variables) states."""
        states = np.empty((n, len(self.network)), np.intp)
        for v, state in known.items():
            states[:, v] = state
        for component in self._plan(known, at_least).components:
            self._draw(component, states, known, at_least, rng)
        return states

    def context(self, v: int, known: Evidence = NONE, at_least: Evidence = NONE) -> tuple[tuple[int, ...], Key | None]:
        """The open variables that can depend on the open variable `v`, itself included, and a key of what they know.

        Equal keys mean equal posteriors of all of them. None where there is no such key: the evidence is impossible.
        """
        for component in self._plan(known, at_least).components:
            if v in component.variables:
                question = component.question(known, at_least)
                row = self._find(component, question)
                return component.variables, None if row is None else Key(component.signature, question)
        raise ProfileError(f"{self.network.names[v]} is known already")

    def remembered(self, key: object, compute: Callable[[], float]) -> float:
        """A number derived from answers, computed once per key and kept as long as they are; never with None as key.

        The key must hold all that the number depends on, evidence as `context` gives it.
        """
        if key is None:
            return compute()
        number = self._numbers.get(key)
        if number is None:
            number = compute()
            if len(self._numbers) >= self._max_entries:
                self._numbers.clear()
            self._numbers[key] = number
        return number

    def clear(self) -> None:
        """Forget every answer."""
        self._entries = 0
        self._plans.clear()
        self._components.clear()
        self._numbers.clear()

    def _point(self, v: int, state: int) -> Array:
        points = self._points[v]
        if not 0 <= state < len(points):
            raise ProfileError(f"{self.network.names[v]} has no state {state}, only 0 to {len(points) - 1}")
        return points[state]

    def _plan(self, known: Evidence, at_least: Evidence) -> _Plan:
        pattern = (frozenset(known), frozenset(at_least))
        plan = self._plans.get(pattern)
        if plan is None:
            if len(self._plans) >= _PATTERNS:
                self.clear()
            plan = self._plans[pattern] = self._compile(*pattern)
        return plan

    def _compile(self, known: frozenset[int], at_least: frozenset[int]) -> _Plan:
        if not all(0 <= v < len(self.network) for v in known | at_least):
            raise ProfileError(f"evidence about a variable that is none of the {len(self.network)} of the network")
        components: list[_Component] = []
        for signature in _signatures(self.network, known, at_least - known):
            component = self._components.get(signature)
            if component is None:
                component = self._components[signature] = _Component(self.network, signature, self._max_factor)
            components.append(component)
        return _Plan(tuple(point[0] for point in self._points), tuple(components))

    def _row(self, component: _Component, question: int, known: Evidence, at_least: Evidence) -> Array:
        row = self._find(component, question)
        if row is not None:
            return row
        self.impossible += 1
        marginals = self.marginals(*_relaxed(component, known, at_least))
        return np.concatenate([marginals[v] for v in component.variables])

    def _find(self, component: _Component, question: int) -> Array | None:
        """The answer to one question, computed if need be; None if its evidence is impossible."""
        row = component.answers.get(question, _UNASKED)
        if row is _UNASKED:
            self._answer(component, range(component.questions) if component.is_dense else [question])
            row = component.answers[question]
        return row

    def _answer(self, component: _Component, questions: Sequence[int]) -> None:
        if self._entries + len(questions) > self._max_entries:
            # The plans hold the components, and these their answers. The one being filled lives on with its caller.
            self.clear()
        self._entries += len(questions)
        component.fill(questions)

    def _missing(self, questions: Sequence[tuple[Evidence, Evidence]]) -> dict[_Component, set[int]]:
        missing: dict[_Component, set[int]] = {}
        for known, at_least in questions:
            for component in self._plan(known, at_least).components:
                question = component.question(known, at_least)
                if not component.is_dense and question not in component.answers:
                    missing.setdefault(component, set()).add(question)
        return missing

    def _joint(self, component: _Component, kept: list[int], known: Evidence, at_least: Evidence) -> Array:
        table = component.joint(component.question(known, at_least), kept)
        if table is None:
            self.impossible += 1
            return self.joint(kept, *_relaxed(component, known, at_least))
        return table

    def _draw(
        self, component: _Component, states: States, known: Evidence, at_least: Evidence, rng: np.random.Generator
    ) -> None:
        if component.draw(component.question(known, at_least), states, rng):
            return
        self.impossible += 1
        drawn = self.sample(len(states), *_relaxed(component, known, at_least), rng)
        states[:, component.variables] = drawn[:, component.variables]


class Key(NamedTuple):
    """All that the posterior of a component depends on."""

    signature: Signature
    question: int

    @property
    def numbers(self) -> tuple[int, ...]:
        """The key in numbers, to seed a generator with."""
        return (*self.signature.variables, *self.signature.frontier, *self.signature.bounded, self.question)


class _Plan(NamedTuple):
    """What a pattern of evidence comes to. blank: a placeholder per variable, to be overwritten."""

    blank: tuple[Array, ...]
    components: tuple[_Component, ...]


_UNASKED: Array = np.empty(0)


class _Component:
    """Open variables that depend on each other, compiled for one frontier and one set of bounds."""

    def __init__(self, network: Network, signature: Signature, max_factor: int) -> None:
        self.signature = signature
        self.variables = signature.variables
        cards = network.cards
        ends = list(accumulate(cards[v] for v in self.variables))
        #: Where the marginal of each variable lies in an answer: (variable, start, end).
        self.slots = tuple((v, end - cards[v], end) for v, end in zip(self.variables, ends, strict=True))
        #: Question -> marginals of all variables in a row; None where the evidence is impossible.
        self.answers: dict[int, Array | None] = {}
        evidence = (*signature.frontier, *signature.bounded)
        #: A question is one number: mixed radix over the states of the evidence, the last one fastest.
        self._radix = tuple(cards[v] for v in evidence)
        self.questions = prod(self._radix)
        self._known = tuple((v, cards[v], network.names[v]) for v in signature.frontier)
        self._bounds = tuple((v, cards[v]) for v in signature.bounded)
        self._network, self._max_factor = network, max_factor
        self._factors = factors_of(network, signature)
        self._elimination = Elimination(self._factors, self.variables, cards)
        self._joints: dict[tuple[int, ...], Elimination] = {}
        self._is_exact = self._elimination.largest <= max_factor
        self.is_dense = (
            self._is_exact and self.questions <= _DENSE_ROWS and self.questions * self._elimination.work <= _DENSE_WORK
        )

    def question(self, known: Evidence, at_least: Evidence) -> int:
        """The number of a question. A bound beyond the last state counts as the last state."""
        number = 0
        for v, card, name in self._known:
            state = known[v]
            if not 0 <= state < card:
                raise ProfileError(f"{name} has no state {state}, only 0 to {card - 1}")
            number = number * card + state
        for v, card in self._bounds:
            lowest = at_least[v]
            number = number * card + (lowest if 0 <= lowest < card else card - 1 if lowest > 0 else 0)
        return number

    def fill(self, questions: Sequence[int]) -> None:
        """Answer questions into `answers`."""
        if not self._is_exact:
            for question in questions:
                weighted = self._weighted(question)
                self.answers[question] = None if weighted is None else _frozen(weighted.marginals())
            return
        step = max(1, _BATCH // self._elimination.largest)
        for start in range(0, len(questions), step):
            chunk = questions[start : start + step]
            rows, mass = self._elimination.marginals(self._digits(chunk))
            _frozen(rows)
            self.answers |= {q: row if m > 0 else None for q, row, m in zip(chunk, rows, mass, strict=True)}

    def joint(self, question: int, kept: Sequence[int]) -> Array | None:
        """P(kept | question), (card of each kept variable ...), ascending; None if impossible."""
        key = tuple(kept)
        elimination = self._joints.get(key)
        if elimination is None:
            elimination = self._joints[key] = Elimination(self._factors, self.variables, self._network.cards, key)
        if elimination.largest <= max(self._max_factor, prod(self._network.cards[v] for v in kept)):
            return elimination.joint(self._digits([question]))
        weighted = self._weighted(question)
        return None if weighted is None else weighted.joint(kept)

    def draw(self, question: int, states: States, rng: np.random.Generator) -> bool:
        """Fill the columns of this component with draws; False, and nothing drawn, if the question is impossible."""
        if self._is_exact:
            return self._elimination.draw(self._digits([question]), states, rng)
        if (weighted := self._weighted(question)) is None:
            return False
        weighted.draw(states, rng)
        return True

    def _weighted(self, question: int) -> Weighted | None:
        return weigh(self._network, self.signature, self._digits([question])[0])

    def _digits(self, questions: Iterable[int]) -> States:
        """(questions, evidence): the states that the numbers stand for."""
        numbers = np.fromiter(questions, np.int64 if self.questions < 1 << 62 else object)
        digits = np.empty((len(numbers), len(self._radix)), np.intp)
        for k in reversed(range(len(self._radix))):
            digits[:, k] = numbers % self._radix[k]
            numbers = numbers // self._radix[k]
        return digits


def _signatures(network: Network, known: frozenset[int], bounded: frozenset[int]) -> list[Signature]:
    """The components that the known variables leave, by their first variable."""
    group = list(range(len(network)))
    families = [(*parents, v) for v, parents in enumerate(network.parents)]
    for family in families:
        open_ = [u for u in family if u not in known]
        joined = {group[u] for u in open_}
        group = [min(joined) if g in joined else g for g in group]
    members: dict[int, list[int]] = {}
    for v in range(len(network)):
        if v not in known:
            members.setdefault(group[v], []).append(v)
    return [
        Signature(
            tuple(variables),
            tuple(sorted({u for f in families if not set(variables).isdisjoint(f) for u in f if u in known})),
            tuple(v for v in variables if v in bounded),
        )
        for variables in members.values()
    ]


def _relaxed(component: _Component, known: Evidence, at_least: Evidence) -> tuple[Evidence, Evidence]:
    """Less evidence, after that of a component turned out to be impossible."""
    if component.signature.bounded:
        return known, {v: s for v, s in at_least.items() if v not in component.signature.bounded}
    first = component.signature.frontier[0]
    return {v: s for v, s in known.items() if v != first}, at_least


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array

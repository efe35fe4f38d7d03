"""Bayesian networks over a few discrete variables: what they are, and how they are learned.

The variables stand in the order in which their stages can run, and every arc points forward in it (A2). So the order
is topological, an arc can never be reversed, and a decomposable score splits into one search per variable.

Learning is greedy hill climbing with at most `max_parents` parents (the paper: pyAgrum, score-based). Two learners walk
the same path and give the same arcs:

* "pyagrum", the default: `pyagrum.BNLearner`. It reads its rows from a file and from nothing else (handed a DataFrame,
  it writes two temporary files and leaves them behind), so the rows go through a scratch directory that
  `numpy.lib.npyio.DataSource` makes and removes. It is held to one thread.
* "numpy": the same search and score in this module, without a file. It stands in where no file can be written.

The score is pyAgrum's: log2 of the likelihood of smoothed counts, less the number of free parameters ("aic") or less
half of it times log2 of the rows ("bic"). Its AIC so charges ln 2 = 0.69 of what the textbook's does, which compares
nats. Tables are counted here in either case, with `smoothing` added to each count, which are pyAgrum's own to 1e-12.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib.npyio import DataSource

from llmsched.errors import ProfileError
from llmsched.profiler.bins import Array, States

with warnings.catch_warnings():
    # The types that SWIG makes warn on import; where warnings are errors, the interpreter crashes on them.
    warnings.simplefilter("ignore", DeprecationWarning)
    import pyagrum

#: Its constructors have no types.
_gum: Any = pyagrum

Score = Literal["aic", "bic"]
Learner = Literal["pyagrum", "numpy"]
Structure = Literal["search", "template", "independent"]
Parents = tuple[tuple[int, ...], ...]

#: A move must gain more than rounding does.
_GAIN = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A discrete Bayesian network in topological order.

    cards: states per variable. parents: of each variable, ascending, all before it. cpts: of each variable, the table
    P(own | parents), shape (card of each parent ..., own card), whose last axis sums to one within 1e-9.
    Raises ProfileError, with one sentence, for anything else.
    """

    names: tuple[str, ...]
    cards: tuple[int, ...]
    parents: Parents
    cpts: tuple[Array, ...]

    def __post_init__(self) -> None:
        if fault := _fault(self):
            raise ProfileError(f"network: {fault}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def arcs(self) -> tuple[tuple[int, int], ...]:
        """(parent, child) of every arc, by child."""
        return tuple((parent, child) for child, parents in enumerate(self.parents) for parent in parents)

    def to_json(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "cards": list(self.cards),
            "parents": [list(parents) for parents in self.parents],
            "cpts": [cpt.tolist() for cpt in self.cpts],
        }

    @classmethod
    def from_json(cls, document: Any) -> Network:
        """Read what `to_json` wrote. Raises ProfileError."""
        if not isinstance(document, Mapping):
            raise ProfileError("a network is a JSON object with names, cards, parents and cpts")
        for key in ("names", "cards", "parents", "cpts"):
            if not isinstance(document.get(key), list):
                raise ProfileError(f"network: {key} must be a list", field=key)
        try:
            return cls(
                names=tuple(str(name) for name in document["names"]),
                cards=tuple(int(card) for card in document["cards"]),
                parents=tuple(tuple(int(parent) for parent in parents) for parents in document["parents"]),
                cpts=tuple(np.array(cpt, np.float64) for cpt in document["cpts"]),
            )
        except (TypeError, ValueError):
            raise ProfileError("network: cards and parents must be whole numbers, cpts nested lists of them") from None


def learn(
    states: npt.ArrayLike,
    names: Sequence[str],
    cards: Sequence[int],
    *,
    slices: Sequence[int] | None = None,
    roots: Iterable[int] = (),
    forbidden: Iterable[tuple[int, int]] = (),
    structure: Structure = "search",
    template: Iterable[tuple[int, int]] = (),
    score: Score = "aic",
    max_parents: int = 2,
    smoothing: float = 0.1,
    learner: Learner = "pyagrum",
) -> Network:
    """The network that explains `states` (n_rows, n_variables) best; a row is a finished job.

    slices: (n_variables,) never falling; arcs run only from one slice to a later one. Without it every variable is a
    slice of its own. roots: variables that get no parents. forbidden: arcs (from, to) that are never drawn.
    structure: "search"; "template" draws the arcs of `template` instead, the best `max_parents` where a variable has
    more; "independent" draws none. smoothing: added to each count, so that an unseen case stays possible.

    Raises ProfileError if there are no rows, a state is out of range or an argument makes no sense.
    """
    rows = _rows(states, names, cards)
    slices = range(len(cards)) if slices is None else slices
    if len(slices) != len(cards) or any(a > b for a, b in pairwise(slices)):
        raise ProfileError("slices must give every variable a number, and never fall")
    if score not in ("aic", "bic") or smoothing < 0 or max_parents < 0:
        raise ProfileError(f"cannot learn with score {score!r}, smoothing {smoothing:g}, {max_parents} parents at most")
    barred, no_parents = set(forbidden), set(roots)
    allowed: Parents = tuple(
        tuple(p for p in range(v) if slices[p] < slices[v] and (p, v) not in barred and v not in no_parents)
        for v in range(len(cards))
    )
    scorer = _Scorer(rows, tuple(cards), score, smoothing)
    match structure:
        case "independent":
            parents: Parents = tuple(() for _ in cards)
        case "template":
            wanted = set(template)
            kept = [[p for p in allowed[v] if (p, v) in wanted] for v in range(len(cards))]
            parents = tuple(scorer.strongest(v, kept[v], max_parents) for v in range(len(cards)))
        case "search":
            # A variable with one state has nothing to tell or to be told.
            open_ = tuple(tuple(p for p in allowed[v] if cards[p] > 1 and cards[v] > 1) for v in range(len(cards)))
            found = (
                _climb_with_pyagrum(rows, cards, open_, score, max_parents, smoothing) if learner == "pyagrum" else None
            )
            parents = found or tuple(scorer.climb(v, open_[v], max_parents) for v in range(len(cards)))
    return fit(rows, names, cards, parents, smoothing=smoothing)


def fit(
    states: npt.ArrayLike, names: Sequence[str], cards: Sequence[int], parents: Parents, *, smoothing: float = 0.1
) -> Network:
    """The tables of a given structure: (count + smoothing) / total; uniform where that is 0 / 0."""
    rows = _rows(states, names, cards)
    tables = []
    for v, own_parents in enumerate(parents):
        counts = _counts(rows, cards, v, own_parents) + smoothing
        totals = counts.sum(-1, keepdims=True)
        table = np.divide(counts, totals, out=np.full(counts.shape, 1 / cards[v]), where=totals > 0)
        tables.append(table.reshape(*(cards[p] for p in own_parents), cards[v]))
    return Network(tuple(names), tuple(cards), parents, tuple(tables))


def log_likelihood(network: Network, states: npt.ArrayLike) -> float:
    """log2 of the probability that the network gives to all rows (n_rows, n_variables); minus infinity if none.

    For comparing networks over the same variables on rows that neither has seen.
    """
    rows = _rows(states, network.names, network.cards)
    total = 0.0
    for v, parents in enumerate(network.parents):
        p = network.cpts[v][tuple(rows[:, u] for u in (*parents, v))]
        with np.errstate(divide="ignore"):
            total += float(np.log2(p).sum())
    return total


def network_score(network: Network, states: npt.ArrayLike, *, score: Score = "aic", smoothing: float = 0.1) -> float:
    """The score of a structure on rows, as the learners see it: in bits, the higher the better."""
    scorer = _Scorer(_rows(states, network.names, network.cards), network.cards, score, smoothing)
    return sum(scorer.score(v, parents) for v, parents in enumerate(network.parents))


class _Scorer:
    """Scores of parent sets, and the search over them, variable by variable."""

    def __init__(self, rows: States, cards: tuple[int, ...], score: Score, smoothing: float) -> None:
        self._rows, self._cards, self._smoothing = rows, cards, smoothing
        self._score = score

    def score(self, v: int, parents: tuple[int, ...]) -> float:
        counts = _counts(self._rows, self._cards, v, parents) + self._smoothing
        totals = counts.sum(-1)
        free = len(totals) * (self._cards[v] - 1)
        price = 1.0 if self._score == "aic" else 0.5 * float(np.log2(totals.sum()))
        return _n_log_n(counts) - _n_log_n(totals) - price * free

    def climb(self, v: int, allowed: tuple[int, ...], most: int) -> tuple[int, ...]:
        """Add or remove the one parent that gains most, until nothing gains. Ties go to the earliest variable."""
        parents: tuple[int, ...] = ()
        best = self.score(v, parents)
        while True:
            moves = [tuple(p for p in parents if p != out) for out in parents]
            if len(parents) < most:
                moves += [tuple(sorted((*parents, p))) for p in allowed if p not in parents]
            scored = [(self.score(v, move), move) for move in moves]
            top, move = max(scored, key=lambda pair: pair[0], default=(-np.inf, parents))
            if top <= best + _GAIN:
                return parents
            best, parents = top, move

    def strongest(self, v: int, wanted: list[int], most: int) -> tuple[int, ...]:
        """The wanted parents; where they are more than `most`, those that score best, added one by one."""
        parents: tuple[int, ...] = ()
        if len(wanted) <= most:
            return tuple(wanted)
        while len(parents) < most:
            moves = [tuple(sorted((*parents, p))) for p in wanted if p not in parents]
            parents = max(moves, key=lambda move: self.score(v, move))
        return parents


def _climb_with_pyagrum(
    rows: States, cards: Sequence[int], allowed: Parents, score: Score, most: int, smoothing: float
) -> Parents | None:
    """What pyAgrum finds; None where there is no disk to hand it the rows on."""
    names = [f"v{v}" for v in range(len(cards))]
    template = _gum.BayesNet()
    for name, card in zip(names, cards, strict=True):
        template.add(_gum.LabelizedVariable(name, name, card))
    try:
        scratch = DataSource(None)  # removes its directory when it goes
        path = scratch.abspath("rows.csv")
        np.savetxt(path, rows, fmt="%d", delimiter=",", header=",".join(names), comments="")
    except OSError:
        return None
    learner = _gum.BNLearner(path, template)
    learner.setNumberOfThreads(1)
    learner.useGreedyHillClimbing()
    learner.setMaxIndegree(most)
    learner.setSliceOrder([[name] for name in names])
    if score == "aic":
        learner.useScoreAIC()
    else:
        learner.useScoreBIC()
    if smoothing > 0:
        learner.useSmoothingPrior(smoothing)
    else:
        learner.useNoPrior()
    for child, parents in enumerate(allowed):
        for parent in range(child):
            if parent not in parents:
                learner.addForbiddenArc(names[parent], names[child])
    dag = learner.learnDAG()
    return tuple(tuple(sorted(dag.parents(v))) for v in range(len(cards)))


def _counts(rows: States, cards: Sequence[int], v: int, parents: tuple[int, ...]) -> Array:
    """(combinations of parent states, own card): how often each was seen."""
    cases = np.zeros(len(rows), np.intp)
    size = 1
    for u in (*parents, v):
        cases = cases * cards[u] + rows[:, u]
        size *= cards[u]
    return np.bincount(cases, minlength=size).reshape(-1, cards[v]).astype(np.float64)


def _n_log_n(counts: Array) -> float:
    positive = counts[counts > 0]
    return float((positive * np.log2(positive)).sum())


def _rows(states: npt.ArrayLike, names: Sequence[str], cards: Sequence[int]) -> States:
    rows = np.asarray(states)
    if rows.ndim != 2 or rows.shape[1] != len(cards) or len(names) != len(cards) or not len(rows):
        raise ProfileError(f"states must be rows of {len(cards)} variables, at least one, not of shape {rows.shape}")
    if not np.issubdtype(rows.dtype, np.integer) or (rows < 0).any() or (rows >= np.asarray(cards)).any():
        raise ProfileError("states must be whole numbers from 0 up to the card of their variable")
    return rows.astype(np.intp, copy=False)


def _fault(network: Network) -> str | None:
    names, n = network.names, len(network.names)
    if not n == len(network.cards) == len(network.parents) == len(network.cpts):
        return "every variable needs a name, a card, its parents and a table"
    if len(set(names)) < n:
        return "two variables have the same name"
    for v, name in enumerate(names):
        parents, cpt = network.parents[v], network.cpts[v]
        if network.cards[v] < 1:
            return f"{name} has no state"
        if list(parents) != sorted(set(parents)) or any(not 0 <= p < v for p in parents):
            return f"the parents of {name} must come before it, each once and in order"
        if cpt.shape != (*(network.cards[p] for p in parents), network.cards[v]):
            return f"the table of {name} has shape {cpt.shape}"
        if not ((cpt >= 0).all() and np.allclose(cpt.sum(-1), 1, rtol=0, atol=1e-9)):
            return f"the table of {name} holds something that is not a distribution"
    return None

"""How much one stage tells about others: entropies and mutual information in bits, and the ranges that weigh them.

Equations of LLMSched (arXiv:2504.03444), section IV:

    (1) correlated(u, v): a directed path from u to v                  `descendants`
    (3) H(X) = -sum p log2 p, with 0 log 0 = 0                         `entropy`
    (4) H(X) = sum_c H(I_c) + sum_e H(I_e) of a dynamic stage          `dynamic_entropy`
    (5) I(Y; X) = sum p(x, y) log2 (p(x, y) / (p(x) p(y)))             `mutual_information`
    (6) R(X) = I(Y_1 ... Y_M; X | E) * sum_m Range(Y_m)                `joint_mutual_information`, `support_range`

The paper prints (5) with a minus sign in front, which would make it negative and turn the order around (A12).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

from llmsched.errors import ProfileError
from llmsched.profiler.inference import NONE, Evidence, Inference, Key
from llmsched.profiler.network import Network

Mode = Literal["joint", "pairwise_sum", "montecarlo"]
RangeOf = Literal["theta", "q05_q95", "prior", "std"]

_SEED = 0x1A13


def entropy(p: npt.ArrayLike) -> float:
    """Eq. 3: the entropy of a distribution of any shape, in bits.

    >>> entropy([0.5, 0.25, 0.25, 0.0])
    1.5
    """
    q = np.asarray(p, np.float64)
    q = q[q > 0]
    return max(0.0, -float((q * np.log2(q)).sum()))


def binary_entropy(p: float) -> float:
    """The entropy of something that is so with probability `p`, in bits.

    >>> binary_entropy(0.5), binary_entropy(1.0)
    (1.0, 0.0)
    """
    return entropy((p, 1 - p))


def dynamic_entropy(p_candidates: Iterable[float], p_edges: Iterable[float]) -> float:
    """Eq. 4: what is open about the plan of a dynamic stage, in bits.

    p_candidates: of each candidate, the share of plans that hold it; p_edges: of each pair of candidates, the share of
    plans with an edge between them. Candidates and edges count as independent.
    """
    return sum(map(binary_entropy, (*p_candidates, *p_edges)))


def mutual_information(joint: npt.ArrayLike) -> float:
    """Eq. 5: what the last variable tells about the others together, in bits.

    joint: (states of Y ..., states of X), non-negative, sums to one. Zero if and only if X and Y are independent.
    Raises ProfileError if `joint` does not sum to one within 1e-9.

    >>> mutual_information([[0.5, 0.0], [0.0, 0.5]])
    1.0
    """
    p = np.asarray(joint, np.float64)
    p = p.reshape(-1, p.shape[-1])
    total = float(p.sum())
    if not abs(total - 1) <= 1e-9 or (p < 0).any():
        raise ProfileError(f"a joint distribution must sum to one, not to {total!r}, without negative parts")
    independent = np.multiply.outer(p.sum(1), p.sum(0))
    there = p > 0
    information = float((p[there] * np.log2(p[there] / independent[there])).sum())
    assert information >= -1e-9, f"mutual information of {information} bits"
    return max(0.0, information)


def children(network: Network, x: int) -> tuple[int, ...]:
    """The variables that an arc from `x` leads to, ascending (A1: corr=arc)."""
    return tuple(v for v, parents in enumerate(network.parents) if x in parents)


def descendants(network: Network, x: int) -> tuple[int, ...]:
    """Eq. 1: the variables that a directed path from `x` leads to, ascending."""
    found = {x}
    for v in range(x + 1, len(network)):
        if not found.isdisjoint(network.parents[v]):
            found.add(v)
    return tuple(sorted(found - {x}))


def dependents(
    network: Network, x: int, known: Collection[int] = (), at_least: Collection[int] = ()
) -> tuple[int, ...]:
    """The open variables that are not d-separated from `x`, ascending (A1: corr=dependents).

    known: variables whose state is known; at_least: variables with a bound, which stay open but are informed about,
    and so let information pass between their parents. Source: the "Bayes ball" of Shachter (1998).
    """
    informed = {*known, *at_least}
    for v in reversed(range(len(network))):
        if v in informed:
            informed |= set(network.parents[v])
    # A ball from a child goes on to parents and children, unless the variable is known. One from a parent goes on to
    # children, and bounces back to the parents where the variable or a descendant of it is informed about.
    seen: set[tuple[int, bool]] = set()
    balls = [(x, True)]
    while balls:
        v, is_from_child = ball = balls.pop()
        if ball in seen:
            continue
        seen.add(ball)
        if v not in known:
            balls += ((child, False) for child in children(network, v))
        if (v not in known) if is_from_child else (v in informed):
            balls += ((parent, True) for parent in network.parents[v])
    return tuple(sorted({v for v, _ in seen} - {x, *known}))


def joint_mutual_information(
    inference: Inference,
    ys: Iterable[int],
    x: int,
    known: Evidence = NONE,
    at_least: Evidence = NONE,
    *,
    limit: int = 20_000,
    mode: Mode = "joint",
    samples: int = 2000,
) -> float:
    """I(Y_1 ... Y_M; X | E) in bits: the first factor of Eq. 6. Known variables tell and are told nothing.

    "joint" is exact while the states of X and all Y together are at most `limit` (A14). Beyond, it is the information
    about some of the Y, which is a lower bound: those with the largest I(Y_m; X | E) that fit, children of X first.
    "pairwise_sum" adds I(Y_m; X | E), so counts twice what several Y have in common (A13). "montecarlo" is exact under
    the limit too; beyond, the mean of H(X | E) - H(X | E, y) over `samples` draws of y, seeded with the question.

    Numbers are remembered in `inference`.
    """
    if x in known:
        return 0.0
    # What is not in the component of x is independent of it and of everything in it.
    component, key = inference.context(x, known, at_least)
    open_ys = tuple(sorted(y for y in {*ys} - {x} if y in component))
    question = _Question(inference, open_ys, x, known, at_least, key)
    if not open_ys or inference.network.cards[x] == 1:
        return 0.0

    def compute() -> float:
        if mode == "pairwise_sum":
            return sum(map(question.pairwise, open_ys))
        if question.size(open_ys) <= limit:
            return question.exact(open_ys)
        return question.sampled(samples) if mode == "montecarlo" else question.exact(question.best(limit))

    return inference.remembered(None if key is None else (key, open_ys, x, limit, mode, samples), compute)


def central_interval(
    p: npt.ArrayLike, lo: Sequence[float], hi: Sequence[float], mass: float = 0.9
) -> tuple[float, float]:
    """From the lo of the (1 - mass) / 2 quantile's state to the hi of the opposite one's, in the unit of `lo`.

    p, lo, hi: (n_states,), states in ascending order. It holds at least `mass` of the probability.

    >>> central_interval([0.04, 0.5, 0.43, 0.03], [0, 1, 5, 9], [0, 4, 8, 20])
    (1.0, 8.0)
    """
    below = np.cumsum(np.asarray(p, np.float64))
    tail = (1 - mass) / 2 * below[-1]
    first = int(np.searchsorted(below, tail + 1e-12, side="right"))
    last = int(np.searchsorted(below, below[-1] - tail - 1e-12, side="left"))
    first = min(first, last)
    return float(lo[first]), float(hi[last])


def support_range(
    p: npt.ArrayLike, lo: Sequence[float], hi: Sequence[float], theta: float = 0.02, how: RangeOf = "theta"
) -> float:
    """Range(Y) of Eq. 6 in the unit of `lo`: the width of what is still possible (A17).

    "theta": of the states with P >= `theta`, for smoothing makes every state possible; "q05_q95": of the central 90 %;
    "prior": of all states, whatever `p` says; "std": the standard deviation over the middles of the states.

    >>> support_range([0.01, 0.5, 0.48, 0.01], [0, 1, 5, 9], [0, 4, 8, 20])
    7.0
    """
    q, low, high = (np.asarray(values, np.float64) for values in (p, lo, hi))
    match how:
        case "theta":
            there = q >= min(theta, q.max())
            return float(high[there].max() - low[there].min())
        case "q05_q95":
            first, last = central_interval(q, lo, hi)
            return last - first
        case "prior":
            return float(high.max() - low.min())
        case "std":
            middle = (low + high) / 2
            return float(np.sqrt(q @ (middle - q @ middle) ** 2))


class _Question:
    """I(Y; X | E) for several sets Y."""

    def __init__(
        self, inference: Inference, ys: tuple[int, ...], x: int, known: Evidence, at_least: Evidence, key: Key | None
    ) -> None:
        self._inference, self._ys, self._x = inference, ys, x
        self._known, self._at_least, self._key = known, at_least, key

    def size(self, ys: Iterable[int]) -> int:
        cards = self._inference.network.cards
        return prod(cards[y] for y in ys) * cards[self._x]

    def exact(self, ys: Sequence[int]) -> float:
        return mutual_information(self._inference.joint([*ys, self._x], self._known, self._at_least))

    def pairwise(self, y: int) -> float:
        return self.exact([y])

    def best(self, limit: int) -> tuple[int, ...]:
        own = children(self._inference.network, self._x)
        chosen: tuple[int, ...] = ()
        for y in sorted(self._ys, key=lambda y: (y not in own, -self.pairwise(y), y)):
            if self.size((*chosen, y)) <= limit:
                chosen = (*chosen, y)
        return tuple(sorted(chosen))

    def sampled(self, samples: int) -> float:
        rng = np.random.default_rng([_SEED, self._x, *self._ys, *(self._key.numbers if self._key else ())])
        draws = self._inference.sample(samples, self._known, self._at_least, rng)[:, list(self._ys)]
        seen, counts = np.unique(draws, axis=0, return_counts=True)
        questions = [({**self._known, **dict(zip(self._ys, ys, strict=True))}, self._at_least) for ys in seen.tolist()]
        left = [entropy(p[self._x]) for p in self._inference.marginals_many(questions)]
        before = entropy(self._inference.marginals(self._known, self._at_least)[self._x])
        return max(0.0, before - float(counts @ np.array(left)) / samples)

"""Entropy, mutual information and ranges: the numbers of the specification, and pyAgrum's on random networks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from llmsched.errors import ProfileError
from llmsched.profiler.inference import Inference
from llmsched.profiler.information import (
    binary_entropy,
    central_interval,
    children,
    dependents,
    descendants,
    dynamic_entropy,
    entropy,
    joint_mutual_information,
    mutual_information,
    support_range,
)
from llmsched.profiler.network import Network, pyagrum  # imported there without its warnings

gum: Any = pyagrum
Rng = np.random.Generator

LO, HI = (0.0, 1.0, 5.0, 9.0), (0.0, 4.0, 8.0, 20.0)


def network(parents: tuple[tuple[int, ...], ...], cards: tuple[int, ...], seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    cpts = (rng.dirichlet(np.ones(card), [cards[p] for p in own]) for card, own in zip(cards, parents, strict=True))
    return Network(tuple(f"s{v}" for v in range(len(cards))), cards, parents, tuple(cpts))


def random_network(rng: Rng, n: int = 7) -> Network:
    parents = [tuple(sorted(map(int, rng.choice(v, min(v, int(rng.integers(0, 3))), replace=False)))) for v in range(n)]
    return network(tuple(parents), tuple(int(c) for c in rng.integers(2, 4, n)), int(rng.integers(1000)))


def spec_chain() -> Network:
    """X -> Y -> Z of the specification: uniform X, P(Y = x | X = x) = 0.75, any P(Z | Y)."""
    turn = np.array([[0.75, 0.25], [0.25, 0.75]])
    cpts = (np.array([0.5, 0.5]), turn, np.array([[0.9, 0.1], [0.3, 0.7]]))
    return Network(("X", "Y", "Z"), (2, 2, 2), ((), (0,), (1,)), cpts)


def in_pyagrum(net: Network) -> Any:
    theirs = gum.BayesNet()
    for name, card in zip(net.names, net.cards, strict=True):
        theirs.add(gum.LabelizedVariable(name, name, card))
    for parent, child in net.arcs:
        theirs.addArc(net.names[parent], net.names[child])
    for v, name in enumerate(net.names):
        axes = [net.names.index(n) for n in reversed(theirs.cpt(name).names)]
        family = [*net.parents[v], v]
        theirs.cpt(name).fillWith(net.cpts[v].transpose([family.index(u) for u in axes]).ravel().tolist())
    return theirs


def test_entropy_counts_in_bits_and_zero_log_zero_is_zero() -> None:
    assert entropy([0.25] * 4) == 2
    assert entropy([0, 1, 0]) == 0
    assert entropy(np.full((2, 4), 1 / 8)) == 3
    assert binary_entropy(0.75) == pytest.approx(0.811278, abs=1e-6)


def test_a_plan_is_as_open_as_its_candidates_and_edges() -> None:
    """The planner of the paper's Fig. 2: three candidates and one edge, each in every second plan, are 4 bits."""
    assert dynamic_entropy([0.5, 0.5, 0.5], [0.5]) == 4
    assert dynamic_entropy([1.0, 0.0], []) == 0


def test_independent_variables_tell_nothing() -> None:
    assert mutual_information(np.outer([0.2, 0.8], [0.3, 0.3, 0.4])) == pytest.approx(0, abs=1e-15)


def test_several_variables_are_told_about_together() -> None:
    """X = Y1 xor Y2: neither alone says anything about X, both say it all."""
    joint = np.zeros((2, 2, 2))
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        joint[a, b, a ^ b] = 0.25

    assert mutual_information(joint) == 1
    assert mutual_information(joint.sum(0)) == 0


def test_what_is_no_distribution_is_refused() -> None:
    with pytest.raises(ProfileError, match="sum to one"):
        mutual_information([[0.5, 0.0], [0.0, 0.4]])
    with pytest.raises(ProfileError, match="negative"):
        mutual_information([[1.5, -0.5]])


def test_the_chain_of_the_specification() -> None:
    inference = Inference(spec_chain())

    assert joint_mutual_information(inference, [1], 0) == pytest.approx(0.188722, abs=1e-6)
    assert joint_mutual_information(inference, [1, 2], 0) == pytest.approx(0.188722, abs=1e-6)


def test_known_stages_tell_nothing_and_are_told_nothing() -> None:
    inference = Inference(spec_chain())

    assert joint_mutual_information(inference, [1, 2], 0, {0: 1}) == 0
    assert joint_mutual_information(inference, [1, 2], 0, {1: 1}) == 0
    assert joint_mutual_information(inference, [0, 1], 2, {0: 1}) == joint_mutual_information(inference, [1], 2, {0: 1})
    assert joint_mutual_information(inference, [0], 0) == 0


def test_a_stage_that_must_execute_tells_less() -> None:
    """X >= 1 leaves X one state: there is nothing left to learn from it (A15)."""
    inference = Inference(spec_chain())

    assert joint_mutual_information(inference, [1, 2], 0, {}, {0: 1}) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_information_agrees_with_pyagrum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    net = random_network(rng)
    theirs = in_pyagrum(net)
    x, y1, y2, soft, hard = (int(v) for v in rng.permutation(len(net))[:5])
    known, at_least = {hard: 0}, {soft: 1}
    bound = [float(s >= 1) for s in range(net.cards[soft])]

    # An engine that served one InformationTheory has failed in the next: each gets a fresh one.
    engine = gum.LazyPropagation(theirs)
    engine.setEvidence({net.names[hard]: 0, net.names[soft]: bound})
    names = {net.names[y1], net.names[y2]}
    expected = gum.InformationTheory(engine, names, {net.names[x]}).mutualInformationXY()
    engine = gum.LazyPropagation(theirs)
    engine.setEvidence({net.names[hard]: 0, net.names[soft]: bound})
    expected_entropy = engine.H(net.names[x])

    inference = Inference(net)
    assert joint_mutual_information(inference, [y1, y2], x, known, at_least) == pytest.approx(expected, abs=1e-9)
    assert entropy(inference.marginals(known, at_least)[x]) == pytest.approx(expected_entropy, abs=1e-9)


def test_what_does_not_fit_is_a_lower_bound() -> None:
    """X with six children of three states: 3 * 3 ** 6 = 2187 states in all, of which 100 hold X and three children."""
    net = network(((), *((0,),) * 6), (3,) * 7, seed=3)
    ys = range(1, 7)
    single = {y: joint_mutual_information(Inference(net), [y], 0) for y in ys}
    best = sorted(single, key=lambda y: -single[y])[:3]

    exact = joint_mutual_information(Inference(net), ys, 0)
    bound = joint_mutual_information(Inference(net), ys, 0, limit=100)

    assert bound == joint_mutual_information(Inference(net), best, 0)
    assert max(single.values()) < bound < exact
    assert joint_mutual_information(Inference(net), ys, 0, mode="pairwise_sum") == pytest.approx(sum(single.values()))
    assert exact < sum(single.values())


def test_children_come_first_under_a_limit() -> None:
    """X -> C -> D where C is noise and D, over the arc X -> D, a copy of X: only the child C was asked for first."""
    noise, copy = np.full((2, 2), 0.5), np.eye(2)
    net = Network(("X", "C", "E", "D"), (2, 2, 2, 2), ((), (0,), (0,), (2,)), (np.array([0.5, 0.5]), noise, copy, copy))

    assert joint_mutual_information(Inference(net), [1, 3], 0, limit=4) == 0
    assert joint_mutual_information(Inference(net), [1, 3], 0, limit=8) == 1


def test_sampled_information_is_near_the_exact_one() -> None:
    """H(X | y) lies within [0, log2 3]: 4 standard errors of 2,000 draws are below 4 * 0.8 / sqrt(2000) = 0.07."""
    net = network(((), *((0,),) * 6), (3,) * 7, seed=4)
    exact = joint_mutual_information(Inference(net), range(1, 7), 0)

    first, second = (
        joint_mutual_information(Inference(net), range(1, 7), 0, limit=100, mode="montecarlo") for _ in range(2)
    )

    assert first == pytest.approx(exact, abs=0.07)
    assert first == second


def test_numbers_are_remembered_by_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    inference = Inference(network(((), (0,), (1,), (2,)), (2, 2, 3, 2)))
    number = joint_mutual_information(inference, [3], 2, {0: 0, 1: 1})

    monkeypatch.setattr(inference, "joint", None)

    assert joint_mutual_information(inference, [3], 2, {0: 1, 1: 1}) == number


def test_what_is_correlated_with_a_stage() -> None:
    """0 -> 1 -> 3 <- 2 and 3 -> 4: 0 and 2 depend on each other once something is known of 3, or of 4 after it."""
    net = network(((), (0,), (), (1, 2), (3,)), (2,) * 5)

    assert children(net, 0) == (1,)
    assert descendants(net, 0) == (1, 3, 4)
    assert descendants(net, 4) == ()
    assert dependents(net, 0) == (1, 3, 4)
    assert dependents(net, 0, known=[4]) == (1, 2, 3)
    assert dependents(net, 0, at_least=[4]) == (1, 2, 3, 4)
    assert dependents(net, 0, known=[1]) == ()


@pytest.mark.parametrize("seed", range(5))
def test_dependents_agree_with_d_separation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    net = random_network(rng, n=9)
    theirs = in_pyagrum(net)
    for _ in range(5):
        x, *known = (int(v) for v in rng.permutation(9)[:3])

        expected = [v for v in range(9) if v not in (x, *known) and not theirs.isIndependent(v, x, set(known))]

        assert dependents(net, x, known) == tuple(expected)


def test_a_central_interval_leaves_out_the_tails() -> None:
    assert central_interval([0.04, 0.5, 0.43, 0.03], LO, HI) == (1, 8)
    assert central_interval([0.06, 0.5, 0.38, 0.06], LO, HI) == (0, 20)
    assert central_interval([0, 0, 1, 0], LO, HI) == (5, 8)
    assert central_interval([0.05, 0.9, 0.05, 0], LO, HI) == (1, 4)
    assert central_interval([0.25, 0.25, 0.25, 0.25], LO, HI, mass=0.5) == (1, 8)
    assert central_interval([1.0], [0.0], [0.0]) == (0, 0)


def test_a_range_is_the_width_of_what_is_still_possible() -> None:
    """Middles 0, 2.5, 6.5, 14.5: half at 2.5 and half at 6.5 deviate by 2."""
    p = [0.01, 0.5, 0.48, 0.01]

    assert support_range(p, LO, HI) == 7
    assert support_range(p, LO, HI, theta=0.001) == 20
    assert support_range(p, LO, HI, how="q05_q95") == 7
    assert support_range(p, LO, HI, how="prior") == 20
    assert support_range([0, 0.5, 0.5, 0], LO, HI, how="std") == 2
    assert support_range([1, 0, 0, 0], LO, HI) == 0


def test_a_range_shrinks_as_stages_finish() -> None:
    inference = Inference(network(((), (0,), (1,)), (4, 4, 4), seed=7))
    widths = [support_range(inference.marginals(known)[2], LO, HI, theta=0.2) for known in ({}, {0: 2}, {1: 2}, {2: 2})]

    assert widths[-1] == 3
    assert all(a >= b for a, b in pairwise(widths[1:]))

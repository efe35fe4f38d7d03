"""Posteriors, joints and samples: by hand on small chains, against pyAgrum on random networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmsched.errors import ProfileError
from llmsched.profiler.inference import Inference
from llmsched.profiler.network import Network, pyagrum  # imported there without its warnings

gum: Any = pyagrum
Rng = np.random.Generator


def random_network(rng: Rng, n: int = 8, most: int = 3, zeros: float = 0.0) -> Network:
    cards = tuple(int(c) for c in rng.integers(1, 5, n))
    parents = tuple(
        tuple(sorted(rng.choice(v, min(v, int(rng.integers(0, most + 1))), replace=False))) for v in range(n)
    )
    cpts = []
    for v in range(n):
        table = rng.dirichlet(np.ones(cards[v]), [cards[p] for p in parents[v]])
        table = np.where(rng.random(table.shape) < zeros, 0.0, table) + 1e-12 * (zeros == 0)
        table[table.sum(-1) == 0] = 1.0
        cpts.append(table / table.sum(-1, keepdims=True))
    names = tuple(f"s{v}" for v in range(n))
    return Network(names, cards, tuple(tuple(int(p) for p in ps) for ps in parents), tuple(cpts))


def random_evidence(rng: Rng, network: Network) -> tuple[dict[int, int], dict[int, int]]:
    known, at_least = {}, {}
    for v, card in enumerate(network.cards):
        match rng.integers(0, 4):
            case 0:
                known[v] = int(rng.integers(card))
            case 1:
                at_least[v] = int(rng.integers(card))
    return known, at_least


def in_pyagrum(network: Network) -> Any:
    net = gum.BayesNet()
    for name, card in zip(network.names, network.cards, strict=True):
        net.add(gum.LabelizedVariable(name, name, card))
    for parent, child in network.arcs:
        net.addArc(network.names[parent], network.names[child])
    for v, name in enumerate(network.names):
        tensor = net.cpt(name)
        axes = [network.names.index(n) for n in reversed(tensor.names)]  # toarray() reverses them
        family = [*network.parents[v], v]
        tensor.fillWith(network.cpts[v].transpose([family.index(u) for u in axes]).ravel().tolist())
    return net


def asked_of_pyagrum(network: Network, known: dict[int, int], at_least: dict[int, int]) -> Any:
    engine = gum.LazyPropagation(in_pyagrum(network))
    bounds = {v: [float(s >= low) for s in range(network.cards[v])] for v, low in at_least.items()}
    engine.setEvidence({network.names[v]: e for v, e in {**bounds, **known}.items()})
    return engine


def chain(n: int = 3, keep: float = 0.75) -> Network:
    """X -> Y -> Z ..., two states each, uniform X; each keeps the state of the one before with probability `keep`."""
    turn = np.array([[keep, 1 - keep], [1 - keep, keep]])
    parents = ((), *((v,) for v in range(n - 1)))
    return Network(
        tuple("XYZABCDEFGHIJKLMNOPQRSTUVW"[:n]), (2,) * n, parents, (np.array([0.5, 0.5]), *(turn,) * (n - 1))
    )


def grid(side: int) -> Network:
    """A grid of two-state variables: no order of elimination keeps its tables below 2 ** side numbers."""
    rng = np.random.default_rng(5)
    parents = [
        tuple(p for p, there in ((v - side, v >= side), (v - 1, v % side > 0)) if there) for v in range(side * side)
    ]
    cpts = tuple(rng.dirichlet((2.0, 2.0), (2,) * len(own)) for own in parents)
    return Network(tuple(f"g{v}" for v in range(side * side)), (2,) * (side * side), tuple(parents), cpts)


def close(a: npt.ArrayLike, b: npt.ArrayLike, tolerance: float = 1e-9) -> bool:
    return np.allclose(a, b, rtol=0, atol=tolerance)


def test_evidence_moves_what_comes_later_and_what_came_before() -> None:
    x, y, z = Inference(chain()).marginals({1: 0})

    assert close(x, [0.75, 0.25])
    assert y.tolist() == [1, 0]
    assert close(z, [0.75, 0.25])


def test_a_bound_rules_out_lower_states_only() -> None:
    """P(Y) = 1/2, 1/2; Y >= 1 leaves Y = 1, so P(Z = 1) = 3/4. A bound of 0 says nothing."""
    inference = Inference(chain())

    assert close(inference.marginals({}, {1: 1})[2], [0.25, 0.75])
    assert close(inference.marginals({}, {1: 0})[2], [0.5, 0.5])


def test_a_known_variable_needs_no_bound() -> None:
    inference = Inference(chain())

    assert close(inference.marginals({1: 0}, {1: 1})[2], inference.marginals({1: 0})[2])
    assert inference.impossible == 0


def test_a_bound_beyond_the_last_state_is_the_last_state() -> None:
    assert close(Inference(chain()).marginals({}, {1: 7})[2], [0.25, 0.75])


@pytest.mark.parametrize("seed", range(12))
def test_marginals_agree_with_pyagrum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    network = random_network(rng)
    inference = Inference(network)
    for _ in range(6):
        known, at_least = random_evidence(rng, network)
        engine = asked_of_pyagrum(network, known, at_least)

        for v, p in enumerate(inference.marginals(known, at_least)):
            theirs = engine.posterior(v).sumIn([network.names[v]])  # variables of one state may come uninvited
            assert close(p, theirs.toarray()), (known, at_least, v)


@pytest.mark.parametrize("seed", range(8))
def test_joints_agree_with_pyagrum(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    network = random_network(rng)
    inference = Inference(network)
    for _ in range(4):
        known, at_least = random_evidence(rng, network)
        variables = [int(v) for v in rng.permutation(len(network))[:3]]
        engine = asked_of_pyagrum(network, known, at_least)
        engine.addJointTarget({network.names[v] for v in variables})

        # It may return more variables than it was asked for.
        theirs = engine.jointPosterior({network.names[v] for v in variables}).sumIn(
            [network.names[v] for v in variables]
        )
        axes = [network.names.index(name) for name in reversed(theirs.names)]
        ours = inference.joint(variables, known, at_least)

        assert close(ours.transpose([variables.index(v) for v in axes]), theirs.toarray()), (known, at_least, variables)


def test_a_joint_has_its_axes_in_the_order_asked_for() -> None:
    """P(Z, X | Y = 0) = P(Z | Y = 0) P(X | Y = 0), with Y in the middle fixed."""
    joint = Inference(chain()).joint([2, 1, 0], {1: 0})

    assert close(joint[:, 0, :], np.outer([0.75, 0.25], [0.75, 0.25]))
    assert not joint[:, 1, :].any()


def test_what_is_known_further_back_is_not_asked_again() -> None:
    """In a chain only the last finished stage matters to the rest."""
    inference = Inference(chain(6))

    near = inference.marginals({0: 0, 1: 0, 2: 1})
    far = inference.marginals({0: 1, 1: 1, 2: 1})

    assert all(np.shares_memory(near[v], far[v]) for v in (3, 4, 5))


def test_answers_do_not_depend_on_what_was_asked_before() -> None:
    """To the last bit: one by one, all at once, or after a flood that made the memory forget."""
    rng = np.random.default_rng(8)
    network = random_network(rng, n=9)
    questions = [random_evidence(rng, network) for _ in range(40)]
    alone = [np.concatenate(Inference(network).marginals(*question)) for question in questions]

    together = Inference(network).marginals_many(questions)
    forgetful = Inference(network, max_entries=5)
    again = [forgetful.marginals(*question) for _ in range(2) for question in questions][len(questions) :]

    for one, many, flooded in zip(alone, together, again, strict=True):
        assert one.tolist() == np.concatenate(many).tolist() == np.concatenate(flooded).tolist()


def test_single_answers_equal_dense_ones_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    network = random_network(rng, n=9)
    questions = [random_evidence(rng, network) for _ in range(40)]
    dense = [np.concatenate(m) for m in Inference(network).marginals_many(questions)]

    monkeypatch.setattr("llmsched.profiler.inference._DENSE_ROWS", 0)
    one_by_one = Inference(network)
    single = [np.concatenate(one_by_one.marginals(*question)) for question in questions]
    batched = [np.concatenate(m) for m in Inference(network).marginals_many(questions)]

    assert [d.tolist() for d in dense] == [s.tolist() for s in single] == [b.tolist() for b in batched]


def test_memory_stays_bounded() -> None:
    inference = Inference(chain(10), max_entries=50)
    for k in range(400):
        inference.marginals({k % 7: k % 2, 7 + k % 3: k // 2 % 2}, {k % 5: 1})

    kept = sum(len(component.answers) for component in inference._components.values())
    assert 0 < kept <= 50


def test_answers_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Inference(chain()).marginals()[0][0] = 1


def test_impossible_evidence_loses_its_bounds_first() -> None:
    """Y always equals X here: X = 0 and Y >= 1 contradict each other, and X stays."""
    inference = Inference(chain(keep=1.0))

    assert [p.tolist() for p in inference.marginals({0: 0}, {1: 1})] == [[1, 0]] * 3
    assert inference.impossible == 1


def test_impossible_evidence_loses_the_earliest_known_next() -> None:
    """X = 0 and Y = 1 contradict each other, but Z knows Y alone; X and Z = 0 and 1 leave Y to the later one."""
    inference = Inference(chain(keep=1.0))

    assert inference.marginals({0: 0, 1: 1})[2].tolist() == [0, 1]
    assert [p.tolist() for p in inference.marginals({0: 0, 2: 1})] == [[1, 0], [0, 1], [0, 1]]
    assert inference.impossible == 1
    assert inference.joint([1], {0: 0, 2: 1}).tolist() == [0, 1]
    assert inference.sample(3, {0: 0, 2: 1}, {}, np.random.default_rng(0)).tolist() == [[0, 1, 1]] * 3


@pytest.mark.parametrize("seed", range(6))
def test_impossible_evidence_never_raises(seed: int) -> None:
    rng = np.random.default_rng(seed)
    network = random_network(rng, zeros=0.5)
    inference = Inference(network)
    for _ in range(20):
        known, at_least = random_evidence(rng, network)
        for v, p in enumerate(inference.marginals(known, at_least)):
            assert p.sum() == pytest.approx(1)
            assert v not in known or p[known[v]] == 1
        assert inference.joint([0, 1], known, at_least).sum() == pytest.approx(1)
        assert inference.sample(2, known, at_least, rng).shape == (2, len(network))


def test_samples_follow_the_joint_posterior() -> None:
    rng = np.random.default_rng(3)
    network = random_network(rng, n=6)
    known, at_least = {5: 0}, {1: 1}
    inference = Inference(network)

    states = inference.sample(20_000, known, at_least, rng)
    drawn = np.zeros(network.cards)
    np.add.at(drawn, tuple(states.T), 1 / len(states))

    # The total variation of 20,000 draws from d cells is about sqrt(d / (2 pi n)).
    exact = inference.joint(range(6), known, at_least)
    cells = int((exact > 0).sum())
    assert np.abs(drawn - exact).sum() / 2 < 1.5 * np.sqrt(cells / (2 * np.pi * 20_000))
    assert (states[:, 5] == 0).all()
    assert not drawn[exact == 0].any()


def test_samples_depend_on_the_generator_alone() -> None:
    network = random_network(np.random.default_rng(4))
    fresh, used = Inference(network), Inference(network)
    used.marginals({0: 0}, {3: 0})

    one = fresh.sample(50, {1: 0}, {}, np.random.default_rng(1))

    assert one.tolist() == used.sample(50, {1: 0}, {}, np.random.default_rng(1)).tolist()


def test_large_tables_are_answered_by_samples_that_never_change() -> None:
    """The bound is 4 standard errors of a mean of 4,000 samples, 4 * 0.5 / sqrt(4000) = 0.032, widened for weights."""
    network = grid(4)
    known, at_least = {0: 1, 10: 0}, {5: 1}
    exact, sampled = Inference(network), Inference(network, max_factor=4)

    answer = sampled.marginals(known, at_least)

    for p, q in zip(exact.marginals(known, at_least), answer, strict=True):
        assert close(p, q, 0.06)
    assert close(exact.joint([3, 6, 12], known, at_least), sampled.joint([3, 6, 12], known, at_least), 0.06)
    again = Inference(network, max_factor=4)
    again.marginals({}, at_least)
    assert [p.tolist() for p in again.marginals(known, at_least)] == [p.tolist() for p in answer]
    drawn = sampled.sample(4000, known, at_least, np.random.default_rng(2)).mean(0)
    assert close(drawn, [p[1] for p in exact.marginals(known, at_least)], 0.08)


def test_context_is_what_can_still_depend_on_a_stage() -> None:
    inference = Inference(chain(5))

    variables, key = inference.context(3, {2: 1, 0: 0})

    assert variables == (3, 4)
    assert key == inference.context(4, {2: 1, 1: 0, 0: 1})[1]
    assert key != inference.context(3, {2: 0})[1]
    assert Inference(chain(keep=1.0)).context(1, {0: 0, 2: 1})[1] is None


def test_evidence_about_nothing_is_refused() -> None:
    inference = Inference(chain())

    with pytest.raises(ProfileError, match="none of the 3"):
        inference.marginals({3: 0})
    with pytest.raises(ProfileError, match="Y has no state 2"):
        inference.marginals({1: 2})
    with pytest.raises(ProfileError, match="Y is known"):
        inference.context(1, {1: 0})

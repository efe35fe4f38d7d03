"""Learning networks: tables by hand, arcs that are really there, and both learners on the same path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmsched.errors import ProfileError
from llmsched.profiler.network import (
    Learner,
    Network,
    Score,
    fit,
    learn,
    log_likelihood,
    network_score,
    pyagrum,  # imported there without its warnings
)

gum: Any = pyagrum
LEARNERS: tuple[Learner, ...] = ("pyagrum", "numpy")
Rows = npt.NDArray[np.intp]


def names(n: int) -> list[str]:
    return [f"s{v}" for v in range(n)]


def random_rows(seed: int, n: int, cards: list[int], keep: float = 0.6) -> Rows:
    """Jobs whose stages each repeat one of the three before, or are drawn anew."""
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.integers(0, card, n) for card in cards], axis=1)
    for v in range(1, len(cards)):
        source = rows[:, int(rng.integers(max(0, v - 3), v))] % cards[v]
        rows[:, v] = np.where(rng.random(n) < keep, source, rows[:, v])
    return rows


def pair() -> Network:
    cpts = (np.array([0.5, 0.5]), np.array([[0.75, 0.25], [0.25, 0.75]]))
    return Network(("X", "Y"), (2, 2), ((), (0,)), cpts)


def test_tables_are_smoothed_counts() -> None:
    """X: 3 of 4 are 0; (3.5 / 5, 1.5 / 5). Y given X = 0: 2 of 3 are 1; X = 1: its only row is 0."""
    network = fit([[0, 0], [0, 1], [0, 1], [1, 0]], ["X", "Y"], [2, 2], ((), (0,)), smoothing=0.5)

    assert network.cpts[0].tolist() == [0.7, 0.3]
    assert network.cpts[1].tolist() == [[1.5 / 4, 2.5 / 4], [1.5 / 2, 0.5 / 2]]


def test_a_case_never_seen_is_open_and_not_a_division_by_zero() -> None:
    network = fit([[0, 0], [0, 1]], ["X", "Y"], [2, 2], ((), (0,)), smoothing=0)

    assert network.cpts[0].tolist() == [1, 0]
    assert network.cpts[1].tolist() == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("learner", LEARNERS)
def test_an_arc_is_drawn_where_one_stage_follows_another(learner: Learner) -> None:
    """A copy of a stage hangs on it, a stage of its own on nothing."""
    rng = np.random.default_rng(0)
    x, noise = rng.integers(0, 3, (2, 300))

    network = learn(np.stack([x, noise, x], axis=1), names(3), [3, 3, 3], score="bic", learner=learner)

    assert network.arcs == ((0, 2),)


@pytest.mark.parametrize("score", ["aic", "bic"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_both_learners_find_the_same_arcs(seed: int, smoothing: float, score: Score) -> None:
    rng = np.random.default_rng(seed)
    cards = [int(c) for c in rng.integers(1, 6, 9)]
    rows = random_rows(seed, int(rng.integers(30, 800)), cards)

    one, two = (learn(rows, names(9), cards, score=score, smoothing=smoothing, learner=each) for each in LEARNERS)

    assert one.to_json() == two.to_json()


def test_scores_and_tables_are_those_of_pyagrum(tmp_path: Path) -> None:
    cards = [3, 2, 4, 3]
    rows = random_rows(1, 200, cards)
    network = learn(rows, names(4), cards, score="bic", smoothing=0.1)
    np.savetxt(tmp_path / "rows.csv", rows, fmt="%d", delimiter=",", header=",".join(names(4)), comments="")
    template = gum.BayesNet()
    for name, card in zip(names(4), cards, strict=True):
        template.add(gum.LabelizedVariable(name, name, card))
    learner = gum.BNLearner(str(tmp_path / "rows.csv"), template)
    learner.useSmoothingPrior(0.1)
    learner.useGreedyHillClimbing()
    learner.setMaxIndegree(2)
    learner.setSliceOrder([[name] for name in names(4)])

    learner.useScoreBIC()
    scores = [learner.score(f"s{v}", [f"s{p}" for p in network.parents[v]]) for v in range(4)]
    theirs = learner.learnBN()

    assert network_score(network, rows, score="bic", smoothing=0.1) == pytest.approx(sum(scores), abs=1e-8)
    assert network.arcs
    for v in range(4):
        tensor = theirs.cpt(f"s{v}")
        family = [*network.parents[v], v]
        axes = [family.index(int(name[1:])) for name in reversed(tensor.names)]
        assert np.allclose(network.cpts[v].transpose(axes), tensor.toarray(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("learner", LEARNERS)
def test_arcs_stay_where_they_are_allowed(learner: Learner) -> None:
    """Five copies of one stage: every arc that may be drawn is tempting."""
    x = np.random.default_rng(2).integers(0, 3, 200)
    rows = np.stack([x] * 5, axis=1)

    network = learn(
        rows, names(5), [3] * 5, slices=[0, 0, 1, 1, 2], roots=[2], forbidden=[(0, 3), (2, 4)], learner=learner
    )

    assert network.parents[:3] == ((), (), ())
    assert network.parents[3] == (1,)
    assert network.parents[4][0] in (0, 1, 3)


@pytest.mark.parametrize("learner", LEARNERS)
def test_no_variable_gets_more_parents_than_allowed(learner: Learner) -> None:
    """The last stage is the sum of three independent ones: each would help."""
    rng = np.random.default_rng(3)
    parts = rng.integers(0, 2, (3, 2000))
    rows = np.stack([*parts, parts.sum(0)], axis=1)

    for most in (0, 1, 2, 3):
        network = learn(rows, names(4), [2, 2, 2, 4], max_parents=most, score="bic", learner=learner)
        assert len(network.parents[3]) == most


@pytest.mark.parametrize("learner", LEARNERS)
def test_constant_columns_have_no_arcs(learner: Learner) -> None:
    """A stage that always runs the same, be it with one state or with others nobody saw."""
    rows = random_rows(4, 100, [2, 2, 2])
    rows[:, 1] = 0

    network = learn(rows, names(3), [2, 1, 2], learner=learner)
    assert all(1 not in arc for arc in network.arcs)
    assert learn(rows, names(3), [2, 3, 2], score="bic", learner=learner).cpts[1].shape[-1] == 3


def test_learning_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    learn(random_rows(5, 50, [2, 2, 2]), names(3), [2, 2, 2])

    assert list(tmp_path.iterdir()) == []


def test_a_template_gives_the_arcs_and_keeps_the_best_of_too_many() -> None:
    """The last stage copies the third: of three wanted parents, the third is among the two that stay."""
    rows = random_rows(6, 300, [3] * 4, keep=0)
    rows[:, 3] = rows[:, 2]

    network = learn(rows, names(4), [3] * 4, structure="template", template=[(0, 1), (0, 3), (1, 3), (2, 3)])

    assert network.parents[:3] == ((), (0,), ())
    assert len(network.parents[3]) == 2
    assert 2 in network.parents[3]


def test_an_independent_network_has_no_arcs() -> None:
    assert learn(random_rows(7, 50, [2] * 4), names(4), [2] * 4, structure="independent").arcs == ()


def test_likelihood_is_that_of_each_row() -> None:
    """P(0, 0) = 3/8 and P(0, 1) = 1/8 multiply to 3/64."""
    assert log_likelihood(pair(), [[0, 0], [0, 1]]) == pytest.approx(np.log2(3 / 64))
    certain = Network(("X",), (2,), ((),), (np.array([1.0, 0.0]),))
    assert log_likelihood(certain, [[0], [1]]) == -np.inf


def test_a_network_with_the_right_arcs_explains_new_jobs_better() -> None:
    rows = random_rows(8, 1200, [3] * 5)
    learned, independent = (
        learn(rows[:600], names(5), [3] * 5, structure=structure) for structure in ("search", "independent")
    )

    assert log_likelihood(learned, rows[600:]) > log_likelihood(independent, rows[600:]) + 100


def test_networks_survive_json() -> None:
    network = learn(random_rows(9, 100, [2, 3, 2]), names(3), [2, 3, 2])
    document = json.loads(json.dumps(network.to_json()))

    assert Network.from_json(document).to_json() == network.to_json() == document


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"names": ["X"]}, "every variable"),
        ({"names": ["X", "X"]}, "same name"),
        ({"cards": [2, 0]}, "no state"),
        ({"parents": [[1], []]}, "come before"),
        ({"parents": [[], [0, 0]]}, "come before"),
        ({"parents": [[], []]}, "shape"),
        ({"cpts": [[0.5, 0.4], [[0.75, 0.25], [0.25, 0.75]]]}, "not a distribution"),
        ({"cpts": [[1.5, -0.5], [[0.75, 0.25], [0.25, 0.75]]]}, "not a distribution"),
        ({"cpts": [[0.5, 0.5], [[0.75], [0.25, 0.75]]]}, "whole numbers"),
        ({"cards": "22"}, "must be a list"),
    ],
)
def test_a_spoiled_network_is_refused(change: dict[str, object], fault: str) -> None:
    with pytest.raises(ProfileError, match=fault):
        Network.from_json(pair().to_json() | change)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([], "at least one"),
        ([[0]], "rows of 2"),
        ([[0, 2]], "up to the card"),
        ([[-1, 0]], "from 0"),
        ([[0.5, 1]], "whole"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows: list[list[float]], fault: str) -> None:
    with pytest.raises(ProfileError, match=fault):
        learn(rows, names(2), [2, 2])


def test_slices_never_fall() -> None:
    with pytest.raises(ProfileError, match="never fall"):
        learn([[0, 0]], names(2), [2, 2], slices=[1, 0])

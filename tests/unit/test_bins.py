"""Discretisation: equal frequency, whole values, and a nearest state for everything."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsched.errors import ProfileError
from llmsched.profiler.bins import Bins, Categories, bins_for

amounts = st.lists(st.one_of(st.just(0.0), st.floats(0, 1e6), st.sampled_from([1.0, 2.0, 3.0])), max_size=60)


def spec() -> Bins:
    return Bins.fit([0, 0, *range(1, 13)], k_max=3, min_samples=4)


def test_values_part_into_bins_of_equal_frequency() -> None:
    """T3 of the specification; its bins hold four values each, so the fewest allowed is four."""
    bins = spec()

    assert bins.lo == (0, 1, 5, 9)
    assert bins.hi == (0, 4, 8, 12)
    assert bins.rep == (0, 2.5, 6.5, 10.5)
    assert bins.states([0, 0, *range(1, 13)]).tolist() == [0, 0, *[1] * 4, *[2] * 4, *[3] * 4]


def test_equal_values_are_never_parted() -> None:
    """Thirds of ten values would cut at the 3rd and the 7th: the first cut moves to where the ones end."""
    bins = Bins.fit([1, 1, 1, 1, 1, 1, 2, 3, 4, 5], k_max=3, min_samples=1)

    assert bins.lo == (0, 1, 2, 3)
    assert bins.hi == (0, 1, 2, 5)


def test_a_value_that_is_most_of_them_is_a_bin_of_its_own() -> None:
    bins = Bins.fit([7] * 50, k_max=6)

    assert (bins.lo, bins.hi, bins.rep, bins.cuts) == ((0, 7), (0, 7), (0, 7), ())


def test_small_bins_join_their_smaller_neighbour() -> None:
    """Cuts of 12 ones, 3 twos and 20 threes at 12 and 15: the middle one, too small, joins the 12."""
    bins = Bins.fit([1] * 12 + [2] * 3 + [3] * 20, k_max=12)

    assert bins.lo == (0, 1, 3)
    assert bins.hi == (0, 2, 3)
    assert bins.rep == (0, 18 / 15, 3)


def test_few_values_share_one_bin() -> None:
    assert Bins.fit([1, 2, 3, 4], k_max=6).rep == (0, 2.5)


def test_a_stage_that_never_ran_has_one_state() -> None:
    for bins in (Bins.fit([0, 0, 0]), Bins.fit([]), Bins.binary([0])):
        assert bins.n_states == 1
        assert (bins.state(0), bins.state(5), bins.first_above(5)) == (0, 0, 0)
        assert bins.states([0, 5]).tolist() == [0, 0]


def test_a_regular_stage_executes_or_not() -> None:
    """A point bin: its range is its mean while execution is open, and nothing afterwards (A18)."""
    bins = Bins.binary([0, 2, 4, 0])

    assert (bins.lo, bins.hi, bins.rep) == ((0, 3), (0, 3), (0, 3))
    assert bins.states([0, 2, 9]).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("value", "state"), [(0, 0), (0.001, 1), (4, 1), (4.4, 1), (4.5, 1), (4.6, 2), (8.6, 3), (12, 3), (1e9, 3)]
)
def test_values_outside_all_bins_go_to_the_nearest(value: float, state: int) -> None:
    assert spec().state(value) == state
    assert spec().states([value]).tolist() == [state]


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_what_is_no_amount_is_refused_in_one_sentence(value: float) -> None:
    for call in (spec().state, spec().first_above, lambda v: spec().states([1, v]), lambda v: Bins.fit([1, v])):
        with pytest.raises(ProfileError, match=f"finite number from 0 up, not {value}"):
            call(value)


@pytest.mark.parametrize(("elapsed", "state"), [(0, 1), (3.9, 1), (4, 2), (4.2, 2), (8, 3), (11, 3), (12, 3), (99, 3)])
def test_a_stage_that_runs_is_at_least_in_the_first_bin_that_reaches_further(elapsed: float, state: int) -> None:
    assert spec().first_above(elapsed) == state


@given(amounts, st.integers(1, 8), st.integers(1, 6))
def test_every_value_lies_in_its_own_bin(values: list[float], k_max: int, fewest: int) -> None:
    bins = Bins.fit(values, k_max, fewest)
    states = bins.states(values)

    assert bins.n_states <= k_max + 1
    for value, state in zip(values, states, strict=True):
        assert bins.lo[state] <= value <= bins.hi[state]
        assert bins.state(value) == state
    sizes = np.bincount(states[states > 0])[1:]
    assert len(sizes) <= 1 or sizes.min() >= fewest


@given(amounts)
def test_bins_survive_json(values: list[float]) -> None:
    bins = Bins.fit(values)

    assert Bins.from_json(json.loads(json.dumps(bins.to_json()))) == bins


@pytest.mark.parametrize(
    "change",
    [
        {"lo": [0, 5, 1, 9]},
        {"lo": [1, 1, 5, 9]},
        {"cuts": [4.5]},
        {"cuts": [4.5, 4.6]},
        {"rep": None},
        {"hi": ["0", 4, 8, 12]},
        {"hi": [0, 4, 8, math.nan]},
    ],
)
def test_a_spoiled_document_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ProfileError):
        Bins.from_json(spec().to_json() | change)


def test_what_is_no_document_is_refused() -> None:
    with pytest.raises(ProfileError, match="JSON object"):
        Bins.from_json([])
    with pytest.raises(ProfileError, match="JSON list"):
        Categories.from_json({"values": []})


def test_more_jobs_feed_more_bins() -> None:
    assert [bins_for(n) for n in (0, 99, 100, 299, 300, 999, 1000)] == [3, 3, 4, 4, 5, 5, 6]


def test_a_category_never_seen_has_no_state() -> None:
    variants = Categories.fit(["sql", "python", "sql"])

    assert variants.values == ("python", "sql")
    assert [variants.state(v) for v in ("python", "sql", "perl", "zig")] == [0, 1, None, None]
    assert variants.states(["sql", "python"]).tolist() == [1, 0]
    assert Categories.from_json(json.loads(json.dumps(variants.to_json()))) == variants
    with pytest.raises(ProfileError, match="'perl'"):
        variants.states(["sql", "perl"])
    with pytest.raises(ProfileError, match="at least one"):
        Categories.fit([])

"""Decode latency by batch size: interpolation, limits, file format."""

import json
import math
import pickle

import pytest

from llmsched.errors import InvalidInput, UnknownName
from llmsched.model.latency import GENERIC_7B, INSTANT, LATENCY_CURVES, LatencyCurve, latency_curve

TABLE = LatencyCurve("measured", 1000.0, ((1, 0.01), (4, 0.04), (8, 0.06)))


@pytest.mark.parametrize(
    ("b", "seconds"),
    [
        (1, 0.01),
        (2, 0.02),  # a third of the way from 0.01 to 0.04
        (4, 0.04),
        (6, 0.05),  # half way from 0.04 to 0.06
        (8, 0.06),
        (16, 0.10),  # beyond the table with its last slope, 0.005 per sequence
    ],
)
def test_latency_is_linear_between_points_and_beyond_the_last(b: int, seconds: float) -> None:
    assert TABLE.decode(b) == pytest.approx(seconds, rel=1e-12)
    assert TABLE.decode(b) == TABLE.decode(b)


def test_one_point_is_a_constant() -> None:
    curve = LatencyCurve("flat", 1.0, ((1, 0.5),))
    assert [curve.decode(b) for b in (1, 2, 100)] == [0.5, 0.5, 0.5]


def test_generic_7b_is_the_formula_of_its_name() -> None:
    assert latency_curve("generic-7b") is GENERIC_7B
    for b in (1, 2, 16, 256):
        assert GENERIC_7B.decode(b) == pytest.approx(0.010 * (1 + 0.03 * (b - 1)), rel=1e-12)
    assert GENERIC_7B.prefill(8000) == 1.0
    assert GENERIC_7B.reference(4000, 100) == pytest.approx(0.5 + 1.0)


def test_instant_takes_no_time() -> None:
    curve = latency_curve(INSTANT)
    assert (curve.prefill(10_000), curve.decode(64), curve.reference(10_000, 500)) == (0.0, 0.0, 0.0)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown latency curve 'generic7b'; did you mean 'generic-7b'"):
        latency_curve("generic7b")


@pytest.mark.parametrize(
    ("speed", "points", "sentence"),
    [
        (0.0, ((1, 0.1),), "prefill_tokens_per_s must be positive, not 0"),
        (math.inf, ((1, 0.1),), "prefill_tokens_per_s must be positive, not inf"),
        (1.0, (), "must begin with batch size 1"),
        (1.0, ((2, 0.1),), "must begin with batch size 1"),
        (1.0, ((1, 0.0),), "latency at batch size 1 must be positive, not 0"),
        (1.0, ((1, 0.1), (2, math.nan)), "latency at batch size 2 must be positive, not nan"),
        (1.0, ((1, 0.1), (1, 0.2)), "batch sizes must strictly increase, but 1 follows 1"),
        (1.0, ((1, 0.2), (4, 0.1)), "latency must not fall as the batch grows"),
    ],
)
def test_impossible_curves_are_refused(speed: float, points: tuple[tuple[int, float], ...], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        LatencyCurve("bad", speed, points)


def test_nothing_else_may_be_called_instant() -> None:
    with pytest.raises(InvalidInput, match="reserved"):
        LatencyCurve(INSTANT, 100.0, ((1, 0.1),))


@pytest.mark.parametrize("curve", [TABLE, *LATENCY_CURVES.values()], ids=lambda curve: curve.name)
def test_curves_survive_json_and_pickle(curve: LatencyCurve) -> None:
    assert LatencyCurve.from_json(json.loads(json.dumps(curve.to_json()))) == curve
    copy = pickle.loads(pickle.dumps(curve))
    assert copy == curve
    assert copy.decode(5) == curve.decode(5)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": 3}, "name"),
        ({"source": 3}, "source"),
        ({"prefill_tokens_per_s": None}, "prefill_tokens_per_s"),
        ({"prefill_tokens_per_s": "fast"}, "prefill_tokens_per_s"),
        ({"prefill_tokens_per_s": True}, "prefill_tokens_per_s"),
        ({"decode": None}, "decode"),
        ({"decode": [[1]]}, "decode"),
        ({"decode": [[1.5, 0.1]]}, "decode"),
        ({"decode": [[True, 0.1]]}, "decode"),
        ({"decode": [[1, "0.1"]]}, "decode"),
        ({"decode": []}, "latency"),
        ({"speed": 2}, "speed"),
    ],
)
def test_a_bad_file_is_told_by_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as told:
        LatencyCurve.from_json({**TABLE.to_json(), **change})
    assert told.value.field == field


def test_a_file_must_hold_an_object() -> None:
    with pytest.raises(InvalidInput, match="a latency curve is a JSON object"):
        LatencyCurve.from_json([1, 2])


def test_a_curve_may_say_that_prefill_stalls() -> None:
    curve = LatencyCurve("stalls", 100.0, ((1, 0.1),), prefill_stalls=True)
    assert LatencyCurve.from_json(curve.to_json()) == curve
    assert "prefill_stalls" not in GENERIC_7B.to_json()
    with pytest.raises(InvalidInput, match="prefill_stalls must be true or false, not 1"):
        LatencyCurve.from_json(curve.to_json() | {"prefill_stalls": 1})

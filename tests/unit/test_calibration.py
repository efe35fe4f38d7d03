"""Calibration without an engine: windows, intervals, the curve that is made of a measurement, and its file."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from llmsched.errors import InvalidInput
from llmsched.model.latency import LatencyCurve, Measured, Measurement, latency_curve
from llmsched.runtime.calibration import Plan, batch_sizes, fitted
from llmsched.runtime.engine import EngineInfo
from llmsched.runtime.pace import (
    isotonic,
    lead,
    mean_interval,
    prefill_interval,
    prefill_line,
    stream_tokens,
    t_975,
    window,
)


def stream(begin: float, pace: float, tokens: int, *, every: int = 1) -> list[tuple[float, int]]:
    """A stream whose first token comes at `begin`, told every so many tokens."""
    return [(begin + pace * (n - 1), n) for n in range(1, tokens + 1) if n % every == 0 or n in (1, tokens)]


# ------------------------------------------------------------------------------------------------------------ windows


def test_only_what_all_streams_do_together_counts() -> None:
    """Alone the first needs 10 ms a token, from second 1 on both need 30 ms."""
    first = stream(0.0, 0.010, 100) + [(1.0 + 0.030 * k, 99 + k) for k in range(2, 100)]
    second = stream(1.0, 0.030, 99)

    seen = window([first, second])

    assert seen is not None
    assert seen.pace == pytest.approx(0.030, rel=1e-9)
    assert lead([first, second]) == 100


def test_several_tokens_in_one_event_count_as_many() -> None:
    seen = window([stream(0.0, 0.010, 101, every=7)])

    assert seen is not None
    assert seen.pace == pytest.approx(0.010, rel=1e-9)


def test_a_stream_without_its_beginning_and_end_holds_what_was_wanted() -> None:
    for wanted in (8, 64, 500):
        seen = window([stream(0.0, 0.01, stream_tokens(wanted))])
        assert seen is not None
        assert wanted - 1 <= seen.tokens <= wanted + 2


@pytest.mark.parametrize(
    "streams",
    [
        [stream(0.0, 0.01, 50), stream(0.6, 0.01, 50)],  # one after the other: the engine has fewer slots
        [stream(0.0, 0.01, 50), stream(0.46, 0.01, 50)],  # together for four tokens
        [[(0.0, 50)]],  # all at once
        [[(0.0, 1), (0.2, 90), (0.4, 180), (0.6, 190), (0.7, 200)]],  # in bursts: three events in the middle
    ],
)
def test_streams_that_hardly_decode_together_tell_nothing(streams: list[list[tuple[float, int]]]) -> None:
    assert window(streams) is None


# ---------------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (4, 2.776), (10, 2.228), (11, 2.201), (20, 2.086), (60, 2.000), (1000, 1.962)],  # printed tables
)
def test_quantiles_of_student_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert t_975(freedom) == pytest.approx(quantile, abs=0.001)


def test_nineteen_of_twenty_intervals_hold_the_mean() -> None:
    rng = random.Random(1)
    held = 0
    for _ in range(2000):
        seen = mean_interval([rng.gauss(10.0, 1.0) for _ in range(5)])
        held += seen.low <= 10.0 <= seen.high

    assert held / 2000 == pytest.approx(0.95, abs=0.015)  # three standard errors of a share of 2,000


def test_an_interval_of_times_does_not_reach_below_zero() -> None:
    assert mean_interval([0.1, 0.5]).low == 0.0


def test_isotonic_is_the_nearest_that_does_not_fall() -> None:
    assert isotonic([1.0, 2.0, 2.0, 5.0]) == [1.0, 2.0, 2.0, 5.0]
    assert isotonic([3.0, 2.0, 1.0]) == [2.0, 2.0, 2.0]
    assert isotonic([1.0, 4.0, 3.0, 2.0, 9.0]) == [1.0, 3.0, 3.0, 3.0, 9.0]
    rng = random.Random(2)
    for _ in range(50):
        values = [rng.random() for _ in range(8)]
        fit = isotonic(values)
        assert fit == sorted(fit)
        assert sum(fit) == pytest.approx(sum(values))
        off = sum((x - y) ** 2 for x, y in zip(fit, values, strict=True))
        for _ in range(50):  # no other curve that does not fall is nearer
            other = sorted(rng.random() for _ in range(8))
            assert off <= sum((x - y) ** 2 for x, y in zip(other, values, strict=True))


def test_prefill_is_the_slope_of_medians() -> None:
    """0.1 ms per token after 20 ms, and one run of each length that was held up for a second."""
    firsts = {n: [0.020 + 0.0001 * n] * 4 + [1.0 + 0.0001 * n] for n in (100, 200, 400, 800)}

    assert prefill_line(firsts) == (pytest.approx(0.0001), pytest.approx(0.020))
    seen = prefill_interval(firsts)
    assert seen is not None
    assert (seen.mean, seen.runs) == (pytest.approx(0.0001), 5)
    assert 0.0 <= seen.low <= seen.mean <= seen.high
    assert prefill_interval(firsts) == seen


def test_prefill_that_takes_no_time_has_no_speed() -> None:
    assert prefill_interval({100: [0.02, 0.02], 200: [0.01, 0.02]}) is None


# ---------------------------------------------------------------------------------------------------- curve and file


def measurement(*means: float, half: float = 0.05) -> Measurement:
    """half: of the intervals, relative."""
    sizes = batch_sizes(1 << (len(means) - 1), quick=True)
    rows = tuple((b, Measured(m, m * (1 - half), m * (1 + half), 5)) for b, m in zip(sizes, means, strict=True))
    return Measurement(
        engine="vLLM 0.32.0",
        model="tiny",
        machine="one GPU",
        date="2025-11-25T12:00:00+00:00",
        method="by hand",
        decode=rows,
        prefill=Measured(0.0001, 0.00009, 0.00011, 5),
        first_token=0.012,
    )


def test_a_measurement_that_rises_is_the_curve() -> None:
    seen = measurement(0.010, 0.011, 0.013)

    curve, notes = fitted("mine", seen)

    assert curve == LatencyCurve(
        "mine",
        10_000.0,
        ((1, 0.010), (2, 0.011), (4, 0.013)),
        "measured on 2025-11-25: tiny, vLLM 0.32.0, one GPU",
        seen,
    )
    assert notes == ()


def test_a_measurement_that_falls_is_kept_and_the_curve_says_where_it_differs() -> None:
    seen = measurement(0.010, 0.012, 0.011, 0.020)

    curve, notes = fitted("mine", seen)

    assert [b for b, _ in curve.points] == [1, 2, 4, 8]
    assert [seconds for _, seconds in curve.points] == pytest.approx([0.010, 0.0115, 0.0115, 0.020])
    assert curve.measurement == seen
    (note,) = notes
    assert "falls from b = 2 to 4; " in note
    assert "at most 4.5% off" in note  # 0.0115 / 0.011


def test_vague_measurements_are_noted() -> None:
    _, (note,) = fitted("mine", measurement(0.010, 0.012, half=0.2))

    assert note.startswith("the interval is wider than ± 10% at b = 1, 2; ")


def test_a_measured_curve_survives_its_file() -> None:
    curve, _ = fitted("mine", measurement(0.010, 0.012, 0.011))

    assert LatencyCurve.from_json(json.loads(json.dumps(curve.to_json()))) == curve


@pytest.mark.parametrize(
    "change",
    [
        {"engine": 3},
        {"decode": [[1, 0.01, 0.009]]},
        {"decode": [["1", 0.01, 0.009, 0.011, 5]]},
        {"decode": [[1, 0.01, 0.02, 0.011, 5]]},  # the mean is below the interval
        {"prefill": None},
        {"prefill": [0.1, 0.1, 0.1, 0]},
        {"first_token": "soon"},
        {"more": 1},
    ],
)
def test_a_bad_measurement_in_a_file_is_told(change: dict[str, Any]) -> None:
    curve, _ = fitted("mine", measurement(0.010, 0.012))
    document = curve.to_json()
    document["measurement"] |= change

    with pytest.raises(InvalidInput) as told:
        LatencyCurve.from_json(document)

    assert told.value.field == "measurement"


# ---------------------------------------------------------------------------------------------------------- the plan

ENGINE = EngineInfo(models=("tiny",), max_model_len=4096, slots=24, priority=False, version="0.32.0")


def test_the_plan_follows_what_the_engine_tells() -> None:
    plan = Plan.of(ENGINE)

    assert plan == Plan(
        batches=(1, 2, 3, 4, 6, 8, 12, 16, 24),
        lengths=(255, 511, 1023, 2047, 4095),  # of 4,096 tokens one is the answer
        repeats=5,
        tokens=64,
        window=0.5,
        prompt_tokens=128,
    )
    assert Plan.of(replace(ENGINE, slots=None)).batches[-1] == 16


def test_a_quick_plan_is_smaller_and_options_win() -> None:
    plan = Plan.of(ENGINE, quick=True)
    assert (plan.batches, plan.lengths) == ((1, 2, 4, 8, 16, 24), (64, 128, 256, 512, 1024))
    assert (plan.repeats, plan.tokens, plan.window) == (3, 32, 0.25)

    plan = Plan.of(ENGINE, max_batch=4, repeats=7, tokens=100, quick=True)
    assert (plan.batches, plan.repeats, plan.tokens) == ((1, 2, 4), 7, 100)


@pytest.mark.parametrize(
    ("info", "options", "sentence"),
    [
        (ENGINE, {"max_batch": 25}, "max_batch is 25, but the engine runs 24 requests at once"),
        (ENGINE, {"max_batch": 0}, "max_batch is 0; it must be at least 1"),
        (ENGINE, {"max_batch": -1}, "max_batch is -1; it must be at least 1"),
        (ENGINE, {"repeats": 1}, "repeats is 1; an interval needs at least 2"),
        (ENGINE, {"tokens": 7}, "tokens is 7; fewer than 8 tell nothing"),
        (ENGINE, {"prompt_tokens": 0}, "prompt is 0; it must be at least 1 token"),
        (
            replace(ENGINE, max_model_len=200),
            {},
            "context of 200 tokens is too small: a prompt of 128 and 64 tokens to be measured need 210",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(info: EngineInfo, options: dict[str, int], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        Plan.of(info, **options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- the derived curve


def test_llama2_7b_h800_is_the_derivation_of_its_documentation() -> None:
    """docs/calibration.md, with the numbers written out again; the curve rounds them."""
    parameters, layers, width = 6.738e9, 32, 4096
    bandwidth, flops = 0.80 * 3.35e12, 0.40 * 989e12
    weights, kv_token = 2 * parameters, 2 * 2 * layers * width
    curve = latency_curve("llama2-7b-h800")

    def derived(b: int) -> float:
        linear = max(weights / bandwidth, 2 * parameters * b / flops)
        return linear + 0.00234 + b * (1000 * kv_token / bandwidth + 0.00008)

    for b in (1, 2, 4, 8, 16, 32, 64, 96):
        assert curve.decode(b) == pytest.approx(derived(b), rel=0.01)
    assert curve.prefill_tokens_per_s == pytest.approx(flops / (2 * parameters), rel=0.02)
    assert curve.source.startswith("derived, not measured")


def test_the_derivation_gives_the_published_latencies() -> None:
    """NVIDIA, NeMo Framework user guide: Llama-2-7B on one H100 80GB HBM3, 128 tokens in and 20 out."""
    published = {1: 0.1538, 2: 0.1608, 4: 0.1748, 8: 0.1992}
    kv_token, bandwidth = 2 * 2 * 32 * 4096, 0.80 * 3.35e12
    prefill = latency_curve("llama2-7b-h800").prefill_tokens_per_s

    for b, seconds in published.items():
        token = 2 * 6.738e9 / bandwidth + 0.00234 + b * (138 * kv_token / bandwidth + 0.00008)
        assert 128 * b / prefill + 20 * token == pytest.approx(seconds, rel=0.01)

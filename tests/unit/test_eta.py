"""ETAs: plain predictions at first, then as wide as what happened says, and forgetting what is long past."""

from __future__ import annotations

from random import Random

import pytest

from llmsched.runtime.learning.eta import FEWEST, LEAST, WINDOW, Calibration, Eta


def test_without_notes_work_takes_its_reference_seconds_over_the_speed() -> None:
    assert Calibration().eta(100.0, 4.0, 9.0) == pytest.approx((100.0 + 4.0 + LEAST, 100.0 + 9.0 + LEAST))
    assert Calibration(0.1).eta(0.0, 3.9, 9.9) == pytest.approx((0.4, 1.0))


def test_a_few_notes_do_not_decide_yet() -> None:
    calibration = Calibration()
    for _ in range(FEWEST - 1):
        calibration.add(1.0, 1.0, 50.0)
    assert calibration.eta(0.0, 1.0, 1.0).p50 == pytest.approx(1.0 + LEAST)
    calibration.add(1.0, 1.0, 50.0)
    assert calibration.eta(0.0, 1.0, 1.0) == pytest.approx((50.0, 50.0))


def test_p90_is_never_before_p50() -> None:
    calibration = Calibration()
    for k in range(100):
        calibration.add(1.0, 100.0, float(k % 3))  # a p90 that was absurdly late pulls the next ones in
    eta = calibration.eta(0.0, 5.0, 5.1)
    assert eta.p50 <= eta.p90


def test_only_recent_notes_count() -> None:
    calibration = Calibration()
    for _ in range(WINDOW):
        calibration.add(0.9, 0.9, 100.0)
    for _ in range(WINDOW):
        calibration.add(0.9, 0.9, 2.0)
    assert len(calibration) == WINDOW
    assert calibration.eta(0.0, 0.9, 0.9) == pytest.approx((2.0, 2.0))


@pytest.mark.parametrize(("spread", "wait"), [(0.1, 1.0), (0.8, 1.0), (0.5, 12.0)])
def test_nine_of_ten_jobs_end_before_p90_and_half_before_p50(spread: float, wait: float) -> None:
    """Whatever the predictions are worth: here they know neither the spread nor how long jobs wait."""
    random, calibration = Random(7), Calibration()
    soon = late = 0
    for k in range(2_000):
        work = random.uniform(1.0, 60.0)
        actual = wait * work * random.lognormvariate(0.0, spread)
        eta = calibration.eta(0.0, work, 1.2 * work)
        if k >= 200:
            soon += actual <= eta.p50
            late += actual <= eta.p90
        calibration.add(work, 1.2 * work, actual)
    assert soon / 1_800 == pytest.approx(0.5, abs=0.05)
    assert late / 1_800 == pytest.approx(0.9, abs=0.03)


def test_what_clients_see_is_rounded_to_microseconds() -> None:
    assert Eta(1.23456789, 2.0).to_json() == {"p50": 1.234568, "p90": 2.0}

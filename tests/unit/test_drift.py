"""The drift guard: falls back for a reason, comes back for a reason, and does not flicker."""

from __future__ import annotations

from random import Random

from llmsched.runtime.learning.drift import FEWEST, WINDOW, DriftGuard


def told(guard: DriftGuard, jobs: int, believed: float, mean: float, *, notes: int = 5, seed: int = 0) -> list[bool]:
    """Jobs whose notes had 10 s left, plus noise that hits both alike; whether the verdict changed, per job."""
    random = Random(seed)
    changes = []
    for _ in range(jobs):
        actual = 10.0 + random.uniform(-1.0, 1.0)
        guard.add([(believed, mean, actual)] * notes)
        changes.append(guard.judge())
    return changes


def test_belief_that_is_better_stays() -> None:
    guard = DriftGuard()
    assert not any(told(guard, 100, believed=10.0, mean=15.0))
    assert not guard.has_drifted
    believed, mean = guard.errors
    assert 0.0 < believed < 1.0 < mean


def test_belief_that_is_clearly_worse_is_set_aside_once() -> None:
    guard = DriftGuard()
    changes = told(guard, 40, believed=20.0, mean=12.0)
    assert changes.count(True) == 1
    assert guard.has_drifted


def test_nothing_is_decided_on_fewer_notes_than_fifty() -> None:
    guard = DriftGuard()
    assert not any(told(guard, FEWEST // 5 - 1, believed=100.0, mean=10.0))
    assert told(guard, 1, believed=100.0, mean=10.0) == [True]


def test_ten_per_cent_worse_is_not_enough() -> None:
    guard = DriftGuard()
    told(guard, 40, believed=15.4, mean=15.0)  # errors of 5.4 and 5.0 s: 8 % apart
    assert not guard.has_drifted
    told(guard, 40, believed=16.0, mean=15.0)  # 20 %
    assert guard.has_drifted


def test_a_difference_that_may_be_an_accident_is_not_enough() -> None:
    guard, random = DriftGuard(), Random(1)
    for _ in range(40):  # belief is off by 0 or 24 s, the mean by 10 s: 20 % worse, but it is a coin that says so
        guard.add([(10.0 + 24.0 * random.randrange(2), 20.0, 10.0)] * 5)
        assert not guard.judge()
    believed, mean = guard.errors
    assert believed > 1.1 * mean


def test_it_comes_back_only_when_it_is_as_good_again() -> None:
    guard = DriftGuard()
    told(guard, 40, believed=20.0, mean=12.0)
    changes = told(guard, WINDOW // 5, believed=12.1, mean=12.0)  # 5 % worse: enough to stay, not to come back
    assert not any(changes)
    assert guard.has_drifted
    told(guard, WINDOW // 5, believed=10.0, mean=12.0)
    assert not guard.has_drifted

"""The circuit breaker, its clock wound by hand."""

from __future__ import annotations

from random import Random

import pytest

from llmsched.runtime.breaker import Breaker, State


class Upper(Random):
    """Jitter at its upper end: the back-off is exactly 1, 2, 4, … seconds."""

    def uniform(self, a: float, b: float) -> float:
        return b


@pytest.fixture
def breaker() -> Breaker:
    return Breaker(Upper())


@pytest.fixture
def opened(breaker: Breaker) -> Breaker:
    """A breaker that opened at 10."""
    for _ in range(3):
        breaker.fault(10.0)
    return breaker


def test_three_faults_in_a_row_open_it(breaker: Breaker) -> None:
    assert [breaker.fault(at) for at in (1.0, 2.0, 3.0)] == [False, False, True]
    assert (breaker.state, breaker.admits(8), breaker.next_probe) == (State.OPEN, 0, 4.0)


def test_a_success_between_faults_starts_the_count_again(breaker: Breaker) -> None:
    for news in "ffsffsff":
        assert not (breaker.fault if news == "f" else breaker.success)(1.0)
    assert (breaker.state, breaker.admits(8)) == (State.CLOSED, 8)


def test_a_healthy_probe_does_not_forgive_failing_requests(breaker: Breaker) -> None:
    breaker.fault(1.0)
    breaker.probe(True, 1.5)
    breaker.fault(2.0)
    breaker.probe(True, 2.5)
    assert breaker.fault(3.0)
    assert breaker.state is State.OPEN


def test_two_failed_probes_in_a_row_open_it(breaker: Breaker) -> None:
    assert not breaker.probe(False, 0.0)
    assert not breaker.probe(True, 5.0)
    assert not breaker.probe(False, 10.0)
    assert breaker.probe(False, 15.0)
    assert (breaker.state, breaker.next_probe) == (State.OPEN, 16.0)


def test_a_closed_breaker_is_probed_at_intervals(breaker: Breaker) -> None:
    breaker.probe(True, 7.0)
    assert breaker.next_probe == 12.0


def test_a_good_probe_half_opens_it_once_the_back_off_has_passed(opened: Breaker) -> None:
    assert not opened.probe(True, 10.5)
    assert opened.probe(True, 11.0)
    assert (opened.state, opened.admits(8), opened.admits(0), opened.next_probe) == (State.HALF_OPEN, 1, 0, 16.0)


def test_late_news_of_earlier_requests_do_not_move_an_open_breaker(opened: Breaker) -> None:
    assert not opened.fault(10.2)
    assert not opened.success(10.3)
    assert (opened.state, opened.next_probe) == (State.OPEN, 11.0)


def test_a_success_closes_a_half_open_breaker_and_resets_the_back_off(opened: Breaker) -> None:
    opened.probe(True, 11.0)
    assert opened.success(12.0)
    assert (opened.state, opened.admits(8)) == (State.CLOSED, 8)
    assert [opened.fault(at) for at in (20.0, 20.0, 20.0)] == [False, False, True]
    assert opened.next_probe == 21.0


def test_one_fault_opens_a_half_open_breaker_for_twice_as_long(opened: Breaker) -> None:
    opened.probe(True, 11.0)
    assert opened.fault(12.0)
    assert (opened.state, opened.next_probe) == (State.OPEN, 14.0)


def test_one_failed_probe_opens_a_half_open_breaker(opened: Breaker) -> None:
    opened.probe(True, 11.0)
    assert opened.probe(False, 16.0)
    assert (opened.state, opened.next_probe) == (State.OPEN, 18.0)


def test_the_back_off_doubles_up_to_its_cap(opened: Breaker) -> None:
    delays = []
    for _ in range(2000):
        at = opened.next_probe
        assert not opened.probe(False, at)
        delays.append(opened.next_probe - at)
    assert delays[:6] == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert delays[-1] == pytest.approx(30.0)


def test_jitter_shortens_the_back_off_by_up_to_a_quarter_and_follows_the_seed() -> None:
    def delays(seed: int) -> list[float]:
        random = Random(seed)
        found = []
        for _ in range(200):
            breaker = Breaker(random, faults=1)
            breaker.fault(0.0)
            found.append(breaker.next_probe)
        return found

    assert delays(1) == delays(1) != delays(2)
    assert 0.75 <= min(delays(1)) < 0.76
    assert 0.99 < max(delays(1)) <= 1.0

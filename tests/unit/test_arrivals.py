"""When jobs arrive."""

import gzip
import math
import re
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import mean, pstdev
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched.errors import InvalidInput, UnknownName
from llmsched.workloads.arrivals import arrival_times, gamma_bursts, poisson, read_arrivals, recorded


def gaps(times: list[float]) -> list[float]:
    return [b - a for a, b in pairwise(times)]


def test_poisson_gaps_are_exponential_with_the_rate() -> None:
    times = poisson(0.9, 20_001, Random(1))
    # Mean and standard deviation of 20,000 exponential gaps are within 1/sqrt(20,000) = 0.7 % and 1.4 % (one sigma).
    assert mean(gaps(times)) == pytest.approx(1 / 0.9, rel=0.03)
    assert pstdev(gaps(times)) == pytest.approx(1 / 0.9, rel=0.05)
    assert times[0] == 0.0


def test_gamma_bursts_have_the_rate_and_the_spread() -> None:
    times = gamma_bursts(2.0, 100_001, Random(1), cv=4.0)
    # The mean of 100,000 gaps of cv 4 has a sigma of 4/sqrt(100,000) = 1.3 %.
    assert mean(gaps(times)) == pytest.approx(0.5, rel=0.05)
    assert pstdev(gaps(times)) / mean(gaps(times)) == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("process", ["poisson", "gamma", "gamma:9"])
def test_another_rate_only_stretches_time(process: str) -> None:
    slow = arrival_times(process, 0.5, 50, Random(3))
    fast = arrival_times(process, 2.0, 50, Random(3))
    assert [t / 4 for t in slow] == pytest.approx(fast)


@settings(deadline=None)
@given(
    process=st.sampled_from(["poisson", "gamma", "gamma:1000", [0.0, 0.0, 3.5, 3.5, 9.0, 30.25]]),
    rate=st.floats(1e-6, 1e6),
    n=st.integers(0, 6),
    seed=st.integers(),
)
def test_every_process_gives_n_finite_times_in_order_from_zero(process: Any, rate: float, n: int, seed: int) -> None:
    if not isinstance(process, str) and n == 2:
        n = 3  # two recorded arrivals of one instant have no rate
    times = arrival_times(process, rate, n, Random(seed))
    assert len(times) == n
    assert times[:1] == [0.0][:n]
    assert all(map(math.isfinite, times))
    assert all(gap >= 0 for gap in gaps(times))


def test_recorded_times_start_at_zero_and_keep_their_own_rate() -> None:
    assert recorded([5.0, 5.0, 7.5, 11.0], None, 3) == [0.0, 0.0, 2.5]


def test_recorded_times_are_stretched_to_a_rate_and_batches_stay_together() -> None:
    # Three gaps in 6 s are 0.5 per second; at 0.25 per second everything takes twice as long.
    assert recorded([1.0, 1.0, 4.0, 7.0, 8.0], 0.25, 4) == [0.0, 0.0, 6.0, 12.0]


@pytest.mark.parametrize(
    ("times", "rate", "n", "message"),
    [
        ([0.0, 1.0], 1.0, 3, "3 arrivals were asked for and 2 are recorded; ask for fewer"),
        ([0.0, 2.0, 1.0], 1.0, 3, "recorded arrivals go back in time from 2.0 to 1.0 s; sort them"),
        ([0.0, math.nan], None, 2, "recorded arrivals go back in time from 0.0 to nan s; sort them"),
        ([0.0, math.inf], None, 2, "recorded arrivals span inf s; they must be finite"),
        ([3.0, 3.0], 1.0, 2, "all 2 recorded arrivals have one time; no rate can be made of that"),
    ],
)
def test_recorded_times_that_cannot_be_used(times: list[float], rate: float | None, n: int, message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        recorded(times, rate, n)


@pytest.mark.parametrize("rate", [0, -1.0, math.nan, math.inf, 1e12, 10**400, "fast"])
def test_a_bad_rate_is_refused(rate: Any) -> None:
    for process in (poisson, gamma_bursts):
        with pytest.raises(InvalidInput, match="it must be a positive number of jobs per second") as caught:
            process(rate, 3, Random(1))
        assert caught.value.field == "rate"


@pytest.mark.parametrize("cv", [1, 0.5, -2.0, math.nan, math.inf, 1e6])
def test_a_bad_cv_is_refused(cv: float) -> None:
    with pytest.raises(InvalidInput, match=r"cv is .*; it must be a number above 1"):
        gamma_bursts(1.0, 3, Random(1), cv)


@pytest.mark.parametrize("n", [-1, 2.5, True])
def test_a_bad_number_of_jobs_is_refused(n: Any) -> None:
    with pytest.raises(InvalidInput, match="it must be a whole number, 0 or more"):
        poisson(1.0, n, Random(1))


def test_names_choose_the_process() -> None:
    assert arrival_times("poisson", 1.0, 9, Random(1)) == poisson(1.0, 9, Random(1))
    assert arrival_times("gamma", 1.0, 9, Random(1)) == gamma_bursts(1.0, 9, Random(1), 4.0)
    assert arrival_times("gamma:2.5", 1.0, 9, Random(1)) == gamma_bursts(1.0, 9, Random(1), 2.5)


@pytest.mark.parametrize(
    ("process", "rate", "message"),
    [
        ("poison", 1.0, "unknown arrivals 'poison'; did you mean 'poisson'?"),
        ("gamma:x", 1.0, "arrivals are 'gamma:x'; write gamma:4 for a cv of 4"),
        ("gamma:1", 1.0, "cv is 1.0; it must be a number above 1"),
        ("poisson", None, "poisson arrivals need a rate in jobs per second"),
        ("gamma:3", None, "gamma arrivals need a rate in jobs per second"),
    ],
)
def test_a_process_that_cannot_be(process: str, rate: float | None, message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        arrival_times(process, rate, 3, Random(1))


def test_an_unknown_process_is_an_unknown_name() -> None:
    with pytest.raises(UnknownName):
        arrival_times("uniform", 1.0, 3, Random(1))


LOG = b"t_s,context_tokens\n2.000,374\n2.000,396\n6.500,879\n"


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_reads_a_log_of_arrivals(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(LOG) if name.endswith(".gz") else LOG)
    assert read_arrivals(path) == [0.0, 0.0, 4.5]
    assert arrival_times(str(path), 1.0, 3, Random(1)) == [0.0, 0.0, 2.0]


def test_the_column_may_stand_anywhere_and_behind_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b'\xef\xbb\xbft_s,note\n1,"a, b"\n2.5,\n')
    assert read_arrivals(path) == [0.0, 1.5]
    path.write_bytes(b'note,t_s\n"a, b",1\n,2.5\n')
    assert read_arrivals(path) == [0.0, 1.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "log.csv is empty"),
        (b"t_s\n", "log.csv has no arrivals; it needs a line per arrival below its first line"),
        (b"time,n\n1,2\n", "log.csv:1: there is no column t_s; the first line must name the columns"),
        (b"t_s\n1\nx\n", "log.csv:3: t_s is 'x'; it must be seconds, 0 or more"),
        (b"t_s\n1\nnan\n", "log.csv:3: t_s is 'nan'; it must be seconds, 0 or more"),
        (b"t_s\n-1\n", "log.csv:2: t_s is '-1'; it must be seconds, 0 or more"),
        (b"n,t_s\n1,1\n2\n", "log.csv:3: t_s is ''; it must be seconds, 0 or more"),
        (b"t_s\n3\n\n2\n", "log.csv:4: t_s is 2, before the 3 above it; sort the file"),
        (b"t_s\n\xff\n", "log.csv:2: the line is not CSV in UTF-8"),
    ],
)
def test_a_bad_log_is_refused_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=re.escape(message)):
        read_arrivals(path)

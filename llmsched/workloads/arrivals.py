"""When jobs arrive: Poisson, bursts, or as somebody recorded it.

Every process gives seconds since the first arrival: n numbers, the first is 0.0, none smaller than the one before. A
process that is asked for another rate draws the same gaps, only longer or shorter.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random

from llmsched.errors import InvalidInput, UnknownName
from llmsched.workloads.lines import read_lines

#: Coefficient of variation of `gamma` where none is given: between the two bursty published logs (3.0 and 13).
DEFAULT_CV = 4.0


def poisson(rate: float, n: int, rng: Random) -> list[float]:
    """n arrivals with independent exponential gaps of mean 1 / `rate` seconds."""
    _check(rate, n)
    return _from_gaps([rng.expovariate(1.0) / rate for _ in range(n - 1)], n)


def gamma_bursts(rate: float, n: int, rng: Random, cv: float = DEFAULT_CV) -> list[float]:
    """n arrivals in bursts: gamma gaps of mean 1 / `rate` seconds and standard deviation `cv` / `rate`.

    Raises InvalidInput unless cv > 1 (at 1 the gaps are those of `poisson`).
    """
    _check(rate, n)
    if not (isinstance(cv, int | float) and 1 < cv <= 1000):
        raise InvalidInput(f"cv is {cv!r}; it must be a number above 1 (at most 1000), or use poisson", field="cv")
    shape = cv**-2
    return _from_gaps([rng.gammavariate(shape, 1 / shape) / rate for _ in range(n - 1)], n)


def recorded(times: Sequence[float], rate: float | None, n: int) -> list[float]:
    """The first n of recorded `times`, moved to start at 0 and, unless `rate` is None, stretched to that rate.

    The rate of n arrivals is their n - 1 gaps over the time they span. Arrivals of one instant stay together.
    """
    _check(1.0 if rate is None else rate, n)
    if len(times) < n:
        raise InvalidInput(f"{n} arrivals were asked for and {len(times)} are recorded; ask for fewer", field="jobs")
    taken = times[:n]
    for a, b in pairwise(taken):
        if not a <= b:
            raise InvalidInput(f"recorded arrivals go back in time from {a} to {b} s; sort them", field="arrivals")
    if n == 0:
        return []
    span = taken[-1] - taken[0]
    if not math.isfinite(span):
        raise InvalidInput(f"recorded arrivals span {span} s; they must be finite", field="arrivals")
    if rate is None or n == 1:
        return [t - taken[0] for t in taken]
    if span == 0:
        raise InvalidInput(f"all {n} recorded arrivals have one time; no rate can be made of that", field="arrivals")
    scale = (n - 1) / (rate * span)
    return [(t - taken[0]) * scale for t in taken]


def read_arrivals(path: Path) -> list[float]:
    """Column `t_s` of a CSV file (plain or gzip, other columns are ignored): seconds, in order, from the first one.

    Raises InvalidInput with the line: `conv.csv.gz:17: t_s is 'x'; it must be …`.
    """
    times: list[float] = []
    column = -1
    for at, line in read_lines(path, InvalidInput):
        try:
            row = next(csv.reader([line.decode("utf-8-sig")]))
        except (UnicodeDecodeError, csv.Error) as cause:
            raise InvalidInput(f"{at}: the line is not CSV in UTF-8 ({cause})") from cause
        if column < 0:
            if "t_s" not in row:
                raise InvalidInput(f"{at}: there is no column t_s; the first line must name the columns")
            column = row.index("t_s")
            continue
        cell = row[column] if column < len(row) else ""
        try:
            t = float(cell)
        except ValueError:
            t = math.nan
        if not (math.isfinite(t) and t >= 0):
            raise InvalidInput(f"{at}: t_s is {cell[:40]!r}; it must be seconds, 0 or more", field="t_s")
        if times and t < times[-1]:
            raise InvalidInput(f"{at}: t_s is {t:g}, before the {times[-1]:g} above it; sort the file", field="t_s")
        times.append(t)
    if not times:
        raise InvalidInput(f"{path.name} has no arrivals; it needs a line per arrival below its first line")
    return [t - times[0] for t in times]


def arrival_times(process: str | Sequence[float], rate: float | None, n: int, rng: Random) -> list[float]:
    """n arrivals of a process by name: `poisson`, `gamma`, `gamma:CV`, the path of a CSV file, or recorded times.

    Recorded times keep their own rate if `rate` is None; the others need one. Raises InvalidInput.
    """
    if not isinstance(process, str):
        return recorded(process, rate, n)
    name, _, cv = process.partition(":")
    if name in ("poisson", "gamma") and rate is None:
        raise InvalidInput(f"{name} arrivals need a rate in jobs per second", field="rate")
    if process == "poisson" and rate is not None:
        return poisson(rate, n, rng)
    if name == "gamma" and rate is not None:
        try:
            return gamma_bursts(rate, n, rng, float(cv) if cv else DEFAULT_CV)
        except ValueError:
            raise InvalidInput(f"arrivals are {process!r}; write gamma:4 for a cv of 4", field="arrivals") from None
    if not Path(process).is_file():
        raise UnknownName.of("arrivals", process, ["poisson", "gamma", "gamma:CV", "a CSV file"], field="arrivals")
    return recorded(read_arrivals(Path(process)), rate, n)


def _from_gaps(gaps: list[float], n: int) -> list[float]:
    return list(accumulate(gaps, initial=0.0))[:n]


def _check(rate: float, n: int) -> None:
    if not (isinstance(rate, int | float) and 1e-9 <= rate <= 1e9):
        raise InvalidInput(f"rate is {rate!r}; it must be a positive number of jobs per second", field="rate")
    if type(n) is not int or n < 0:
        raise InvalidInput(f"the number of jobs is {n!r}; it must be a whole number, 0 or more", field="jobs")

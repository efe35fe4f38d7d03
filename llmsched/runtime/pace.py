"""The arithmetic of a calibration: what timed streams tell, means and slopes with their intervals, a curve."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from llmsched.model.latency import Measured

#: One reply: moments at which something came, in seconds, and the tokens there were by then.
Stream = Sequence[tuple[float, int]]

#: Of the time in which all streams decode, left out at either end.
TRIM = 0.1
#: Share of a window in which nothing may come of a stream; its ends are then too uncertain.
SILENCE = 0.25
_RESAMPLES = 1000
#: 97.5 % quantiles of Student's t, from one degree of freedom on.
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen while all streams decoded: mean seconds per token, and the fewest tokens of a stream."""

    pace: float
    tokens: int


def window(streams: Sequence[Stream]) -> Window | None:
    """The window of one run; None where there is none, or where some stream is silent in it for too long to tell.

    A stream's pace is the seconds between its first and its last event in the window, over the tokens between them.

    >>> seen = window([[(k / 100, k) for k in range(1, 51)], [(k / 100 + 0.005, k) for k in range(1, 51)]])
    >>> (round(seen.pace, 6), seen.tokens)  # of 50 tokens 40 in the middle, which is 39 steps, less one for the offset
    (0.01, 38)
    """
    begin, end = together(streams)
    margin = TRIM * (end - begin)
    begin, end = begin + margin, end - margin
    paces: list[float] = []
    fewest: list[int] = []
    for stream in streams:
        inside = [event for event in stream if begin <= event[0] <= end]
        moments = [begin, *(at for at, _ in inside), end]
        if begin >= end or max(b - a for a, b in pairwise(moments)) > SILENCE * (end - begin):
            return None
        tokens = inside[-1][1] - inside[0][1]
        paces.append((inside[-1][0] - inside[0][0]) / tokens)
        fewest.append(tokens)
    return Window(statistics.fmean(paces), min(fewest))


def together(streams: Sequence[Stream]) -> tuple[float, float]:
    """From when to when all decode: the first token of the last, the last of the first; the end may be the earlier."""
    return max(stream[0][0] for stream in streams), min(stream[-1][0] for stream in streams)


def lead(streams: Sequence[Stream]) -> int:
    """The most tokens that a stream had when the last one began."""
    begin, _ = together(streams)
    return max(n for stream in streams for at, n in stream if at <= begin)


def stream_tokens(tokens: int) -> int:
    """How many a stream has to say so that a window holds so many, if all streams begin together.

    >>> stream_tokens(80)
    102
    """
    return math.ceil(tokens / (1 - 2 * TRIM)) + 2


def mean_interval(values: Sequence[float]) -> Measured:
    """The mean of at least two values, and its 95 % interval by Student's t, cut at 0.

    >>> seen = mean_interval([9.0, 10.0, 11.0])  # 10 ± 4.303 × 1 / √3
    >>> (seen.mean, round(seen.low, 3), round(seen.high, 3), seen.runs)
    (10.0, 7.516, 12.484, 3)
    """
    mean = statistics.fmean(values)
    half = t_975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Measured(mean, max(0.0, mean - half), mean + half, len(values))


def t_975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: up to 10 degrees of freedom from a table, beyond by a series in 1/freedom.

    Source: Abramowitz and Stegun, table 26.10 and 26.7.5, whose first four terms are right to a thousandth from there.

    >>> (t_975(4), round(t_975(20), 3), round(t_975(1000), 3))
    (2.776, 2.086, 1.962)
    """
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z, n = statistics.NormalDist().inv_cdf(0.975), freedom
    terms = (
        z,
        (z**3 + z) / (4 * n),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3),
    )
    return sum(terms)


def isotonic(values: Sequence[float]) -> list[float]:
    """The values nearest to these, by least squares, that never fall (pool adjacent violators).

    >>> isotonic([1.0, 3.0, 2.0, 4.0])
    [1.0, 2.5, 2.5, 4.0]
    """
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and statistics.fmean(pools[-2]) > statistics.fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return [statistics.fmean(pool) for pool in pools for _ in pool]


def prefill_line(firsts: Mapping[int, Sequence[float]]) -> tuple[float, float]:
    """Seconds per prompt token, and at none: the least-squares line through the median first-token time by length.

    >>> line = prefill_line({100: [0.3, 0.3, 9.0], 300: [0.7, 0.7, 0.7]})  # one run was held up: the median ignores it
    >>> tuple(round(x, 6) for x in line)
    (0.002, 0.1)
    """
    line = statistics.linear_regression(list(firsts), [statistics.median(runs) for runs in firsts.values()])
    return line.slope, line.intercept


def prefill_interval(firsts: Mapping[int, Sequence[float]]) -> Measured | None:
    """Seconds per prompt token with its 95 % interval, cut at 0; None where longer prompts take no longer.

    firsts: first-token times by prompt length. The interval is a percentile bootstrap over the runs of each length.
    """
    slope, _ = prefill_line(firsts)
    if slope <= 0:
        return None
    rng = Random(0)
    slopes = sorted(
        prefill_line({n: rng.choices(runs, k=len(runs)) for n, runs in firsts.items()})[0] for _ in range(_RESAMPLES)
    )
    low, high = slopes[_RESAMPLES // 40], slopes[-1 - _RESAMPLES // 40]
    return Measured(slope, max(0.0, min(low, slope)), max(high, slope), min(map(len, firsts.values())))

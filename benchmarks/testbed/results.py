"""What the testbed measured: kept run by run in a file, and the arithmetic of the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmsched.simulator.statistics import change, interval

Times = NDArray[np.float64]

EMULATED, REAL = "emulated", "vllm"


class Key(NamedTuple):
    engine: str
    workload: str
    load: float

    def __str__(self) -> str:
        return f"{self.workload} at load {self.load:g}, {'emulated engines' if self.engine == EMULATED else 'vLLM'}"


@dataclass
class Found:
    """The runs of a bed. about: jobs, speed, machines, rate, curve, scale, command. runs: by policy."""

    key: Key
    about: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def times(self, policy: str, which: str = "times") -> Times:
        """(jobs,) completion times in seconds, nan for a failed job. which: `times`, `simulated` or `with_overhead`."""
        return np.array(self.runs[policy][which], dtype=float)

    def mean(self, policy: str, which: str = "times") -> float:
        return float(np.nanmean(self.times(policy, which)))

    def interval(self, policy: str) -> list[float]:
        times = self.times(policy)
        found = interval(times[~np.isnan(times)])
        assert found is not None, (self.key, policy)
        return found

    def reduction(self, policy: str, baseline: str, which: str = "times") -> tuple[float, float, float]:
        """1 - mean of `policy` / mean of `baseline` in per cent, with its paired 95 % interval over jobs."""
        found = change(self.times(policy, which), self.times(baseline, which))
        assert found is not None, (self.key, policy, baseline)
        low, high = found["ci95"]
        return 0.0 - found["change_pct"], 0.0 - high, 0.0 - low  # never -0

    def order(self, which: str = "times") -> list[str]:
        """Policies, the smallest mean first."""
        return sorted(self.runs, key=lambda policy: self.mean(policy, which))

    def error(self, policy: str, which: str = "with_overhead") -> Error:
        """How far the simulator is off."""
        return error(self.times(policy), self.times(policy, which))

    def flips(self, which: str = "with_overhead") -> list[tuple[str, str, bool]]:
        """Pairs that stand the other way round in the simulator: (better in the service, worse, beyond doubt).

        Beyond doubt: the paired interval of their difference in the service excludes zero.
        """
        flipped = []
        for a, b in combinations(self.order(), 2):
            if self.mean(a, which) > self.mean(b, which):
                flipped.append((a, b, self.reduction(a, b)[1] > 0))
        return flipped


class Error(NamedTuple):
    """How far the simulator is off. ratio: of the mean times, simulated over measured; the others in per cent."""

    ratio: float
    mape: float
    median: float
    p95: float


def error(measured: Times, simulated: Times) -> Error:
    """Absolute percentage error of each job's time, the measured one being right; jobs that failed are left out.

    >>> error(np.array([1.0, 2.0, 4.0]), np.array([1.1, 2.0, 3.0]))
    Error(ratio=0.8714, mape=11.67, median=10.0, p95=23.5)
    """
    both = ~(np.isnan(measured) | np.isnan(simulated))
    measured, simulated = measured[both], simulated[both]
    off = np.abs(simulated - measured) / measured * 100
    ratio = simulated.mean() / measured.mean()
    median, p95 = np.percentile(off, [50, 95]).tolist()
    return Error(round(float(ratio), 4), round(float(off.mean()), 2), round(median, 2), round(p95, 2))


def overhead(found: Found, policy: str) -> float:
    """Seconds of the jobs by which a call holds its slot longer than its engine works at it.

    What calls take longer for the service than for the engine, mean of all runs of the bed, and a decision of the
    policy, after which the slot is used again; both as measured, times the speed.
    """
    calls = [run["call_ms"] for run in found.runs.values() if run["call_ms"] is not None]
    ms = (fmean(calls) if calls else 0.0) + (found.runs[policy]["decision_ms"]["mean"] or 0.0)
    return round(max(0.0, ms) / 1000 * found.about.get("speed", 1.0), 5)


def read(path: Path) -> dict[Key, Found]:
    """What was run before; nothing if there is no such file."""
    if not path.is_file():
        return {}
    document = json.loads(path.read_text())
    founds = {}
    for one in document["beds"]:
        key = Key(one["engine"], one["workload"], one["load"])
        founds[key] = Found(key, one["about"], one["runs"])
    return founds


def write(founds: Mapping[Key, Found], path: Path) -> None:
    """One line per run; the file is replaced in one step."""
    beds = []
    for key, found in sorted(founds.items()):
        runs = ",\n".join(f"   {json.dumps(p)}: {json.dumps(run)}" for p, run in found.runs.items())
        head = json.dumps(key._asdict() | {"about": found.about})
        beds.append(f'  {head[:-1]}, "runs": {{\n{runs}}}}}')
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text('{\n "beds": [\n' + ",\n".join(beds) + "\n ]\n}\n")
    part.replace(path)


def shortened(times: Sequence[float | None]) -> list[float | None]:
    """Milliseconds are enough."""
    return [None if seconds is None else round(seconds, 3) for seconds in times]

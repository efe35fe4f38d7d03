"""What recorded jobs would have been like under other policies: they arrive again when they arrived, on like machines.

What a job is (its calls and their tokens, the seconds of its tools) stays as it was recorded; when its tasks run is
decided anew by each policy, in simulated time. So the recorded completion times and those simulated under the policy
that was at work differ by as much as the simulation errs, which is why both are reported.

The curve of the engines is scaled until LLM calls take as long, on average, as they were recorded to take
(`calibrated`): whoever never measured their engines still gets their speed right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from llmsched.errors import InvalidInput
from llmsched.model.application import Application
from llmsched.model.latency import LatencyCurve
from llmsched.profiler import Curves, Knowledge, Truth
from llmsched.profiler.lengths import Model
from llmsched.scheduler import Scheduler
from llmsched.simulator.experiment import Choice, SimulatedRun, measured, to_json
from llmsched.simulator.statistics import change
from llmsched.simulator.world import Setup, World, job_name
from llmsched.workloads import Arrival

#: Jobs that the speed of the engines is found with, runs of them, and how near is near enough.
CALIBRATED_WITH, ROUNDS, NEAR = 400, 4, 0.02
#: Points of the line that says how many jobs were done within a time.
POINTS = 60


@dataclass(frozen=True, slots=True)
class Past:
    """Jobs as they were recorded, in order of arrival.

    seconds: what each took, in the same order. llm_seconds: mean seconds of its LLM calls, as they were measured;
    None where nobody measured them. knowledge: what policies are told. notes: what to know of all this, in sentences.
    """

    arrivals: tuple[Arrival, ...]
    seconds: tuple[float, ...]
    applications: Mapping[str, Application]
    knowledge: Knowledge
    llm_seconds: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Machines:
    """Slots of each engine, worker slots by pool, and the engines' curve before it is fitted to the past."""

    engines: tuple[int, ...]
    workers: Mapping[str, int]
    curve: LatencyCurve
    llm_pool: str = "llm"
    #: What every policy is told besides: `max_wait`, `tenants`.
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        counts: dict[int, int] = {}
        for slots in self.engines:
            counts[slots] = counts.get(slots, 0) + 1
        engines = " and ".join(f"{n} engine{'s' * (n > 1)} of {slots} slots" for slots, n in counts.items())
        workers = ", ".join(f"{n} {pool} worker{'s' * (n != 1)}" for pool, n in sorted(self.workers.items()))
        return f"{engines}, {workers or 'no workers'}"


def scaled(curve: LatencyCurve, factor: float) -> LatencyCurve:
    """A curve on which everything takes `factor` times as long."""
    points = tuple((b, seconds * factor) for b, seconds in curve.points)
    return LatencyCurve(f"{curve.name} x {factor:.3g}", curve.prefill_tokens_per_s / factor, points, curve.source)


def run(
    past: Past,
    machines: Machines,
    choice: Choice,
    *,
    lengths: Model | None = None,
    ended: Callable[[], object] = lambda: None,
) -> tuple[SimulatedRun, float]:
    """The past under one policy, and the mean seconds its LLM calls took in an engine.

    Raises InvalidInput where machines are missing that its jobs need.
    """
    world = _world(past, machines, choice, past.arrivals, lengths).run(ended)
    simulated = measured(world, choice.label, 0)
    simulated.alone = [arrival.recording.alone_seconds(machines.curve) for arrival in past.arrivals]
    return simulated, _llm_seconds(world, machines, past.arrivals)


def calibrated(past: Past, machines: Machines, choice: Choice) -> tuple[Machines, str]:
    """The machines at the speed at which LLM calls take as long as recorded, and a sentence about it."""
    if past.llm_seconds is None or not past.llm_seconds > 0:
        return machines, f"engines decode like {machines.curve.name}: the history does not say how long calls took"
    sample = past.arrivals[:CALIBRATED_WITH]
    factor, got = 1.0, 0.0
    for _ in range(ROUNDS):
        fitted = replace(machines, curve=scaled(machines.curve, factor))
        got = _llm_seconds(_world(past, fitted, choice, sample, None).run(), fitted, sample)
        if not got or abs(got / past.llm_seconds - 1) < NEAR:
            break
        factor *= past.llm_seconds / got
    if not got:
        return machines, "none of these jobs calls an LLM"
    fitted = replace(machines, curve=scaled(machines.curve, factor))
    return fitted, (
        f"engines decode like {machines.curve.name}, {factor:.2f} times as long: so that a call takes"
        f" {past.llm_seconds:.2f} s on average, as it was recorded"
    )


def answer(
    past: Past,
    machines: Machines,
    choices: Sequence[Choice],
    *,
    lengths: Model | None = None,
    fit_speed: bool = True,
    progress: Callable[[int], object] = lambda jobs: None,
) -> dict[str, Any]:
    """Every policy on the past, the first one being what the others are compared with.

    progress: called with the number of simulated jobs that are over. The document is that of `simulate`, and besides:
    `recorded`, what it really was; `lines`, by policy (and "recorded"), [seconds, share of jobs done within them];
    `assumptions`, sentences.
    Raises InvalidInput where there is nothing to simulate, or machines are missing.
    """
    if not past.arrivals:
        raise InvalidInput("no completed job was submitted in that time; ask for a longer one (--last 7d)")
    over = 0

    def ended() -> None:
        nonlocal over
        over += 1
        progress(over)

    speed = f"engines decode like {machines.curve.name}"
    if fit_speed:
        machines, speed = calibrated(past, machines, choices[0])
    runs = [run(past, machines, choice, lengths=lengths, ended=ended)[0] for choice in choices]
    applications: dict[str, int] = {}
    for arrival in past.arrivals:
        applications[arrival.recording.application] = applications.get(arrival.recording.application, 0) + 1
    settings = {
        "policies": [choice.label for choice in choices],
        "jobs": len(past.arrivals),
        "applications": dict(sorted(applications.items())),
        "seconds": round(past.arrivals[-1].at, 3),
        "machines": str(machines),
        "engines": list(machines.engines),
        "workers": dict(machines.workers),
        "latency": machines.curve.to_json(),
    }
    document = to_json(settings, runs)
    times = np.array(past.seconds)
    p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
    baseline = np.array([t for _, t in runs[0].jobs], dtype=float)
    document["recorded"] = {
        "mean_jct": float(times.mean()),
        "p50_jct": p50,
        "p95_jct": p95,
        "p99_jct": p99,
        # How far off the simulation is, if the first policy is the one that was at work.
        "vs": {runs[0].policy: change(times, baseline)},
    }
    lines = {"recorded": list(past.seconds)} | {run.policy: run.completion_times for run in runs}
    document["lines"] = {name: _line(line) for name, line in lines.items()}
    document["assumptions"] = [
        f"machines: {machines}, there all the time",
        speed,
        "jobs arrive when they arrived, whatever the policy, and are what they were: calls, tokens, seconds of tools",
        *past.notes,
    ]
    return document


def _world(past: Past, machines: Machines, choice: Choice, arrivals: Sequence[Arrival], lengths: Model | None) -> World:
    # Policies see the seconds of the machines they run on.
    curves = Curves(default=machines.curve)
    knowledge = Knowledge(past.knowledge.profiles.values(), curves)
    truth = Truth({job_name(k): arrival.recording for k, arrival in enumerate(arrivals)}, curves)
    options = {name: value for name, value in machines.options.items() if value and name not in choice.options}
    made = replace(choice, options={**choice.options, **options}).make(knowledge, truth, 0, lengths)
    setup = Setup(machines.engines, machines.workers, machines.curve, machines.llm_pool)
    return World(Scheduler(made), arrivals, past.applications, setup)


def _llm_seconds(world: World, machines: Machines, arrivals: Sequence[Arrival]) -> float:
    """Mean seconds from the dispatch of an LLM call to its last token."""
    calls = sum(len(s.tasks) for a in arrivals for s in a.recording.stages if s.kind == "llm")
    return world.busy[machines.llm_pool] / calls if calls else 0.0


def _line(times: Sequence[float]) -> list[list[float]]:
    shares = np.linspace(0, 100, POINTS)
    found = np.percentile(np.array(times), shares) if len(times) else np.zeros(0)
    return [[float(f"{t:.4g}"), round(float(s) / 100, 4)] for t, s in zip(found, shares, strict=False)]

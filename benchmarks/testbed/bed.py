"""What a testbed run and its simulation have in common: jobs, moments of arrival, machines, and what is known.

A *bed* is a workload at an offered load on one kind of engine; a *run* of it is one policy. Machines are those that
`llmsched simulate --load` makes; jobs are traced ones of queries that profiles did not learn from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from llmsched.catalogue import installed_applications
from llmsched.model.kinds import StageKind
from llmsched.model.latency import LatencyCurve
from llmsched.model.recording import RecordedStage, RecordedTask, Recording
from llmsched.policies import DEFAULT_POLICY
from llmsched.runtime.learning.profiles import write_profile
from llmsched.simulator.experiment import (
    WORKER_SLACK,
    Choice,
    Comparison,
    SimulatedRun,
    Sizing,
    Work,
    learn,
    prepare,
    size,
    slowdown,
)
from llmsched.workloads import Arrival

RATE = 0.9
SEED = 0
WORKLOADS = ("mixed", "predefined", "chain", "planning")
POLICIES = ("fcfs", "fair", "sjf", "llmsched", "las", DEFAULT_POLICY)


class Scale(NamedTuple):
    """What a slow engine's jobs are divided by: prompt tokens, output tokens, seconds of tools."""

    prompt: float = 1.0
    output: float = 1.0
    tool: float = 1.0

    def of(self, recording: Recording) -> Recording:
        """The job, made smaller; an LLM call keeps a token each way, a stage all its tasks."""
        if self == Scale():
            return recording
        return replace(recording, stages=tuple(map(self._stage, recording.stages)))

    def _stage(self, stage: RecordedStage) -> RecordedStage:
        if stage.kind is StageKind.LLM:
            return replace(stage, tasks=tuple(map(self._call, stage.tasks)))
        return replace(stage, tasks=tuple(replace(t, duration=t.duration / self.tool) for t in stage.tasks))

    def _call(self, task: RecordedTask) -> RecordedTask:
        prompt, output = (
            max(1, round(task.prompt_tokens / self.prompt)),
            max(1, round(task.output_tokens / self.output)),
        )
        return replace(task, prompt_tokens=prompt, output_tokens=output)


@dataclass(frozen=True, slots=True)
class Bed:
    """A workload at a load: `comparison` simulates it, `arrivals` are its jobs, `profiles` is what a service learns."""

    workload: str
    load: float
    sizing: Sizing
    comparison: Comparison
    arrivals: Sequence[Arrival]
    profiles: Path

    def on(self, curve: LatencyCurve) -> Bed:
        """The same jobs at the same moments on machines that turned out to be this fast."""
        return replace(self, comparison=replace(self.comparison, curve=curve))

    def simulate(self, policy: str, overhead: float = 0.0) -> SimulatedRun:
        """The same jobs at the same moments under a policy, in simulated time. overhead: seconds added to each call."""
        comparison = replace(self.comparison, policies=(Choice.parse(policy),), overhead=overhead)
        return comparison.run((0, 0, 0), self.arrivals)


def make_bed(
    workload: str,
    load: float,
    jobs: int,
    curve: LatencyCurve,
    traces: Path,
    folder: Path,
    *,
    scale: Scale | None = None,
    slots: int | None = None,
) -> Bed:
    """Reads traces, learns profiles and writes them into a folder of `folder`.

    scale: of the jobs that run and of those that profiles learn from. slots: of the one engine there is; None makes
    engines for the load, as `simulate --load` does.
    """
    applications = installed_applications()
    source = prepare(workload, traces, None)
    scale = scale or Scale()
    ran = replace(source.workload, traces=_scaled(source.workload.traces or {}, scale))
    work = Work.of(ran, applications, curve)
    sizing = size(work, RATE, load, curve) if slots is None else one_engine(work, load, curve, slots)
    knowledge = learn(_scaled(source.training, scale), applications, curve)
    profiles = folder / workload
    profiles.mkdir(parents=True, exist_ok=True)
    for profile in knowledge.profiles.values():
        write_profile(profiles, profile)
    comparison = Comparison(ran, (), (sizing,), (SEED,), jobs, applications, curve, knowledge, shared_prefixes=True)
    return Bed(workload, load, sizing, comparison, ran.arrivals(jobs, sizing.rate, SEED), profiles)


def one_engine(work: Work, load: float, curve: LatencyCurve, slots: int) -> Sizing:
    """One engine of so many slots, the rate at which jobs offer it exactly this load, workers as `size` has them."""
    rate = load * slots / (work.llm * slowdown(curve, slots))
    workers = {pool: max(1, -int(-rate * seconds // (WORKER_SLACK * load))) for pool, seconds in work.regular.items()}
    return Sizing((slots,), workers, rate, load, work.llm_pool)


def _scaled(traces: Mapping[str, Sequence[Recording]], scale: Scale) -> dict[str, list[Recording]]:
    return {name: [scale.of(recording) for recording in recordings] for name, recordings in traces.items()}

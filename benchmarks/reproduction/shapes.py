"""What figures 1 and 5 count: how long jobs take alone, how many stages they have, how long each stage takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import simulations
from numpy.typing import NDArray

from llmsched.model.kinds import StageKind
from llmsched.model.recording import RecordedStage, Recording
from llmsched.workloads import isolated_seconds, read_traces

#: The applications of the two figures, and what the paper says of them: seconds alone, stages (generated ones of
#: task automation).
SORTING, CODE, TASKS = "sequence_sorting", "code_generation", "task_automation"
SECONDS = {SORTING: (10.0, 300.0), CODE: (2.0, 50.0), TASKS: (1.0, 116.0)}
STAGES = {CODE: (3, 15), TASKS: (1, 8)}
#: Stages by their place, and their correlation.
PAIRS = {SORTING: (0, 3, 0.7), CODE: (3, 6, 0.9)}
#: Generated jobs of each application.
GENERATED = 4000

Jobs = Sequence[Recording]


def jobs_of(source: str, application: str, traces: Path | None) -> Jobs:
    """All public jobs, or many generated ones."""
    if source == "traces":
        assert traces is not None
        return read_traces(traces, [application])[application]
    return simulations.generated(application, source, GENERATED)


def sources(traces: Path | None) -> list[str]:
    return ["paper", "measured", *(["traces"] if traces is not None else [])]


def seconds(jobs: Jobs) -> NDArray[np.float64]:
    """(jobs,) what each takes alone on an engine of batch size 1, tools side by side."""
    return np.array([isolated_seconds(job.stages) for job in jobs])


def stages(jobs: Jobs, *, generated: bool = False) -> NDArray[np.int64]:
    """(jobs,) stages of each; generated: only those of its plan. The placeholder of a plan is no stage."""
    return np.array(
        [
            sum(s.kind is not StageKind.DYNAMIC and (s.parent is not None or not generated) for s in j.stages)
            for j in jobs
        ]
    )


def configuration(job: Recording) -> str:
    """What was run how: jobs of several configurations must not be correlated together."""
    run = job.job_id.partition("#")[2].split("-")[0]
    variant = str(job.features.get("variant", ""))
    return f"{variant} ({run})" if run in ("gpt4", "l405", "l70", "early") else variant


def of_configuration(jobs: Jobs, name: str) -> Jobs:
    return [job for job in jobs if configuration(job) == name]


def stage_seconds(stage: RecordedStage) -> float:
    """Alone at batch size 1: LLM calls one after the other, tools side by side."""
    if stage.kind is StageKind.LLM:
        return sum(simulations.CURVE.reference(t.prompt_tokens, t.output_tokens) for t in stage.tasks)
    return max((task.duration for task in stage.tasks), default=0.0)


def durations(jobs: Jobs) -> tuple[list[str], NDArray[np.float64]]:
    """Names of the stages in the order of the longest job, and (jobs, stages) seconds; 0 where one did not run."""
    names = [stage.name for stage in max(jobs, key=lambda job: len(job.stages)).stages]
    place = {name: k for k, name in enumerate(names)}
    found = np.zeros((len(jobs), len(names)))
    for row, job in zip(found, jobs, strict=True):
        for stage in job.stages:
            if stage.name in place:
                row[place[stage.name]] = stage_seconds(stage)
    return names, found


def pearson(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """(stages, stages) coefficients; nan for a stage that always takes the same.

    >>> pearson(np.array([[1.0, 2.0, 5.0], [2.0, 4.0, 5.0], [3.0, 6.0, 5.0]]))[0].round(6).tolist()
    [1.0, 1.0, nan]
    """
    varies = columns.std(axis=0) > 1e-9 * (1.0 + np.abs(columns.mean(axis=0)))
    found = np.full((columns.shape[1],) * 2, np.nan)
    if varies.any():
        found[np.ix_(varies, varies)] = np.atleast_2d(np.corrcoef(columns[:, varies].T))
    return found


def interval_of_pearson(x: NDArray[np.float64], y: NDArray[np.float64], resamples: int = 2000) -> tuple[float, float]:
    """Bootstrap 95 % interval over jobs."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(x), size=(resamples, len(x)))
    a, b = x[drawn], y[drawn]
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    low, high = np.nanpercentile(r, [2.5, 97.5])
    return float(low), float(high)

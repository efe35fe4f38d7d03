"""Finished jobs of one application as arrays: what every profile is learned from.

A *column* is the part of a stage that runs in one pool. A plain stage has one column; a dynamic stage has one for every
pool its candidates run in, and holds what its whole plan did there. Costs are kept as tokens and seconds of regular
work, never as seconds of LLM work: those are made when they are read, with the latency curve of today's engines
(`History.works`), so that a new calibration never spoils a profile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llmsched.errors import ProfileError
from llmsched.model.application import Application
from llmsched.model.kinds import StageKind
from llmsched.model.latency import GENERIC_7B, LatencyCurve
from llmsched.model.recording import FEATURES, RecordedStage, Recording
from llmsched.model.unfolding import candidate_of, pool_of

Array = npt.NDArray[np.float64]

#: Costs of a column: tasks, prompt tokens, output tokens, seconds of regular work.
TASKS, PROMPT, OUTPUT, SECONDS = range(4)

#: Features of a job that are numbers, in order; the others are names.
NUMBERS = tuple(name for name, kind in FEATURES.items() if kind is int)


class Column(NamedTuple):
    """What one stage does in one pool. is_plan: of a dynamic stage, whose plan decides what that is."""

    stage: str
    pool: str
    is_plan: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of an application, in its topological order."""

    application: str
    version: int
    columns: tuple[Column, ...]
    #: Pools in order of first use.
    pools: tuple[str, ...] = field(compare=False)
    #: Stage -> its columns.
    of_stage: Mapping[str, tuple[int, ...]] = field(compare=False, repr=False)
    #: Stage -> the stages it waits for.
    after: Mapping[str, tuple[str, ...]] = field(compare=False, repr=False)

    @classmethod
    def of(cls, application: Application) -> Layout:
        columns: list[Column] = []
        for stage in application.stages:
            if stage.kind is StageKind.DYNAMIC:
                reached = dict.fromkeys(c.pool for c in stage.candidates)
                columns += (Column(stage.name, pool, True) for pool in reached)
            else:
                columns.append(Column(stage.name, stage.pool, False))
        of_stage: dict[str, tuple[int, ...]] = {}
        for k, column in enumerate(columns):
            of_stage[column.stage] = (*of_stage.get(column.stage, ()), k)
        pools = tuple(dict.fromkeys(c.pool for c in columns))
        after = {stage.name: stage.after for stage in application.stages}
        return cls(application.name, application.version, tuple(columns), pools, of_stage, after)

    @property
    def first(self) -> tuple[str, ...]:
        """Stages that wait for none: their prompts are known at submission."""
        return tuple(stage for stage, parents in self.after.items() if not parents)

    def column(self, stage: str, pool: str) -> int | None:
        """The column of a stage in a pool, None if the template has no such thing."""
        return next((k for k in self.of_stage.get(stage, ()) if self.columns[k].pool == pool), None)


class Plan(NamedTuple):
    """What a planner asked for: how often each candidate, and which candidate feeds which."""

    stage: str
    counts: Mapping[str, int]
    edges: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class History:
    """n jobs of one application.

    costs: (n, columns, 4): tasks, prompt tokens, output tokens, regular seconds of each column; zeros where it did not
    run. squares: (n, columns): sum over tasks of the squared output tokens (llm) or seconds (regular), which tells how
    much tasks of one stage differ. numbers: (n, len(NUMBERS)), NaN where a job has none. variants: "" where none.
    queries: what the job was about, so that several runs of one question can be kept together.
    plans: per job, one `Plan` per dynamic stage that ran. candidates: (stage, candidate) -> (runs, tasks, prompt,
    output, seconds) over all jobs.
    """

    layout: Layout
    costs: Array
    squares: Array
    numbers: Array
    variants: tuple[str, ...]
    queries: tuple[str, ...]
    plans: tuple[tuple[Plan, ...], ...]
    candidates: Mapping[tuple[str, str], tuple[float, ...]]

    def __len__(self) -> int:
        return len(self.variants)

    @classmethod
    def of(cls, application: Application, recordings: Iterable[Recording]) -> History:
        """The jobs of a trace. Stages the template does not know are left out of account.

        Raises ProfileError for a job of another application.
        """
        layout = Layout.of(application)
        rows = [_row(application, layout, recording) for recording in recordings]
        candidates: dict[tuple[str, str], tuple[float, ...]] = {}
        for row in rows:
            for key, cost in row.candidates:
                known = candidates.get(key, (0.0,) * 5)
                candidates[key] = tuple(a + b for a, b in zip(known, (1.0, *cost), strict=True))
        return cls(
            layout,
            np.array([row.costs for row in rows], dtype=float).reshape(len(rows), len(layout.columns), 4),
            np.array([row.squares for row in rows], dtype=float).reshape(len(rows), len(layout.columns)),
            np.array([row.numbers for row in rows], dtype=float).reshape(len(rows), len(NUMBERS)),
            tuple(row.variant for row in rows),
            tuple(row.query for row in rows),
            tuple(row.plans for row in rows),
            candidates,
        )

    def take(self, rows: Sequence[int]) -> History:
        """Some of the jobs, in the order asked for. Statistics of candidates stay those of all jobs."""
        index = list(rows)
        return History(
            self.layout,
            self.costs[index],
            self.squares[index],
            self.numbers[index],
            tuple(self.variants[k] for k in index),
            tuple(self.queries[k] for k in index),
            tuple(self.plans[k] for k in index),
            self.candidates,
        )

    @property
    def ran(self) -> npt.NDArray[np.bool_]:
        """(n, columns): whether the stage ran there, with at least one task."""
        ran: npt.NDArray[np.bool_] = self.costs[:, :, TASKS] > 0
        return ran

    def works(self, curves: Curves) -> tuple[Array, Array]:
        """Reference seconds of every column: (n, columns) of prefill and regular work, and of decoding at l(1)."""
        prefill = np.array([1.0 / curves[c.pool].prefill_tokens_per_s for c in self.layout.columns])
        decode = np.array([curves[c.pool].decode(1) for c in self.layout.columns])
        fixed = self.costs[:, :, PROMPT] * prefill + self.costs[:, :, SECONDS]
        return fixed, self.costs[:, :, OUTPUT] * decode

    # --------------------------------------------------------------------------------------------- as JSON

    def to_json(self) -> dict[str, Any]:
        """Sparse: only columns that ran are listed."""
        return {
            "columns": [list(c) for c in self.layout.columns],
            "jobs": [
                {
                    "query": self.queries[i],
                    "variant": self.variants[i],
                    "numbers": [None if np.isnan(x) else x for x in self.numbers[i].tolist()],
                    "costs": [
                        [int(k), *self.costs[i, k].tolist(), float(self.squares[i, k])] for k in np.flatnonzero(ran)
                    ],
                    "plans": [[p.stage, dict(p.counts), [list(e) for e in p.edges]] for p in self.plans[i]],
                }
                for i, ran in enumerate(self.ran)
            ],
            "candidates": [[*key, *values] for key, values in self.candidates.items()],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any], application: Application) -> History:
        """Reads what `to_json` wrote.

        Raises ProfileError if the application's columns are others now, or a cost is impossible.
        """
        layout = Layout.of(application)
        columns = tuple(Column(*c) for c in document["columns"])
        if columns != layout.columns:
            raise ProfileError(
                f"the profile of {application.name!r} was learned from other stages than version {application.version}"
                " has; fit it again"
            )
        jobs = document["jobs"]
        costs = np.zeros((len(jobs), len(columns), 4))
        squares = np.zeros((len(jobs), len(columns)))
        for i, job in enumerate(jobs):
            for k, *cost, square in job["costs"]:
                costs[i, k], squares[i, k] = cost, square
        for array in (costs, squares):
            if not (np.isfinite(array).all() and (array >= 0).all()):
                raise ProfileError(f"the profile of {application.name!r} has costs that are no numbers; fit it again")
        numbers = [[np.nan if x is None else x for x in job["numbers"]] for job in jobs]
        return cls(
            layout,
            costs,
            squares,
            np.array(numbers, dtype=float).reshape(len(jobs), len(NUMBERS)),
            tuple(job["variant"] for job in jobs),
            tuple(job["query"] for job in jobs),
            tuple(tuple(Plan(s, c, tuple((a, b) for a, b in e)) for s, c, e in job["plans"]) for job in jobs),
            {(stage, name): tuple(values) for stage, name, *values in document["candidates"]},
        )


class Curves:
    """The latency curve of each pool's reference engine; regular pools have one too, which nobody asks."""

    def __init__(self, curves: Mapping[str, LatencyCurve] | None = None, default: LatencyCurve = GENERIC_7B) -> None:
        self._curves = dict(curves or {})
        self._default = default

    def __getitem__(self, pool: str) -> LatencyCurve:
        return self._curves.get(pool, self._default)


class _Row(NamedTuple):
    costs: list[list[float]]
    squares: list[float]
    numbers: list[float]
    variant: str
    query: str
    plans: tuple[Plan, ...]
    candidates: list[tuple[tuple[str, str], tuple[float, ...]]]


def _row(application: Application, layout: Layout, recording: Recording) -> _Row:
    if recording.application != application.name:
        raise ProfileError(
            f"job {recording.job_id!r} is of application {recording.application!r}; a profile of"
            f" {application.name!r} learns from its own jobs only"
        )
    costs = [[0.0] * 4 for _ in layout.columns]
    squares = [0.0] * len(layout.columns)
    inner: dict[str, list[RecordedStage]] = {}
    candidates = []
    for stage in recording.stages:
        if stage.kind is StageKind.DYNAMIC:
            inner.setdefault(stage.name, [])
            continue
        k = layout.column(stage.parent or stage.name, pool_of(application, stage))
        if k is None or layout.columns[k].is_plan != (stage.parent is not None):
            continue
        cost, square = _cost(recording, stage)
        costs[k] = [a + b for a, b in zip(costs[k], cost, strict=True)]
        squares[k] += square
        if stage.parent is not None:
            inner.setdefault(stage.parent, []).append(stage)
            candidates.append(((stage.parent, _candidate(application, stage)), cost))
    plans = tuple(_plan(application, name, stages) for name, stages in inner.items() if name in layout.of_stage)
    features = recording.features
    numbers = [float(features[name]) if name in features else np.nan for name in NUMBERS]
    query = recording.job_id.partition("#")[0]
    return _Row(costs, squares, numbers, str(features.get("variant", "")), query, plans, candidates)


def _cost(recording: Recording, stage: RecordedStage) -> tuple[tuple[float, ...], float]:
    prompt = float(sum(t.prompt_tokens for t in stage.tasks))
    output = float(sum(t.output_tokens for t in stage.tasks))
    seconds = float(sum(t.duration for t in stage.tasks))
    if not (isfinite(seconds) and seconds >= 0 and prompt >= 0 and output >= 0):
        raise ProfileError(
            f"job {recording.job_id!r}, stage {stage.name!r} costs {prompt:g} prompt tokens, {output:g} output tokens"
            f" and {seconds:g} s; costs are finite and not negative: mend or drop the job"
        )
    each = [t.output_tokens if stage.kind is StageKind.LLM else t.duration for t in stage.tasks]
    return (float(len(stage.tasks)), prompt, output, seconds), float(sum(x * x for x in each))


def _candidate(application: Application, stage: RecordedStage) -> str:
    return candidate_of(application, stage) or stage.name


def _plan(application: Application, name: str, stages: Sequence[RecordedStage]) -> Plan:
    chosen = {s.name: _candidate(application, s) for s in stages}
    counts: dict[str, int] = {}
    for candidate in chosen.values():
        counts[candidate] = counts.get(candidate, 0) + 1
    edges = {(chosen[p], chosen[s.name]): None for s in stages for p in s.after if p in chosen}
    return Plan(name, counts, tuple(edges))

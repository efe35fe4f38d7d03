"""What Decima sees: every unfinished stage of every job as a node, with means for what is not known.

A node's features (all about 1): tasks to start / 10; their work / 60; mean work of a task / 60; running tasks / 10;
kind (3, one-hot); whether tasks are ready; LLM slots and worker slots its job holds, and free slots of its pool, each
over all of them. Durations are historical means (`Priors`), never true ones. A dynamic stage is one node until its plan
is known; then the stages of the plan are nodes in its place.

Levels: a stage's level is the longest way from it to a sink, at most `DEPTH`. Messages go from sinks upward, level by
level; stages further up than that hear what their children knew before.
Source: Decima, section 5.1; the features of its simulator that speak of executors bound to jobs have no meaning here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmsched.model.job import Job, Stage
from llmsched.model.kinds import StageKind
from llmsched.policies.base import View
from llmsched.profiler.prior import Prior, Priors

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

FEATURES = 11
DEPTH = 8
_KINDS = {StageKind.REGULAR: 0, StageKind.LLM: 1, StageKind.DYNAMIC: 2}


class Edges(NamedTuple):
    """Children of the nodes of one level, sorted by parent. starts: where each parent's children begin."""

    parents: Ints
    starts: Ints
    children: Ints


@dataclass(slots=True)
class Graph:
    """n nodes of m jobs, nodes of a job side by side; `take` changes it as a choice does.

    to_start, work, running: (n,) tasks to start, mean reference seconds of one, tasks that run. kind: (n, 3).
    ready: (n,) tasks that could start now. pool: (n,) index into `pools`, -1 for a dynamic stage. starts: (m,) first
    node of each job. job_of: (n,). held: (m, pools) slots a job has. is_llm, free, slots: (pools,).
    """

    stages: list[Stage]
    pools: tuple[str, ...]
    to_start: Floats
    work: Floats
    running: Floats
    kind: Floats
    ready: Ints
    pool: Ints
    starts: Ints
    job_of: Ints
    held: Floats
    is_llm: npt.NDArray[np.bool_]
    free: Ints
    slots: Ints
    levels: list[Edges]

    def features(self) -> Floats:
        """(n, FEATURES)."""
        slots = np.maximum(self.slots, 1)
        llm, regular = max(1, slots[self.is_llm].sum()), max(1, slots[~self.is_llm].sum())
        x = np.empty((len(self.to_start), FEATURES), np.float32)
        x[:, 0] = self.to_start / 10
        x[:, 1] = self.to_start * self.work / 60
        x[:, 2] = self.work / 60
        x[:, 3] = self.running / 10
        x[:, 4:7] = self.kind
        x[:, 7] = self.ready > 0
        x[:, 8] = (self.held[:, self.is_llm].sum(axis=1) / llm)[self.job_of]
        x[:, 9] = (self.held[:, ~self.is_llm].sum(axis=1) / regular)[self.job_of]
        x[:, 10] = np.where(self.pool >= 0, (self.free / slots)[self.pool], 0.0)
        return x

    def choosable(self) -> npt.NDArray[np.bool_]:
        """(n,) stages with a ready task whose pool has a free slot and whose job is not at the largest limit."""
        room = (self.free > 0) & (self.slots > 0)
        below = self.held[self.job_of, self.pool] < self.slots[self.pool]
        return (self.ready > 0) & (self.pool >= 0) & room[self.pool] & below

    def limits(self, node: int) -> tuple[Ints, Floats]:
        """Limits that a node's job may get in its pool, (k,), largest first, and what is seen of each, (k, 4)."""
        pool, job = self.pool[node], self.job_of[node]
        total, held = int(self.slots[pool]), int(self.held[job, pool])
        options = np.array([limit for limit in limits_of(total) if limit > held])
        own = slice(self.starts[job], self.starts[job + 1] if job + 1 < len(self.starts) else None)
        x = np.empty((len(options), 4), np.float32)
        x[:, 0] = held / total
        x[:, 1] = self.free[pool] / total
        x[:, 2] = (self.to_start[own] * self.work[own]).sum() / 60
        x[:, 3] = options / total
        return options, x

    def take(self, node: int, tasks: int) -> None:
        """So many tasks of a stage are going to start."""
        pool = self.pool[node]
        self.ready[node] -= tasks
        self.to_start[node] -= tasks
        self.running[node] += tasks
        self.held[self.job_of[node], pool] += tasks
        self.free[pool] -= tasks


def limits_of(total: int) -> list[int]:
    """Powers of two up to all slots of a pool, largest first.

    >>> limits_of(7)
    [7, 4, 2, 1]
    """
    powers = [1 << k for k in range(total.bit_length()) if 1 << k < total]
    return [total, *reversed(powers)]


class _Block(NamedTuple):
    """The nodes of one job. edges: (level, parent, child) in the numbers of the block."""

    stages: list[Stage]
    to_start: list[float]
    work: list[float]
    running: list[int]
    kind: list[int]
    ready: list[int]
    pool: list[str]
    edges: list[tuple[int, int, int]]


class Observer:
    """Makes graphs of jobs; remembers a job's nodes until something happens to it."""

    def __init__(self, priors: Priors) -> None:
        self._priors = priors
        self._blocks: dict[str, _Block] = {}

    def touch(self, job: Job) -> None:
        """Something of the job is different now, or it is over."""
        self._blocks.pop(job.id, None)

    def look(self, view: View, jobs: Sequence[Job]) -> Graph:
        """The graph of these jobs as things are now."""
        blocks = [self._block(job) for job in jobs]
        totals = _slots(view.executors.values())
        waiting = (name for block in blocks for name in block.pool if name)
        pools = tuple(dict.fromkeys((*totals, *waiting)))
        number = {name: k for k, name in enumerate(pools)} | {"": -1}
        sizes = [len(block.stages) for block in blocks]
        starts = np.cumsum([0, *sizes])[:-1]
        kind = [k for block in blocks for k in block.kind]
        pool = np.array([number[name] for block in blocks for name in block.pool], dtype=np.int64)
        held = np.zeros((len(jobs), len(pools)), np.float32)
        for j, job in enumerate(jobs):
            for task in job.running.values():
                if task.pool in number:
                    held[j, number[task.pool]] += 1
        is_llm = np.zeros(len(pools), dtype=bool)
        is_llm[pool[np.array(kind, dtype=np.int64) == _KINDS[StageKind.LLM]]] = True
        return Graph(
            [stage for block in blocks for stage in block.stages],
            pools,
            np.array([x for block in blocks for x in block.to_start], np.float32),
            np.array([x for block in blocks for x in block.work], np.float32),
            np.array([x for block in blocks for x in block.running], np.float32),
            np.eye(3, dtype=np.float32)[kind] if kind else np.zeros((0, 3), np.float32),
            np.array([x for block in blocks for x in block.ready], dtype=np.int64),
            pool,
            starts.astype(np.int64),
            np.repeat(np.arange(len(jobs)), sizes),
            held,
            is_llm,
            np.array([totals.get(name, (0, 0))[1] for name in pools], dtype=np.int64),
            np.array([totals.get(name, (0, 0))[0] for name in pools], dtype=np.int64),
            edges_of([block.edges for block in blocks], starts.tolist()),
        )

    def _block(self, job: Job) -> _Block:
        known = self._blocks.get(job.id)
        if known is None:
            known = self._blocks[job.id] = _nodes(job, self._priors[job.application])
        return known


def _slots(executors: Iterable[object]) -> dict[str, tuple[int, int]]:
    """Pool -> (all slots, free slots)."""
    totals: dict[str, tuple[int, int]] = {}
    for executor in executors:
        slots, free = totals.get(executor.pool, (0, 0))  # type: ignore[attr-defined]
        totals[executor.pool] = slots + executor.slots, free + executor.free  # type: ignore[attr-defined]
    return totals


def _nodes(job: Job, prior: Prior) -> _Block:
    block = _Block([], [], [], [], [], [], [], [])
    at: dict[str, int] = {}
    for stage in job.stages.values():
        if stage.is_over or (stage.kind is StageKind.DYNAMIC and stage.is_revealed):
            continue
        at[stage.name] = len(block.stages)
        block.stages.append(stage)
        block.kind.append(_KINDS[stage.kind])
        block.pool.append("" if stage.kind is StageKind.DYNAMIC else stage.pool)
        running = sum(1 for ref in job.running if ref.stage == stage.name)
        if stage.tasks is not None:
            waiting = float(len(stage.tasks) - stage.done_tasks - running)
        else:
            known = prior.stages.get(stage.name)
            waiting = float(known.tasks) if known is not None else 1.0
        each = prior.each(stage.name, stage.spec.parent, stage.spec.candidate)
        if stage.tasks is None and stage.name in prior.stages and waiting:
            each = prior.stages[stage.name].total / waiting  # what it does not do in some jobs counts
        block.to_start.append(waiting)
        block.work.append(each)
        block.running.append(running)
        block.ready.append(len(stage.ready))
    level = _levels(block.stages, at)
    for stage in block.stages:
        for parent in stage.spec.after:
            if parent in at:
                block.edges.append((level[parent], at[parent], at[stage.name]))
    return block


def _levels(stages: Sequence[Stage], at: dict[str, int]) -> dict[str, int]:
    """The longest way from each stage to a sink, at most DEPTH; stages stand in a topological order, or nearly so."""
    level = dict.fromkeys(at, 0)
    for stage in sorted(stages, key=lambda stage: -stage.order):
        for parent in stage.spec.after:
            if parent in level:
                level[parent] = min(DEPTH, max(level[parent], level[stage.name] + 1))
    return level


def edges_of(blocks: Sequence[Sequence[tuple[int, int, int]]], starts: Sequence[int]) -> list[Edges]:
    """The edges of all blocks, level by level, in the numbers of the graph."""
    by_level: dict[int, list[tuple[int, int]]] = {}
    for edges, start in zip(blocks, starts, strict=True):
        for level, parent, child in edges:
            by_level.setdefault(level, []).append((parent + start, child + start))
    levels = []
    for level in sorted(by_level):
        pairs = np.array(sorted(by_level[level]), dtype=np.int64)
        parents, first = np.unique(pairs[:, 0], return_index=True)
        levels.append(Edges(parents, first.astype(np.int64), pairs[:, 1]))
    return levels

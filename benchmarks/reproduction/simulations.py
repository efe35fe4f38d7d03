"""Simulated runs that the experiments share: which jobs on which machines under which policy, run once and kept.

A *cell* is one comparison on identical jobs; a *run* of it is one policy and one seed. Runs are independent, so they
are spread over processes, and what a results file of an earlier call holds is not run again.

| source     | jobs that run                                   | jobs that profiles learn from                      |
|------------|-------------------------------------------------|----------------------------------------------------|
| `paper`    | generator, stretched to the paper's durations   | 1,000 others of each application, drawn apart      |
| `measured` | generator, numbers of the public traces         | the same                                           |
| `traces`   | 30 % of the queries of the public traces        | the other 70 %                                     |
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from math import ceil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from document import Options

from llmsched.catalogue import installed_applications
from llmsched.model.latency import GENERIC_7B
from llmsched.profiler import Knowledge
from llmsched.simulator.experiment import (
    SAMPLE,
    WORKER_SLACK,
    Choice,
    Comparison,
    Sizing,
    Source,
    Work,
    learn,
    prepare,
    size,
    slowdown,
)
from llmsched.simulator.statistics import Samples, change
from llmsched.workloads import Arrival, Workload, generate

CURVE = GENERIC_7B
#: The rate of the paper, jobs per second; the unit is ours, the paper names none.
RATE = 0.9
LOAD = 0.85
JOBS = 300
WORKLOADS = ("mixed", "predefined", "chain", "planning")

#: Results files of this process.
_WRITTEN: set[Path] = set()
#: Seconds between two savings of what is done so far.
SAVE_EVERY_S = 10.0
#: What one run is remembered by.
COLUMNS = ("mean_jct", "p95_jct", "decision_ms", "llm_busy", "cpu_busy")


@dataclass(frozen=True)
class Cell:
    """One comparison on identical jobs.

    load: for which the machines are made. rate_factor: arrivals are so much faster than that. slots: of each engine,
    None: as `llmsched simulate --load` chooses. workers_factor: so many times the workers that it chooses.
    """

    source: str
    workload: str
    jobs: int = JOBS
    load: float = LOAD
    rate_factor: float = 1.0
    slots: int | None = None
    workers_factor: float = 1.0
    policies: tuple[str, ...] = field(default=(), compare=False)
    seeds: int = field(default=1, compare=False)

    def __str__(self) -> str:
        more = "" if self.rate_factor == 1 else f", rate x {self.rate_factor:.2g}"
        more += "" if self.slots is None else f", engines of {self.slots}"
        more += "" if self.workers_factor == 1 else f", workers x {self.workers_factor:g}"
        return f"{self.source} {self.workload}, {self.jobs} jobs, load {self.load:g}{more}"


@dataclass
class Found:
    """What the runs of a cell gave. runs: (policy, seed) -> one number per column."""

    cell: Cell
    machines: dict[str, Any]
    runs: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def samples(self, policy: str, column: str = "mean_jct") -> Samples:
        """(seeds,) one number per seed."""
        k = COLUMNS.index(column)
        return np.array([self.runs[policy, seed][k] for seed in range(self.cell.seeds)])

    def mean(self, policy: str, column: str = "mean_jct") -> float:
        return float(self.samples(policy, column).mean())

    def change(self, policy: str, other: str) -> tuple[float, list[float] | None]:
        """Change of the mean JCT against another policy in per cent, and its paired 95 % interval (from two seeds)."""
        mine, theirs = self.samples(policy), self.samples(other)
        found = change(mine, theirs)
        if found is None:
            return float(mine.mean() / theirs.mean() - 1) * 100, None
        return found["change_pct"], found["ci95"]

    def reduction(self, policy: str, other: str) -> tuple[float, list[float] | None]:
        """The paper's measure: 1 - JCT(policy) / JCT(other), in per cent."""
        by, interval = self.change(policy, other)
        return -by, None if interval is None else [-interval[1], -interval[0]]

    def to_json(self) -> dict[str, Any]:
        own = {k: v for k, v in asdict(self.cell).items() if k not in ("policies", "seeds")}
        runs: dict[str, list[list[float]]] = {}
        for policy in self.cell.policies:
            rows = runs.setdefault(policy, [])
            while (row := self.runs.get((policy, len(rows)))) is not None:  # what is not done yet leaves no gap
                rows.append([round(x, 4) for x in row])
        return own | {"machines": self.machines, "runs": runs}


# ------------------------------------------------------------------------------------------------ jobs and machines


@lru_cache
def source_of(name: str, workload: str, traces: Path | None) -> Source:
    """Jobs to run and to learn from. Raises InvalidInput, UnknownName."""
    if name == "traces":
        return prepare(workload, traces, None)
    loaded = Workload.load(workload, None, name)
    training = {application: generated(application, name) for application in loaded.applications}
    return Source(loaded, training, f"profiles from {SAMPLE} other generated jobs of each application")


@lru_cache
def generated(application: str, parameters: str, jobs: int = SAMPLE) -> tuple[Any, ...]:
    """Generated jobs, with random numbers that no workload uses."""
    rng = Random(f"llmsched/training/{application}")
    return tuple(generate(application, rng, parameters) for _ in range(jobs))


def machines_of(cell: Cell, work: Work) -> Sizing:
    """Engines and workers of a cell."""
    sizing = size(work, RATE, cell.load, CURVE)
    if cell.slots is not None:
        engines = max(1, round(RATE * work.llm * slowdown(CURVE, cell.slots) / cell.load / cell.slots))
        rate = cell.load * engines * cell.slots / (work.llm * slowdown(CURVE, cell.slots))
        workers = {
            pool: max(1, ceil(rate * seconds / (WORKER_SLACK * cell.load))) for pool, seconds in work.regular.items()
        }
        sizing = Sizing((cell.slots,) * engines, workers, rate, cell.load, work.llm_pool)
    workers = {pool: max(1, round(n * cell.workers_factor)) for pool, n in sizing.workers.items()}
    assert sizing.rate is not None
    return replace(
        sizing, workers=workers, rate=sizing.rate * cell.rate_factor, load=(sizing.load or 0.0) * cell.rate_factor
    )


def described(sizing: Sizing) -> dict[str, Any]:
    """Machines as they stand in a results file."""
    return {
        "engines": len(sizing.engines),
        "slots": sizing.engines[0],
        "workers": dict(sizing.workers),
        "rate": round(sizing.rate or 0.0, 4),
        "load": round(sizing.load or 0.0, 4),
    }


# ----------------------------------------------------------------------------------------------------------- runs


def simulate(
    cells: Sequence[Cell],
    experiment: str,
    given: Options,
) -> list[Found]:
    """Every run of these cells; `reproduction-<experiment>.json` holds them afterwards, and now and then meanwhile.

    What that file or that of another experiment holds is taken from there, unless all is to be fresh or a policy is to
    run again; then from files that were written since this process began.
    """
    path = given.places.results / f"reproduction-{experiment}.json"
    known = kept(given)
    founds, todo = [], []
    for cell in cells:
        workload = source_of(cell.source, cell.workload, given.traces).workload
        sizing = machines_of(cell, Work.of(workload, installed_applications(), CURVE))
        found = Found(cell, described(sizing))
        founds.append(found)
        for seed in range(cell.seeds):
            for policy in cell.policies:
                row = known.get((cell, policy, seed))
                if row is not None:
                    found.runs[policy, seed] = row
                else:
                    todo.append((len(founds) - 1, sizing, policy, seed))
    if todo:
        _simulate(founds, todo, path, given)
    save(founds, path)
    return founds


def kept(given: Options) -> dict[tuple[Cell, str, int], list[float]]:
    """The runs that the results files hold, but for those to do again; what this process wrote is never done again."""
    known: dict[tuple[Cell, str, int], list[float]] = {}
    paths = sorted(given.places.results.glob("reproduction-*.json"), key=lambda path: path in _WRITTEN)
    for path in paths:
        is_old = path not in _WRITTEN
        if is_old and given.fresh:
            continue
        for one in json.loads(path.read_text()).get("cells", ()):
            own = {k: v for k, v in one.items() if k not in ("machines", "runs")}
            for policy, rows in one["runs"].items():
                if is_old and policy.partition(":")[0] in given.again:
                    continue
                known |= {(Cell(**own), policy, seed): row for seed, row in enumerate(rows)}
    return known


def save(founds: Iterable[Found], path: Path) -> None:
    """One line per policy and cell: small, and readable in a diff."""
    cells = []
    for found in founds:
        own = found.to_json()
        runs = ",\n".join(f"   {json.dumps(p)}: {json.dumps(rows)}" for p, rows in own.pop("runs").items())
        cells.append(f'  {json.dumps(own)[:-1]}, "runs": {{\n{runs}}}}}')
    _WRITTEN.add(path)
    head = f' "columns": {json.dumps(COLUMNS)},\n "cells": [\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + head + ",\n".join(cells) + "\n ]\n}\n")


def _simulate(
    founds: Sequence[Found],
    todo: Sequence[tuple[int, Sizing, str, int]],
    path: Path,
    given: Options,
) -> None:
    needed = dict.fromkeys((founds[k].cell.source, founds[k].cell.workload) for k, *_ in todo)
    sources = {(name, workload): source_of(name, workload, given.traces) for name, workload in needed}
    began = time.monotonic()
    knowledge = {}
    for name in dict.fromkeys(name for name, _ in needed):
        training = {a: jobs for (n, _), s in sources.items() if n == name for a, jobs in s.training.items()}
        knowledge[name] = learn(training, installed_applications(), CURVE)
    print(f"  {len(todo)} runs to do; learned in {time.monotonic() - began:.0f} s", flush=True)
    workloads = {key: source.workload for key, source in sources.items()}
    processes = min(given.parallel or os.cpu_count() or 1, len(todo))
    left = [sum(k == at for k, *_ in todo) for at in range(len(founds))]
    saved = began
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _begin, (workloads, knowledge))
    try:
        futures = {
            pool.submit(_run, founds[k].cell, sizing, policy, seed): (k, policy, seed)
            for k, sizing, policy, seed in todo
        }
        for future in as_completed(futures):
            k, policy, seed = futures[future]
            founds[k].runs[policy, seed] = future.result()
            left[k] -= 1
            if not left[k]:
                print(f"  {time.monotonic() - began:5.0f} s  {founds[k].cell}", flush=True)
            if time.monotonic() - saved > SAVE_EVERY_S:
                save(founds, path)
                saved = time.monotonic()
    finally:
        pool.shutdown(cancel_futures=True)


class _Process:
    """What a process of the pool works with."""

    workloads: Mapping[tuple[str, str], Workload]
    knowledge: Mapping[str, Knowledge]


def _begin(workloads: Mapping[tuple[str, str], Workload], knowledge: Mapping[str, Knowledge]) -> None:
    _Process.workloads, _Process.knowledge = workloads, knowledge
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot tell us to stop."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(cell: Cell, sizing: Sizing, policy: str, seed: int) -> list[float]:
    comparison = Comparison(
        _Process.workloads[cell.source, cell.workload],
        (Choice.parse(policy),),
        (sizing,),
        (seed,),
        cell.jobs,
        installed_applications(),
        CURVE,
        _known(cell.source, cell.workload),
    )
    run = comparison.run((0, 0, 0), _arrivals(comparison.workload.name, cell.source, cell.jobs, sizing.rate, seed))
    times = run.completion_times
    assert len(times) == cell.jobs, "a simulated job failed"
    busy = run.utilisation
    ms = run.decision_ms["mean"] or 0.0
    return [run.mean, float(np.percentile(times, 95)), ms, busy.get("llm", 0.0), busy.get("cpu", 0.0)]


@lru_cache(maxsize=1)
def _arrivals(workload: str, source: str, jobs: int, rate: float, seed: int) -> list[Arrival]:
    return _Process.workloads[source, workload].arrivals(jobs, rate, seed)


@lru_cache
def _known(source: str, workload: str) -> Knowledge:
    """Of the applications of a workload only."""
    whole = _Process.knowledge[source]
    names = _Process.workloads[source, workload].applications
    return Knowledge([whole.profiles[name] for name in names], whole.curves)

"""The runs behind the comparison: every policy on identical jobs, run once and kept.

A *cell* is a source of jobs, a workload and an offered load; a *run* of it is one policy and one seed. Runs are spread
over processes, saved as they come, and what the results file holds is not run again: an interrupted call goes on where
it stopped.

| source      | jobs that run                            | jobs that profiles and length predictors learn from       |
|-------------|------------------------------------------|-----------------------------------------------------------|
| `generator` | generator, numbers of the public traces  | 1,000 others of each application, drawn apart             |
| `traces`    | 30 % of the queries of the public traces | the other 70 %                                            |
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from llmsched.catalogue import installed_applications
from llmsched.model.latency import GENERIC_7B
from llmsched.policies import POLICIES
from llmsched.simulator.experiment import Choice, Comparison, Work, learn, prepare, size
from llmsched.simulator.statistics import Samples, change
from llmsched.training.ranker import sample
from llmsched.training.ranker import train as train_lengths
from llmsched.workloads import Arrival, Prompts

CURVE = GENERIC_7B
RATE = 0.9
JOBS = 300
#: The load that every comparison has, and those that the full one adds.
LOAD = 1.0
MORE_LOADS = (0.7, 0.85, 1.2)
WORKLOADS = ("mixed", "mixed-nodoc", "predefined", "chain", "planning")
#: Not told the future: what is compared. Told: reference lines.
COMPARED = tuple(name for name, policy in POLICIES.items() if not policy.is_oracle)
ORACLES = ("oracle-srtf", "oracle-pool")
#: Policies whose decisions cost so much that they get fewer seeds.
SLOW = ("decima", "llmsched-literal", "llmsched-plus")
#: What one run is remembered by.
COLUMNS = (
    "mean_jct",
    "p50_jct",
    "p95_jct",
    "p99_jct",
    "mean_slowdown",
    "max_slowdown",
    "jain",
    "mean_request",
    "decision_ms",
    "llm_busy",
    "cpu_busy",
)
#: Seconds between two savings of what is done so far.
_SAVE_EVERY = 15.0


#: Cell, policy, seed and what the run gave.
_Run: TypeAlias = "tuple[Cell, str, int, list[float]]"


class Cell(NamedTuple):
    source: str
    workload: str
    load: float

    def __str__(self) -> str:
        return f"{self.source} {self.workload}, load {self.load:g}"


@dataclass
class Found:
    """What the runs of a cell gave. runs: policy -> seed -> one number per column."""

    cell: Cell
    machines: str = ""
    runs: dict[str, dict[int, list[float]]] = field(default_factory=dict)

    def seeds(self, *policies: str) -> list[int]:
        """Seeds that all of them ran."""
        return sorted(set.intersection(*(set(self.runs.get(policy, {})) for policy in policies)))

    def samples(self, policy: str, column: str = "mean_jct", seeds: Sequence[int] | None = None) -> Samples:
        """(seeds,) one number per seed."""
        k = COLUMNS.index(column)
        rows = self.runs[policy]
        return np.array([rows[seed][k] for seed in (self.seeds(policy) if seeds is None else seeds)])

    def mean(self, policy: str, column: str = "mean_jct") -> float:
        return float(self.samples(policy, column).mean())

    def change(self, policy: str, other: str, column: str = "mean_jct") -> tuple[float, list[float]]:
        """Change against another policy in per cent over the seeds both ran, and its paired 95 % interval."""
        seeds = self.seeds(policy, other)
        found = change(self.samples(policy, column, seeds), self.samples(other, column, seeds))
        assert found is not None, (policy, other, seeds)
        return found["change_pct"], found["ci95"]

    def has(self, *policies: str) -> bool:
        """Whether they can be compared."""
        return len(self.seeds(*policies)) >= 2


def seeds_of(policy: str, load: float, *, full: bool) -> int:
    """How many seeds a policy gets."""
    few, many = (3, 10) if load != LOAD or not full else (6, 20)
    return few if policy.partition(":")[0] in SLOW else many


# ----------------------------------------------------------------------------------------------------------- files


def read(path: Path) -> dict[Cell, Found]:
    """What was run before; nothing if there is no such file."""
    if not path.is_file():
        return {}
    founds = {}
    for one in json.loads(path.read_text())["cells"]:
        cell = Cell(one["source"], one["workload"], one["load"])
        runs = {p: {int(seed): row for seed, row in rows.items()} for p, rows in one["runs"].items()}
        founds[cell] = Found(cell, one["machines"], runs)
    return founds


def write(founds: Mapping[Cell, Found], path: Path) -> None:
    """One line per policy and cell: small, and readable in a diff. The file is replaced in one step."""
    cells = []
    for cell, found in sorted(founds.items()):
        head = json.dumps({**cell._asdict(), "machines": found.machines})
        runs = ",\n".join(f"   {json.dumps(p)}: {json.dumps(_short(rows))}" for p, rows in found.runs.items())
        cells.append(f'  {head[:-1]}, "runs": {{\n{runs}}}}}')
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text('{\n "columns": ' + json.dumps(COLUMNS) + ',\n "cells": [\n' + ",\n".join(cells) + "\n ]\n}\n")
    part.replace(path)


def _short(rows: Mapping[int, Sequence[float]]) -> dict[str, list[float]]:
    return {str(seed): [float(f"{x:.5g}") for x in row] for seed, row in sorted(rows.items())}


# ------------------------------------------------------------------------------------------------------------ runs


def run(
    cells: Sequence[Cell],
    policies: Sequence[str],
    path: Path,
    traces: Path | None,
    *,
    full: bool,
    again: Sequence[str] = (),
    parallel: int | None = None,
    seconds: float | None = None,
) -> dict[Cell, Found]:
    """Runs what is missing, and gives everything that is there then.

    again: policies whose earlier runs do not count. seconds: after so many no new run is begun.
    """
    founds = read(path)
    for found in founds.values():
        for policy in [p for p in found.runs if p.partition(":")[0] in again]:
            del found.runs[policy]
    todo = []
    for cell in cells:
        found = founds.setdefault(cell, Found(cell))
        for policy in policies:
            rows = found.runs.setdefault(policy, {})
            todo += [(cell, policy, seed) for seed in range(seeds_of(policy, cell.load, full=full)) if seed not in rows]
    if todo:
        # First a few seeds of everything, then more: whatever stops it leaves a comparison that can be read.
        todo.sort(key=lambda one: (one[2] // 3, cells.index(one[0]), one[2]))
        _run(todo, founds, path, traces, parallel or os.cpu_count() or 1, seconds)
    write(founds, path)
    return founds


def _run(
    todo: Sequence[tuple[Cell, str, int]],
    founds: dict[Cell, Found],
    path: Path,
    traces: Path | None,
    processes: int,
    seconds: float | None,
) -> None:
    began = saved = time.monotonic()
    print(f"{len(todo)} runs to do, {processes} at once", flush=True)
    for cell in dict.fromkeys(cell for cell, *_ in todo):
        founds[cell].machines = str(_comparison(cell, traces).sizings[0])
    ends = _in_processes(todo, traces, processes) if processes > 1 else _here(todo, traces)
    for done, (cell, policy, seed, row) in enumerate(ends, 1):
        founds[cell].runs[policy][seed] = row
        now = time.monotonic()
        if now - saved > _SAVE_EVERY:
            saved = now
            write(founds, path)
            print(f"  {now - began:5.0f} s  {done} of {len(todo)} runs, now {cell}", flush=True)
        if seconds is not None and now - began > seconds:
            ends.close()


def _here(todo: Sequence[tuple[Cell, str, int]], traces: Path | None) -> Generator[_Run, None, None]:
    for cell, policy, seed in todo:
        yield cell, policy, seed, _one(cell, policy, seed, traces)


def _in_processes(
    todo: Sequence[tuple[Cell, str, int]], traces: Path | None, processes: int
) -> Generator[_Run, None, None]:
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin)
    try:
        running = {pool.submit(_one, *one, traces): one for one in todo}
        for future in as_completed(running):
            yield *running.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot tell us to stop."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _one(cell: Cell, policy: str, seed: int, traces: Path | None) -> list[float]:
    comparison = _comparison(cell, traces)
    chosen = replace(comparison, policies=(Choice.parse(policy),), seeds=(seed,))
    run = chosen.run((0, 0, 0), _arrivals(cell, seed, traces))
    row = run.to_json()
    row |= {"decision_ms": run.decision_ms["mean"] or 0.0, "llm_busy": run.utilisation["llm"]}
    row |= {"cpu_busy": run.utilisation.get("cpu", 0.0)}
    assert row["failed"] == 0, "a simulated job failed"
    return [float(row[column]) for column in COLUMNS]


@lru_cache(maxsize=2)
def _arrivals(cell: Cell, seed: int, traces: Path | None) -> list[Arrival]:
    comparison = _comparison(cell, traces)
    return comparison.workload.arrivals(JOBS, comparison.sizings[0].rate, seed)


@lru_cache(maxsize=2)
def _comparison(cell: Cell, traces: Path | None) -> Comparison:
    """Jobs, machines and what is known of a cell, for policies and seeds to be named."""
    comparison, work = _known(cell.source, cell.workload, traces)
    return replace(comparison, sizings=(size(work, RATE, cell.load, CURVE),))


@lru_cache(maxsize=2)
def _known(source: str, workload: str, traces: Path | None) -> tuple[Comparison, Work]:
    applications = installed_applications()
    folder = traces if source == "traces" else None
    jobs = prepare(workload, folder, None)
    knowledge = learn(jobs.training, applications, CURVE)
    prompts = None
    if folder is not None and (beside := folder.parent / "prompts").is_dir():
        prompts = Prompts.load(beside, jobs.workload.applications)
    lengths = train_lengths(sample(jobs.training, applications, prompts), {"texts": prompts is not None})
    work = Work.of(jobs.workload, applications, CURVE)
    known = Comparison(jobs.workload, (), (), (), JOBS, applications, CURVE, knowledge)
    return replace(known, lengths=lengths, prompts=prompts), work

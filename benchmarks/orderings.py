"""What was tried for the order of the default policy: each idea for the rank of what is left in the own pool.

    python benchmarks/orderings.py --traces DIR [--workloads chain,planning,mixed-nodoc] [--loads 1.0,1.2] [--seeds 8]

Only the training part of the traces is used: two thirds of its queries are learned from, the jobs of the others run
(`llmsched.profiler.learn.fold_of`). Printed is the share of the clairvoyant gain, (FCFS - X) / (FCFS - best oracle), in
mean job completion time over the seeds, identical jobs for every order. docs/policies.md quotes the table.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from llmsched.catalogue import installed_applications
from llmsched.model.job import Job, Stage
from llmsched.model.latency import GENERIC_7B
from llmsched.policies import make_policy
from llmsched.policies.base import Policy, View
from llmsched.policies.gittins import gittins_rank
from llmsched.policies.pool import LlmschedPool
from llmsched.profiler import Knowledge, Outlook, Truth
from llmsched.profiler.learn import fold_of
from llmsched.scheduler import Scheduler
from llmsched.simulator import World
from llmsched.simulator.experiment import Comparison, Work, learn, prepare, query_of, size
from llmsched.simulator.world import job_name

Rank = Callable[[Outlook, str, float, Job], float]


def left(outlook: Outlook, pool: str, pace: float) -> np.ndarray:
    """(m,) seconds left in a pool at a full batch."""
    k = outlook.pools.index(pool)
    return np.asarray(outlook.fixed[:, k] + pace * outlook.decode[:, k])


def mean(outlook: Outlook, pool: str, pace: float, job: Job) -> float:
    return float(outlook.weights @ left(outlook, pool, pace))


def gittins(outlook: Outlook, pool: str, pace: float, job: Job) -> float:
    return gittins_rank(left(outlook, pool, pace), outlook.weights)


def median(outlook: Outlook, pool: str, pace: float, job: Job) -> float:
    return outlook.quantiles(0.5, pool=pool)[0]


def bound(deviations: float) -> Rank:
    """Mean plus so many standard deviations: optimism (below 0) starts what may be short."""

    def rank(outlook: Outlook, pool: str, pace: float, job: Job) -> float:
        x = left(outlook, pool, pace)
        m = float(outlook.weights @ x)
        return m + deviations * float(np.sqrt(max(0.0, outlook.weights @ (x - m) ** 2)))

    return rank


def cross(share: float) -> Rank:
    """Adds a share of the work in other pools."""

    def rank(outlook: Outlook, pool: str, pace: float, job: Job) -> float:
        others = sum(float(outlook.weights @ left(outlook, p, pace)) for p in outlook.pools if p != pool)
        return mean(outlook, pool, pace, job) + share * others

    return rank


def started(factor: float) -> Rank:
    """Jobs that have finished a task first (below 1), or last."""

    def rank(outlook: Outlook, pool: str, pace: float, job: Job) -> float:
        has_begun = any(stage.done_tasks for stage in job.stages.values())
        return mean(outlook, pool, pace, job) * (factor if has_begun else 1.0)

    return rank


def siblings(outlook: Outlook, pool: str, pace: float, job: Job) -> float:
    """Only what is not yet running: a job whose last parallel tasks wait goes first."""
    running = sum(1 for task in job.running.values() if task.pool == pool)
    waiting = sum(len(s.ready) for s in job.stages.values() if s.pool == pool)
    return mean(outlook, pool, pace, job) * waiting / max(1, waiting + running)


def per_task(outlook: Outlook, pool: str, pace: float, job: Job) -> float:
    """Work per ready task: jobs that can use many slots at once go first."""
    return mean(outlook, pool, pace, job) / max(1, sum(len(s.ready) for s in job.stages.values()))


def geometric(outlook: Outlook, pool: str, pace: float, job: Job) -> float:
    return float(np.exp(outlook.weights @ np.log(left(outlook, pool, pace) + 0.05)))


def capped(share: float) -> Rank:
    """The mean of what is below a quantile, the rest cut off there."""

    def rank(outlook: Outlook, pool: str, pace: float, job: Job) -> float:
        x = left(outlook, pool, pace)
        order = np.argsort(x, kind="stable")
        at = min(int(np.searchsorted(np.cumsum(outlook.weights[order]), share)), len(x) - 1)
        return float(outlook.weights @ np.minimum(x, x[order][at]))

    return rank


ORDERS: dict[str, tuple[Rank, str]] = {
    "mean": (mean, ""),
    "mean, not calibrated to a full batch": (lambda o, p, _, j: mean(o, p, 1.0, j), ""),
    "Gittins index (the default)": (gittins, ""),
    "median": (median, ""),
    "geometric mean": (geometric, ""),
    "mean capped at the 80 % quantile": (capped(0.8), ""),
    "mean - 0.5 sd (information first)": (bound(-0.5), ""),
    "mean + 0.25 sd": (bound(0.25), ""),
    "+ 5 % of other pools": (cross(0.05), ""),
    "+ 20 % of other pools": (cross(0.2), ""),
    "- 5 % of other pools": (cross(-0.05), ""),
    "begun jobs count 0.8": (started(0.8), ""),
    "begun jobs count 1.2": (started(1.2), ""),
    "waiting siblings only": (siblings, ""),
    "per ready task": (per_task, ""),
    "network instead of history": (mean, "bayesnet"),
    "means instead of history": (mean, "mean"),
}


class Tried(LlmschedPool):
    """The default with another rank."""

    def __init__(self, knowledge: Knowledge, rank: Rank, estimator: str) -> None:
        super().__init__(knowledge, estimator or None)
        self._rank = rank

    def key(self, stage: Stage, view: View) -> float:
        job = stage.job
        outlook = self.knowledge.estimator(job.application, self._estimator).outlook(job)
        if stage.pool not in outlook.pools:
            return 0.0
        return self._rank(outlook, stage.pool, self.pace(stage.pool, view), job)


_comparison: Comparison


def _policy(name: str, knowledge: Knowledge, truth: Truth) -> Policy:
    if name in ORDERS:
        return Tried(knowledge, *ORDERS[name])
    return make_policy(name, knowledge=knowledge, truth=truth)


def _run(case: tuple[str, int]) -> float:
    name, seed = case
    arrivals = _comparison.arrivals(0, seed)
    knowledge = Knowledge(_comparison.knowledge.profiles.values(), _comparison.knowledge.curves)
    truth = Truth({job_name(k): a.recording for k, a in enumerate(arrivals)}, knowledge.curves)
    policy = _policy(name, knowledge, truth)
    setup = _comparison.setup(_comparison.sizings[0], seed, arrivals[-1].at)
    world = World(Scheduler(policy), arrivals, _comparison.applications, setup).run()
    return float(np.mean([f.completion_time for f in world.finished]))


def shares(traces: Path, workload: str, load: float, seeds: int, jobs: int = 300) -> dict[str, float]:
    """Share of the clairvoyant gain in percent, by order."""
    global _comparison
    applications = installed_applications()
    source = prepare(workload, traces, None)
    known = {a: [j for j in listed if fold_of(query_of(j.job_id))] for a, listed in source.training.items()}
    run = {a: [j for j in listed if not fold_of(query_of(j.job_id))] for a, listed in source.training.items()}
    knowledge = learn(known, applications, GENERIC_7B)
    used = replace(source.workload, traces=run)
    sizing = size(Work.of(used, applications, GENERIC_7B), 0.9, load, GENERIC_7B)
    _comparison = Comparison(used, (), (sizing,), tuple(range(seeds)), jobs, applications, GENERIC_7B, knowledge)
    names = ["fcfs", "oracle-pool", "oracle-srtf", "oracle-ready", *ORDERS]
    cases = [(name, seed) for name in names for seed in range(seeds)]
    with ProcessPoolExecutor(os.cpu_count(), get_context("fork")) as pool:
        means = list(pool.map(_run, cases, chunksize=seeds))
    mean_of = {name: float(np.mean(means[k * seeds : (k + 1) * seeds])) for k, name in enumerate(names)}
    best = min(mean_of["oracle-pool"], mean_of["oracle-srtf"])
    return {n: 100 * (mean_of["fcfs"] - m) / (mean_of["fcfs"] - best) for n, m in mean_of.items() if n != "fcfs"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, default=os.environ.get("LLMSCHED_TRACES"), required=False)
    parser.add_argument("--workloads", default="chain,planning,mixed-nodoc")
    parser.add_argument("--loads", default="1.0,1.2")
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    if options.traces is None:
        parser.error("--traces DIR is needed: generated jobs say nothing about real ones")
    columns = [(w, float(x)) for w in options.workloads.split(",") for x in options.loads.split(",")]
    table = [shares(options.traces, w, load, options.seeds) for w, load in columns]
    print("| order | " + " | ".join(f"{w} {load:g}" for w, load in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name in table[0]:
        print(f"| {name} | " + " | ".join(f"{column[name]:.0f} %" for column in table) + " |")


if __name__ == "__main__":
    main()

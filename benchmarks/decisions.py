"""What one decision costs at the load of the paper: its Table I, for every policy, beside the paper's figures.

    python benchmarks/decisions.py [--traces DIR] [--jobs 300] [--load 0.85] [--policies A,B,…]

One simulated run per workload and policy: jobs of the traces' held-out queries (or of the generator), profiles from the
others. Measured is `Scheduler.handle` for each batch in which the policy was asked, estimates and bookkeeping included,
in milliseconds. Runs follow each other in one process, so rows of one table compare; load on the machine shows in all.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import record
import rig
from rig import Figure

from llmsched.catalogue import installed_applications
from llmsched.model.latency import GENERIC_7B
from llmsched.policies import POLICIES
from llmsched.simulator.experiment import Comparison, Work, learn, parse_policies, prepare, size

WORKLOADS = ("mixed", "predefined", "chain", "planning")

#: Table I of the paper, milliseconds, in the order of `WORKLOADS`.
PAPER = {
    "fcfs": (0.25, 0.47, 0.06, 0.10),
    "sjf": (0.41, 0.66, 0.17, 0.18),
    "llmsched": (0.96, 2.32, 0.70, 0.16),
}

#: Mean and 99th percentile that Algorithm 1 and the default may cost, milliseconds.
GOALS = {"llmsched": (0.5, 3.0), "llmsched-pool": (0.5, 3.0)}


def measure(
    traces: Path | None, policies: Sequence[str], jobs: int = 300, load: float = 0.85, rate: float = 0.9
) -> list[Figure]:
    """Mean and p99 by workload and policy."""
    figures = []
    applications = installed_applications()
    choices = parse_policies(",".join(policies))
    for k, name in enumerate(WORKLOADS):
        source = prepare(name, traces, None)
        knowledge = learn(source.training, applications, GENERIC_7B)
        sizing = size(Work.of(source.workload, applications, GENERIC_7B), rate, load, GENERIC_7B)
        comparison = Comparison(source.workload, choices, (sizing,), (0,), jobs, applications, GENERIC_7B, knowledge)
        arrivals = comparison.arrivals(0, 0)
        for number, policy in enumerate(policies):
            costs = comparison.run((0, number, 0), arrivals).decision_ms
            paper = f", paper {PAPER[policy][k]:g} ms" if policy in PAPER else ""
            mean_goal, p99_goal = GOALS.get(policy, (None, None))
            figures.append(Figure(f"{name}, {policy}, mean{paper}", costs["mean"] or np.nan, "ms", mean_goal))
            figures.append(Figure(f"{name}, {policy}, p99", costs["p99"] or np.nan, "ms", p99_goal))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, default=os.environ.get("LLMSCHED_TRACES"))
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--load", type=float, default=0.85)
    parser.add_argument("--policies", default=",".join(n for n, p in POLICIES.items() if not p.is_oracle))
    options = parser.parse_args()
    print(rig.versions())
    conditions = record.conditions()
    figures = measure(options.traces, options.policies.split(","), options.jobs, options.load)
    rig.show(figures)
    told = [figure for figure in figures if figure.goal is not None or "paper" in figure.name]
    command = f"python benchmarks/decisions.py{' --traces DIR' if options.traces else ''}"
    record.save("decisions", f"One decision, simulated, load {options.load:g}", command, told, conditions)


if __name__ == "__main__":
    main()
